"""What a row of an earlier run is of: weights, settings, photo and prompts, all by contents. Names and paths do not count.

A run goes on in files that are there only where it would write the same rows, as nobody sees from masks what made them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_sam._files import existing_file, sha256_of
from trt_sam.cluster.photo import Everything, Prompts, Task
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import InputError
from trt_sam.runtime.set_graphs import check_is_set

__all__ = ["check_same_settings", "done_photos", "settings_of_photo", "settings_of_run", "sha256_of_graphs"]

_NAMED = 3
"""Photos that a message names at most."""

Row = Mapping[str, Any]


def settings_of_run(model: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """What all rows of a run share.

    Args:
        model: hashes of the weights, by the flag that names them: `set` (of its graphs), `checkpoint`, `onnx`.
        task: of `Everything` all settings count.
    """
    everything = None
    if isinstance(task, Everything):
        everything = {each.name: getattr(task, each.name) for each in dataclasses.fields(task)}
        if task.point_grids is not None:
            everything["point_grids"] = _sha256_of_data(task.point_grids)
    return {"model": dict(model), "everything": everything}


def settings_of_photo(photo: Path, task: Task) -> dict[str, Any]:
    """What the row of one photo adds: the SHA-256 of its file, and of its own prompts, if the task has prompts.

    Raises:
        InputError: the file cannot be read.
    """
    prompts = None
    if isinstance(task, Prompts):
        rows = [(prompt.points, prompt.labels, prompt.box) for prompt in task.by_photo.get(photo.name, ())]
        prompts = _sha256_of_data(rows)
    try:
        return {"photo": sha256_of(existing_file(photo, "image")), "prompts": prompts}
    except OSError as error:
        raise InputError(f"image {photo} cannot be read: {error.strerror or error}") from error


def check_same_settings(output: Path, held: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError where `output` was made by other settings (`settings_of_run`) than those of `now`."""
    if differ := list(_differences(held, now)):
        raise InputError(
            f"{output} is of other settings: {'; '.join(differ)}; name another --output, or give what it was made with"
        )


def done_photos(
    output: Path,
    files: Iterable[tuple[Path, Sequence[Row]]],
    settings: Mapping[str, Any],
    photos: Sequence[Path],
    task: Task,
    *,
    to_remove: str = "lines",
) -> set[str]:
    """The names of those `photos` that have a row in one of `files`.

    Args:
        output: what the user named.
        files: each with its rows; `output` itself, or those of a folder.
        settings: of this run, by `settings_of_run`.
        photos: those that there are now.
        task: what is to be found.
        to_remove: what the user can take away of a file, for messages: "lines", or "files" as a whole.

    Raises:
        InputError: a row was not made by `settings`, its photo or prompts are others now, or it does not say what it was made
            by. A second row of a photo would leave readers with two, so nothing is made again.
    """
    by_name = {photo.name: photo for photo in photos}
    done: set[str] = set()
    changed: dict[str, str] = {}
    for file, rows in files:
        for number, row in enumerate(rows, 1):
            name, held = _read(file, number, row)
            check_same_settings(file, held, settings)
            if name not in by_name:
                continue
            now = settings_of_photo(by_name[name], task)
            if what := [word for key, word in (("photo", "file"), ("prompts", "prompts")) if held.get(key) != now[key]]:
                where = "" if file == output else f", in {file.name}"
                changed[name] = f"its {' and '.join(what)}{where}"
            done.add(name)
    if changed:
        few = ", ".join(f"{name} ({what})" for name, what in list(changed.items())[:_NAMED])
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        raise InputError(
            f"{output} has lines of what has changed since: {few}{more}; name another --output, or remove these {to_remove}, "
            "and the same command makes them again"
        )
    return done


def sha256_of_graphs(folder: Path) -> dict[str, str]:
    """The hashes of a set's graphs by role, from its manifest; raises TrtSamError where it has none, or a damaged one."""
    check_is_set(folder)
    return {graph.role: graph.onnx.sha256 for graph in open_manifest(folder, verify=False).graphs}


def _sha256_of_data(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def _read(file: Path, number: int, row: Row) -> tuple[str, dict[str, Any]]:
    """The photo's name and the settings of a row."""
    image, held = row.get("image"), row.get("settings")
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or not isinstance(held, dict):
        raise InputError(f"{file}: line {number} is not of this command: it has no image or settings; name another --output")
    if not isinstance(held.get("model"), dict):
        raise InputError(
            f"{file}: line {number} is of an older version, which did not write down what weights, photo and prompts it was "
            "made of; name another --output"
        )
    return image["file_name"], held


def _differences(held: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """By flags, in words."""
    for flag in {**held["model"], **now["model"]}:
        before, after = held["model"].get(flag), now["model"].get(flag)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _compared(before, after, "--set ({})")
        else:
            yield from _compared({flag: before}, {flag: after})
    before, after = held.get("everything"), now["everything"]
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _compared(before, after)
    else:
        yield from _compared({"everything": before}, {"everything": after})


def _compared(before: Mapping[str, Any], after: Mapping[str, Any], form: str = "--{}") -> Iterator[str]:
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            flag = form.format(name if form != "--{}" else name.replace("_", "-"))
            yield f"{flag} was {_shown(before.get(name))}, now {_shown(after.get(name))}"


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, dict):
        return "given"
    return f"SHA-256 {value[:12]}" if isinstance(value, str) and len(value) == 64 else str(value)
