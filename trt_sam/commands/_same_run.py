"""What a line of an earlier run is of: weights, settings, photo and prompts, all by contents. Names and paths do not count.

`segment` goes on in a file of lines only where it would write the same ones, as nobody sees from masks what made them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._files import existing_file, sha256_of
from trt_sam.download import CATALOGUE, check_source, weights_sha256
from trt_sam.errors import InputError

if TYPE_CHECKING:
    from trt_sam.cluster import Everything, Prompts

__all__ = ["done_photos", "settings_of_photo", "settings_of_run", "sha256_of_graphs"]

_NAMED = 3
"""Photos that a message names at most."""


def settings_of_run(args: argparse.Namespace, task: Everything | Prompts) -> dict[str, Any]:
    """What all lines of a run share: hashes of what `--set`, `--checkpoint` and `--onnx` name, and all of `--everything`.

    Raises:
        TrtSamError: one of them is not there, or the set is damaged.
    """
    from trt_sam.cluster import Everything

    model: dict[str, Any] = {}
    if args.set is not None:
        model["set"] = sha256_of_graphs(args.set)
    if args.checkpoint is not None:
        model["checkpoint"] = _weights(args.checkpoint)
    if args.onnx is not None:
        model["onnx"] = sha256_of(existing_file(args.onnx, "graph"))
    everything = None
    if isinstance(task, Everything):
        everything = {each.name: getattr(task, each.name) for each in dataclasses.fields(task)}
        if task.point_grids is not None:
            everything["point_grids"] = _sha256_of_data(task.point_grids)
    return {"model": model, "everything": everything}


def settings_of_photo(photo: Path, task: Everything | Prompts) -> dict[str, Any]:
    """What the line of one photo adds: the SHA-256 of its file, and of its own prompts, if the task has prompts.

    Raises:
        InputError: the file cannot be read.
    """
    from trt_sam.cluster import Prompts

    prompts = None
    if isinstance(task, Prompts):
        rows = [(prompt.points, prompt.labels, prompt.box) for prompt in task.by_photo[photo.name]]
        prompts = _sha256_of_data(rows)
    try:
        return {"photo": sha256_of(existing_file(photo, "image")), "prompts": prompts}
    except OSError as error:
        raise InputError(f"image {photo} cannot be read: {error.strerror or error}") from error


def done_photos(
    output: Path,
    lines: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    photos: Sequence[Path],
    task: Everything | Prompts,
) -> set[str]:
    """The names of those `photos` that have a line in `output`.

    Raises:
        InputError: a line was not made by `settings` (`settings_of_run`), its photo or prompts are others now, or it does not
            say what it was made by. A second line of a photo would leave readers with two, so nothing is made again.
    """
    by_name = {photo.name: photo for photo in photos}
    done: set[str] = set()
    changed: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, held = _read(output, number, line)
        if differ := list(_differences(held, settings)):
            raise InputError(
                f"{output} is of other settings: {'; '.join(differ)}; name another --output, or give what it was made with"
            )
        if name not in by_name:
            continue
        now = settings_of_photo(by_name[name], task)
        if what := [word for key, word in (("photo", "file"), ("prompts", "prompts")) if held.get(key) != now[key]]:
            changed[name] = " and ".join(what)
        done.add(name)
    if changed:
        few = ", ".join(f"{name} (its {what})" for name, what in list(changed.items())[:_NAMED])
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        raise InputError(
            f"{output} has lines of what has changed since: {few}{more}; name another --output, or remove these lines, and the "
            "same command makes them again"
        )
    return done


def sha256_of_graphs(folder: Path) -> dict[str, str]:
    """The hashes of a set's graphs by role, from its manifest; raises TrtSamError where it has none, or a damaged one."""
    from trt_sam.engine.manifest import open_manifest
    from trt_sam.runtime.set_graphs import check_is_set

    check_is_set(folder)
    return {graph.role: graph.onnx.sha256 for graph in open_manifest(folder, verify=False).graphs}


def _weights(checkpoint: str) -> str:
    if checkpoint in CATALOGUE:
        # Not fetched for that: it is whenever it is loaded, and is this file or refused.
        return CATALOGUE[checkpoint].sha256
    # What a hub's id stands for is not known before it is loaded.
    return weights_sha256(check_source(checkpoint)) or checkpoint


def _sha256_of_data(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def _read(output: Path, number: int, line: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The photo's name and the settings of a line."""
    image, held = line.get("image"), line.get("settings")
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or not isinstance(held, dict):
        raise InputError(f"{output}: line {number} is not of this command: it has no image or settings; name another --output")
    if not isinstance(held.get("model"), dict):
        raise InputError(
            f"{output}: line {number} is of an older version, which did not write down what weights, photo and prompts it was "
            "made of; name another --output"
        )
    return image["file_name"], held


def _differences(held: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """By flags, in words."""
    for flag in ("set", "checkpoint", "onnx"):
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
