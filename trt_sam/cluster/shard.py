"""`do_shard`: the photos of a shard into its file, which appears whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trt_sam.cluster.photo import Embed, Task, segmented
from trt_sam.cluster.plan import Shard
from trt_sam.cluster.rows import read_rows, write_rows
from trt_sam.cluster.same_run import settings_of_photo
from trt_sam.errors import InferenceError, InputError
from trt_sam.formats.coco import sa1b_data
from trt_sam.runtime.interface import Runner

__all__ = ["Done", "do_shard", "give_up"]

Done = tuple[int, int, int]
"""Photos, masks, and photos that could not be done."""


def do_shard(runner: Runner, embed: Embed, photos: Path, shard: Shard, task: Task) -> Done:
    """Segment the shard's photos, which lie in `photos`, and write its file.

    Raises:
        InputError: the disk is full, or the folder cannot be written; the file is as it was.
    """
    lines = read_rows(shard.part)
    # A run that was stopped between the two files below has done some of what the side file names.
    there = {str(line["image"]["file_name"]) for line in lines}
    failed, done, masks = [], 0, 0
    for name in shard.names:
        if name in there:
            continue
        try:
            # Before the photo is read: one that is replaced meanwhile is not taken for the new one later.
            settings = {**shard.settings, **settings_of_photo(photos / name, task)}
            photo, records = segmented(runner, embed, photos / name, task)
        except (InputError, InferenceError) as error:
            failed.append({"file_name": name, "error": " ".join(str(error).split())})
            continue
        lines.append({**sa1b_data(photo, records), "settings": settings})
        done, masks = done + 1, masks + len(records)
    _write(shard, lines, failed)
    return done, masks, len(failed)


def give_up(shard: Shard, reason: str) -> Done:
    """Write the shard's file without its photos, which are named in the side file with `reason`."""
    failed = [{"file_name": name, "error": reason} for name in shard.names]
    _write(shard, read_rows(shard.part), failed)
    return 0, 0, len(failed)


def _write(shard: Shard, lines: list[dict[str, Any]], failed: list[dict[str, str]]) -> None:
    """The side file first: with the other the shard counts as done."""
    if failed:
        write_rows(shard.side, failed)
    write_rows(shard.part, lines)
    if not failed:
        shard.side.unlink(missing_ok=True)
