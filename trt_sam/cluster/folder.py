"""`segment_folder`: the shards of a folder over the workers of a cluster, until each has its file.

A worker that dies, alone or with its machine, loses nothing: its shard goes to another, and no file was there yet.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_sam.cluster.photo import Prompts, Task, asks_of
from trt_sam.cluster.plan import Plan, Shard, open_plan
from trt_sam.cluster.pool import Pool, WorkerDiedError, check_reachable, connected
from trt_sam.cluster.rows import PARQUET, check_parquet, write_rows
from trt_sam.cluster.same_run import done_photos, settings_of_run, sha256_of_graphs
from trt_sam.cluster.shard import Done, give_up
from trt_sam.cluster.worker import files_of_set, runs_on_gpu
from trt_sam.errors import InputError
from trt_sam.imaging.photos import list_images
from trt_sam.progress import Progress

__all__ = ["FAILED_NAME", "Report", "segment_folder"]

FAILED_NAME = "failed.jsonl"
_DEATHS = 3
"""So many workers may die of a shard before its photos count as failed."""

_log = logging.getLogger(__name__)


@dataclass
class Report:
    """What a run did."""

    photos: int = 0
    masks: int = 0
    failed: int = 0
    """Photos that could not be done, of all runs; `failed.jsonl` names them."""
    there: int = 0
    """Photos that were done before."""
    workers: set[str] = field(default_factory=set)


def segment_folder(
    photos: Path,
    output: Path,
    folder: Path,
    task: Task,
    *,
    model: Mapping[str, Any] | None = None,
    address: str = "",
    shard_size: int = 64,
    parquet: bool = False,
    told: Progress | None = None,
) -> Report:
    """Segment the photos in the folder `photos` into files of JSON lines in the folder `output`, on a cluster of Ray.

    Both folders must be there for all machines under these paths; the set in `folder` is sent to them. What an earlier run did
    of the same weights, task, photos and prompts, by contents, is not done again.

    Args:
        photos: the folder; of `Prompts` those photos that have some.
        output: one file for each shard of `shard_size` photos, written when it is whole; `failed.jsonl` where some failed.
        folder: a set with an image encoder: engines take a GPU for each worker, graphs a core.
        task: what to find.
        model: what a later run must have too, by `same_run.settings_of_run`; the set's graphs if None.
        address: of the cluster, "auto" for the one of this machine; empty starts one here for this run.
        shard_size: photos of a file.
        parquet: write Parquet instead of JSON lines (`cluster.rows`).
        told: who is told how far it is.

    Raises:
        InputError: the address cannot be reached, the output is of other settings, photos or prompts, or cannot be written any
            more.
        TrtSamError: the set cannot be used, or pyarrow is missing here or on another machine.
    """
    if shard_size < 1:
        raise InputError(f"shard_size is {shard_size}, must be at least 1 photo")
    if parquet:
        check_parquet()
    check_reachable(address)
    asked = [path for path in list_images([photos]) if asks_of(task, path.name)]
    names = [path.name for path in asked]
    files = files_of_set(folder)
    settings = settings_of_run({"set": sha256_of_graphs(folder)} if model is None else model, task)
    plan = open_plan(output.absolute(), names, settings, shard_size, PARQUET if parquet else ".jsonl")
    written = _counted(plan.written(), told)
    done = done_photos(plan.folder, written, settings, asked, task, to_remove="files" if parquet else "lines")
    todo = list(plan.todo(set(names), done))
    report = Report(there=len(names) - sum(len(shard.names) for shard in todo))
    if todo:
        with connected(address), Pool(files, gpu=runs_on_gpu(folder)) as pool:
            _share_out(pool, plan, todo, photos.absolute(), task, report, told)
    failures = list(plan.failures(set(names)))
    report.failed = len(failures)
    _write_failures(plan, failures)
    return report


def _counted(files: Iterator[tuple[Path, list[dict[str, Any]]]], told: Progress | None) -> Iterator[tuple[Path, Any]]:
    """`files`, of whose photos each has to be read: that takes minutes in a large folder."""
    for number, file in enumerate(files):
        if told is not None:
            told(0.0, f"photos of {number} files compared with what is there")
        yield file


def _share_out(
    pool: Pool, plan: Plan, todo: Collection[Shard], photos: Path, task: Task, report: Report, told: Progress | None
) -> None:
    waiting, deaths, finished = deque(todo), dict.fromkeys((shard.number for shard in todo), 0), 0
    saved = False
    while finished < len(todo):
        pool.fill(len(todo) - finished)
        while waiting and (worker := pool.idle()) is not None:
            if not saved:
                # Where no worker can be had nothing is left in the folder.
                plan.save()
                saved = True
            shard = waiting.popleft()
            part = task.of(shard.names) if isinstance(task, Prompts) else task
            pool.give(worker, shard, str(photos), part)
        for shard, result in pool.done():
            done: Done
            if isinstance(result, WorkerDiedError):
                deaths[shard.number] += 1
                if deaths[shard.number] < _DEATHS:
                    _log.warning("a worker died (%s); its %d photos go to another", result, len(shard.names))
                    waiting.appendleft(shard)
                    continue
                done = give_up(shard, f"{_DEATHS} workers died of these photos ({result}); give smaller shards to find which")
            else:
                done = result
            finished += 1
            report.photos, report.masks = report.photos + done[0], report.masks + done[1]
            if told is not None:
                told(finished / len(todo), f"{finished} of {len(todo)} files")
    report.workers = pool.seen


def _write_failures(plan: Plan, failures: list[dict[str, str]]) -> None:
    path = plan.folder / FAILED_NAME
    if failures:
        write_rows(path, failures)
    else:
        path.unlink(missing_ok=True)
