"""`segment --ray`: a folder of photos on a cluster, into a folder of JSON lines or Parquet."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from trt_sam.commands._many import check_flags_of_many, photos_and_masks, task_of, unasked
from trt_sam.commands._outputs import check_output_folder
from trt_sam.commands._same_run import model_of_run
from trt_sam.errors import InputError
from trt_sam.imaging.photos import list_images
from trt_sam.progress import Stages

__all__ = ["add_ray_arguments", "run_on_ray"]

_SHARD_SIZE = 64


def add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--ray`, `--shard-size` and `--parquet`."""
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="",
        help="do a folder on a cluster of Ray: HOST:PORT, auto, or nothing for one on this machine",
    )
    parser.add_argument("--shard-size", type=int, metavar="N", help=f"with --ray: photos of a file (default: {_SHARD_SIZE})")
    parser.add_argument("--parquet", action="store_true", help="with --ray: files of Parquet instead of JSON lines")


def run_on_ray(args: argparse.Namespace) -> int:
    """Segment what is missing in `--output`; 1 where photos could not be done, which `failed.jsonl` names, else 0.

    Raises:
        InputError: impossible flags, an address that cannot be reached, or the output cannot be written.
        TrtSamError: the set cannot be used.
    """
    check_flags_of_many(args)
    if not args.image.is_dir():
        raise InputError(f"--ray is for a folder of photos, and {args.image} is none")
    if args.output is None or args.output.suffix:
        raise InputError("--ray writes many files: give --output a folder")
    check_output_folder(args.output)
    if args.onnx is not None or (args.set is None) == (args.checkpoint is None):
        raise InputError("--ray needs a set with an image encoder: give either --set DIR or --checkpoint mobile_sam")
    if args.shard_size is not None and args.shard_size < 1:
        raise InputError(f"--shard-size is {args.shard_size}, must be at least 1 photo")
    folder = _folder_of(args)
    from trt_sam.cluster import segment_folder

    photos = list_images([args.image])
    task = task_of(args, photos)
    started = time.perf_counter()
    with Stages({"shards": 1}) as stages:
        report = segment_folder(
            args.image,
            args.output,
            folder,
            task,
            model=model_of_run(args),
            address=args.ray,
            shard_size=_SHARD_SIZE if args.shard_size is None else args.shard_size,
            parquet=args.parquet,
            told=stages.begin("shards", f"{len(photos)} photos on a cluster of Ray"),
        )
    kept = f", {report.there} were there" if report.there else ""
    wrong = f", {report.failed} could not be done (failed.jsonl names them)" if report.failed else ""
    seconds = time.perf_counter() - started
    print(
        f"{args.output}: {photos_and_masks(report.photos, report.masks)}{kept}{unasked(task, photos)}{wrong}, {seconds:.1f} s",
        flush=True,
    )
    return 1 if report.failed else 0


def _folder_of(args: argparse.Namespace) -> Path:
    from trt_sam.commands._served import cached_set
    from trt_sam.runtime.set_graphs import check_is_set

    if args.set is None:
        return cached_set(args.checkpoint, None)
    check_is_set(args.set)
    return Path(args.set)
