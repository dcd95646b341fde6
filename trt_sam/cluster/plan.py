"""`Plan`: which photos go into which file, kept beside the files, so that a run that was stopped goes on.

The plan has the photos' names alone: a photo is done when it has a row, and that says of what file and prompts it is, as the
worker found them. Files appear whole. What could not be done is in a side file of the shard, which is written first: those
photos are tried again by the next run, and come into the same file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trt_sam._files import write_atomically
from trt_sam.cluster.rows import PARQUET, read_heads
from trt_sam.cluster.same_run import check_same_settings
from trt_sam.errors import InputError
from trt_sam.formats.lines import read_lines

__all__ = ["PLAN_NAME", "Plan", "Shard", "open_plan"]

PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class Shard:
    """Some photos and their file."""

    number: int
    names: tuple[str, ...]
    """Of the photos that are to be done."""
    part: Path
    """Its file, by its suffix JSON lines or Parquet."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its rows share (`same_run.settings_of_run`)."""

    @property
    def side(self) -> Path:
        """The file with what could not be done."""
        return self.part.with_name(f"{self.part.stem}.failed.jsonl")

    def failed(self) -> list[dict[str, str]]:
        """`file_name` and `error` of what the last run could not do."""
        return read_lines(self.side) if self.side.exists() else []


@dataclass(frozen=True)
class Plan:
    """All shards of an output folder."""

    folder: Path
    settings: Mapping[str, Any]
    shards: tuple[tuple[str, ...], ...]
    """The photos' names of each."""
    suffix: str = ".jsonl"
    """Of the shards' files."""

    def shard(self, number: int) -> Shard:
        """One of them, with all of its photos."""
        part = self.folder / f"part-{number:06d}{self.suffix}"
        return Shard(number, self.shards[number], part, self.settings)

    def written(self) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
        """The files that there are, each with its rows, of which at least `image` and `settings` are read."""
        for number in range(len(self.shards)):
            part = self.shard(number).part
            if part.exists():
                yield part, read_heads(part)

    def todo(self, wanted: Collection[str], done: Collection[str] = ()) -> Iterator[Shard]:
        """What is left of the shards: photos that are `wanted` and not `done`, and those that a side file names."""
        for number in range(len(self.shards)):
            shard = self.shard(number)
            # A run that was stopped between both files leaves a side file of what is done; doing it again takes that away.
            tried = {line["file_name"] for line in shard.failed()}
            names = tuple(name for name in shard.names if name in wanted and (name in tried or name not in done))
            if names:
                yield replace(shard, names=names)

    def save(self) -> None:
        """Write it into its folder; raises InputError where that cannot be written."""
        data = {"settings": dict(self.settings), "parquet": self.suffix == PARQUET, "shards": self.shards}
        write_atomically(self.folder / PLAN_NAME, json.dumps(data) + "\n")

    def failures(self, wanted: Collection[str]) -> Iterator[dict[str, str]]:
        """What of the `wanted` photos could not be done so far, shard by shard."""
        for number in range(len(self.shards)):
            yield from (line for line in self.shard(number).failed() if line["file_name"] in wanted)


def open_plan(folder: Path, names: Sequence[str], settings: Mapping[str, Any], shard_size: int, suffix: str = ".jsonl") -> Plan:
    """The plan in `folder`, or a new one; photos that it does not know get shards of their own. It is not saved.

    Raises:
        InputError: it is of other settings or damaged, or the folder holds other files.
    """
    path = folder / PLAN_NAME
    before: tuple[tuple[str, ...], ...] = ()
    if path.exists():
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            before = tuple(tuple(str(name) for name in shard) for shard in said["shards"])
            held, parquet = dict(said["settings"]), bool(said.get("parquet"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error!r}); name another --output, or remove the folder") from None
        if not isinstance(held.get("model"), dict):
            raise InputError(
                f"{path} is of an older version, which did not write down what weights, photos and prompts its files were made "
                "of; name another --output"
            )
        check_same_settings(folder, held, settings)
        if parquet != (suffix == PARQUET):
            held_and_now = "given, now not given" if parquet else "not given, now given"
            raise InputError(
                f"{folder} is of other settings: --parquet was {held_and_now}; name another --output, or change that"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} holds other files and no {PLAN_NAME}; name another --output")
    known = {name for shard in before for name in shard}
    new = [name for name in names if name not in known]
    shards = (*before, *(tuple(new[start : start + shard_size]) for start in range(0, len(new), shard_size)))
    return Plan(folder, settings, shards, suffix)
