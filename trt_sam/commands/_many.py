"""`segment` over a folder of photos, or with a file of prompts: a line of JSON for each photo, as soon as it is done."""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trt_sam.commands._decoder import open_for_photos
from trt_sam.commands._everything import check_flags_of_everything, everything_of, progress_bar
from trt_sam.commands._outputs import check_output_file
from trt_sam.commands._same_run import settings_of_run
from trt_sam.errors import InferenceError, InputError
from trt_sam.formats.coco import sa1b_data
from trt_sam.formats.lines import LinesFile
from trt_sam.imaging.photos import list_images
from trt_sam.progress import Progress

if TYPE_CHECKING:
    from trt_sam.cluster import Everything, Prompts

__all__ = ["add_many_arguments", "check_flags_of_many", "is_of_many", "photos_and_masks", "run_many", "task_of", "unasked"]

_log = logging.getLogger(__name__)


def add_many_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--prompts`."""
    parser.add_argument(
        "--prompts",
        metavar="F.json",
        type=Path,
        help="many prompts by image name: JSON as calibrate takes it, or COCO's",
    )


def is_of_many(args: argparse.Namespace) -> bool:
    """Whether the command is of a folder, or of prompts in a file."""
    return args.prompts is not None or args.image.is_dir()


def run_many(args: argparse.Namespace) -> int:
    """Segment every photo that has no line in `--output` yet; 1 where one could not be, which is named, else 0.

    With `--prompts` a photo that the file does not name is left out: nobody asked anything of it.

    Raises:
        InputError: impossible flags, no photo, a file of prompts that cannot be used, or the output cannot be written or holds
            lines that this command would not write (`cluster.same_run`).
    """
    from trt_sam.cluster import asks_of, segmented
    from trt_sam.cluster.same_run import done_photos, settings_of_photo

    _check(args)
    photos = list_images([args.image])
    task = task_of(args, photos)
    left_out = unasked(task, photos)
    photos = [photo for photo in photos if asks_of(task, photo.name)]
    settings = settings_of_run(args, task)
    started, failed, masks = time.perf_counter(), 0, 0
    with LinesFile(args.output) as lines:
        done = done_photos(args.output, [(args.output, lines.lines)], settings, photos, task)
        todo = [photo for photo in photos if photo.name not in done]
        with contextlib.ExitStack() as stack:
            decoder = stack.enter_context(open_for_photos(args, num_prompts=_prompts_of(task, todo))) if todo else None
            bar = stack.enter_context(progress_bar(_doing(args, todo)))
            for number, path in enumerate(todo):
                assert decoder is not None
                try:
                    part = _part_of(bar, number, len(todo), path.name)
                    # Before the photo is read: one that is replaced meanwhile is not taken for the new one later.
                    whole = {**settings, **settings_of_photo(path, task)}
                    photo, records = segmented(decoder.runner, decoder.embed, path, task, part)
                except (InputError, InferenceError) as error:
                    words = " ".join(str(error).split())
                    _log.error("%s", words if str(path) in words else f"{path}: {words}")
                    failed += 1
                    continue
                lines.append({**sa1b_data(photo, records), "settings": whole})
                masks += len(records)
        kept = f", {len(photos) - len(todo)} were there" if len(photos) > len(todo) else ""
        wrong = f", {failed} could not be done (named above)" if failed else ""
        seconds = time.perf_counter() - started
        told = f"{photos_and_masks(len(todo) - failed, masks)}{kept}{left_out}{wrong}, {seconds:.1f} s"
        print(f"{args.output}: {told}", flush=True)
    return 1 if failed else 0


def _prompts_of(task: Everything | Prompts, photos: list[Path]) -> int:
    """How many prompts there are on `photos`."""
    from trt_sam.cluster import Everything

    if isinstance(task, Everything):
        return task.num_prompts * len(photos)
    return sum(len(task.by_photo[photo.name]) for photo in photos)


def check_flags_of_many(args: argparse.Namespace) -> None:
    """Raise InputError where a flag is for one photo, or nothing says what is to be found."""
    if args.everything == (args.prompts is not None):
        what = f"{args.image} is a folder, so " if args.image.is_dir() else ""
        raise InputError(f"{what}several photos or prompts: give either --everything or --prompts F.json")
    if not args.everything:
        check_flags_of_everything(args)
    for flag, given in (
        ("--point", args.point),
        ("--box", args.box),
        ("--embedding", args.embedding),
        ("--overlay", args.overlay),
        ("--all-masks", args.all_masks),
        ("--format", args.format),
        ("--json", args.json),
    ):
        if given:
            raise InputError(f"{flag} is for one photo and one prompt; leave it out, or give a photo without --prompts")


def _check(args: argparse.Namespace) -> None:
    check_flags_of_many(args)
    if args.output is None or args.output.suffix.lower() != ".jsonl":
        raise InputError("several photos or prompts go into a file of JSON lines: give --output F.jsonl")
    check_output_file(args.output)
    if args.set is not None and not (args.checkpoint is args.onnx is None):
        raise InputError("--set brings decoder and image encoder; leave --checkpoint and --onnx out")
    if args.checkpoint is args.set is None:
        raise InputError("no checkpoint: photos have to be embedded; give --checkpoint mobile_sam, standin, a .pth; or --set")


def photos_and_masks(photos: int, masks: int) -> str:
    """For the line at the end: what was done."""
    return f"{photos} photo{'s' * (photos != 1)}, {masks} mask{'s' * (masks != 1)}"


def task_of(args: argparse.Namespace, photos: Sequence[Path]) -> Everything | Prompts:
    """What is to be found in the photos; raises InputError where the file of prompts cannot be used, or names none of them."""
    if args.prompts is None:
        return everything_of(args)
    from calibrators.prompt_file import read_prompts
    from trt_sam.cluster import Prompts

    prompts = read_prompts(args.prompts)
    found = {photo.name: prompts.find(str(photo), photo.name) for photo in photos}
    lost = [name for name, asked in prompts.prompts.items() if asked and name not in found.values()]
    few = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
    if not any(key is not None for key in found.values()):
        held = f"it names {few}" if lost else "it holds none"
        raise InputError(f"{args.prompts} has no prompts of {'any photo in ' * args.image.is_dir()}{args.image}: {held}")
    if lost and args.image.is_dir():
        _log.warning(
            "%s: no photo in %s for the prompts of %d images: %s; check their names", args.prompts, args.image, len(lost), few
        )
    return Prompts({name: prompts.prompts[key] for name, key in found.items() if key is not None}, str(args.prompts))


def unasked(task: Everything | Prompts, photos: Sequence[Path]) -> str:
    """For the line at the end: how many photos the file of prompts does not name."""
    from trt_sam.cluster import asks_of

    count = sum(not asks_of(task, photo.name) for photo in photos)
    return f", {count} without prompts left out" if count else ""


def _doing(args: argparse.Namespace, todo: Sequence[Path]) -> str:
    what = "looking for everything in" if args.everything else "prompts on"
    return f"{what} {len(todo)} photo{'s' * (len(todo) != 1)}"


def _part_of(bar: Progress | None, number: int, count: int, name: str) -> Progress | None:
    if bar is None:
        return None
    tell: Callable[[float, str], None] = bar
    tell(number / count, name)
    return lambda fraction, phase: tell((number + fraction) / count, f"{name}: {phase}")
