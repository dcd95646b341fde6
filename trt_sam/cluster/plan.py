"""`Plan`: which photos go into which file, kept beside the files, so that a run that was stopped goes on.

A shard is done when its file is there, as files appear whole. What could not be done is in a side file of the shard, which is
written first: those photos are tried again by the next run, and come into the same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_sam._files import write_atomically
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
        return Shard(number, self.shards[number], self.folder / f"part-{number:06d}{self.suffix}")

    def todo(self) -> Iterator[Shard]:
        """The shards that are not done, and of the others what failed."""
        for number in range(len(self.shards)):
            shard = self.shard(number)
            if not shard.part.exists():
                yield shard
            elif failed := shard.failed():
                yield Shard(number, tuple(line["file_name"] for line in failed), shard.part)

    def save(self) -> None:
        """Write it into its folder; raises InputError where that cannot be written."""
        data = {"settings": dict(self.settings), "shards": self.shards}
        write_atomically(self.folder / PLAN_NAME, json.dumps(data) + "\n")

    def failures(self) -> Iterator[dict[str, str]]:
        """What could not be done so far, shard by shard."""
        for number in range(len(self.shards)):
            yield from self.shard(number).failed()


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
            held = dict(said["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error!r}); name another --output, or remove the folder") from None
        if held != settings:
            differ = sorted(name for name in {*held, *settings} if held.get(name) != settings.get(name))
            raise InputError(f"{folder} is of other settings ({', '.join(differ)}); name another --output, or remove it")
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} holds other files and no {PLAN_NAME}; name another --output")
    known = {name for shard in before for name in shard}
    new = [name for name in names if name not in known]
    shards = (*before, *(tuple(new[start : start + shard_size]) for start in range(0, len(new), shard_size)))
    return Plan(folder, settings, shards, suffix)
