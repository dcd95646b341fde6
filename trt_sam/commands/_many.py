"""`segment` over a folder of photos, or with a file of prompts: a line of JSON for each photo, as soon as it is done."""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibrators.prompt_file import FilePrompt, PromptFile, read_prompts
from trt_sam.commands._decoder import OpenedForPhotos, open_for_photos
from trt_sam.commands._everything import generator_of, progress_bar
from trt_sam.commands._prompt_flags import check_inside
from trt_sam.errors import InferenceError, InputError
from trt_sam.formats.coco import sa1b_data
from trt_sam.formats.lines import LinesFile
from trt_sam.formats.records import Photo
from trt_sam.formats.runs import Runs
from trt_sam.imaging.photos import list_images, read_image
from trt_sam.progress import Progress
from trt_sam.runtime.predictor import Predictor

__all__ = ["add_many_arguments", "is_of_many", "run_many"]

_PROMPTS_AT_ONCE = 16
"""Masks at full size exist for so many prompts at a time."""

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

    Raises:
        InputError: impossible flags, no photo, a file of prompts that cannot be used, or the output cannot be written.
    """
    _check(args)
    prompts = None if args.prompts is None else read_prompts(args.prompts)
    photos = list_images([args.image])
    settings = {
        "checkpoint": args.checkpoint,
        "onnx": None if args.onnx is None else str(args.onnx),
        "prompts": None if args.prompts is None else str(args.prompts),
        "everything": [args.points_per_side, args.least_iou, args.least_stability] if args.everything else None,
    }
    started, failed, masks = time.perf_counter(), 0, 0
    with LinesFile(args.output) as lines:
        done = _done(args.output, lines, settings)
        todo = [photo for photo in photos if photo.name not in done]
        with contextlib.ExitStack() as stack:
            decoder = stack.enter_context(open_for_photos(args)) if todo else None
            bar = stack.enter_context(progress_bar())
            for number, path in enumerate(todo):
                assert decoder is not None
                try:
                    photo, records = _segmented(args, path, prompts, decoder, _part_of(bar, number, len(todo), path.name))
                except (InputError, InferenceError) as error:
                    _log.error("%s: %s", path, " ".join(str(error).split()))
                    failed += 1
                    continue
                lines.append({**sa1b_data(photo, records), "settings": settings})
                masks += len(records)
        kept = f", {len(photos) - len(todo)} were there" if len(photos) > len(todo) else ""
        wrong = f", {failed} could not be done (named above)" if failed else ""
        print(
            f"{args.output}: {len(todo) - failed} photos, {masks} masks{kept}{wrong}, {time.perf_counter() - started:.1f} s",
            flush=True,
        )
    return 1 if failed else 0


def _check(args: argparse.Namespace) -> None:
    if args.everything == (args.prompts is not None):
        raise InputError("several photos or prompts: give either --everything or --prompts F.json")
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
    if args.output is None or args.output.suffix.lower() != ".jsonl":
        raise InputError("several photos or prompts go into a file of JSON lines: give --output F.jsonl")
    if args.checkpoint is None:
        raise InputError("no checkpoint: photos have to be embedded; give --checkpoint mobile_sam, standin, a .pth")


def _done(output: Path, lines: LinesFile, settings: dict[str, Any]) -> set[str]:
    """Names of the photos that earlier runs of the same command finished."""
    for line in lines.lines:
        if line.get("settings") != settings:
            raise InputError(f"{output} is of other settings ({line.get('settings')}); name another file, or remove it")
    return {str(line["image"]["file_name"]) for line in lines.lines}


def _segmented(
    args: argparse.Namespace, path: Path, prompts: PromptFile | None, decoder: OpenedForPhotos, told: Progress | None
) -> tuple[Photo, list[dict[str, Any]]]:
    image = read_image(path)
    photo = Photo(path.name, (image.shape[0], image.shape[1]))
    if prompts is None:
        return photo, generator_of(args, decoder.runner).generate_from_embedding(decoder.embed(path, image), photo.size, told)
    name = prompts.find(str(path), path.name)
    if name is None:
        raise InputError(f"{args.prompts} has no prompts of it; name it there, or move the photo away")
    for prompt in prompts.prompts[name]:
        clicks = [(x, y, label) for (x, y), label in zip(prompt.points, prompt.labels, strict=True)]
        check_inside(clicks, prompt.box, height=photo.size[0], width=photo.size[1])
    predictor = Predictor(decoder.runner)
    predictor.set_image_embedding(decoder.embed(path, image), photo.size)
    return photo, _prompted(predictor, prompts.prompts[name])


def _prompted(predictor: Predictor, prompts: Sequence[FilePrompt]) -> list[dict[str, Any]]:
    """The best mask of each prompt, in their order; prompts with and without a box go in calls of their own."""
    records: list[dict[str, Any]] = [{} for _ in prompts]
    for boxed in (False, True):
        rows = [row for row, prompt in enumerate(prompts) if (prompt.box is not None) == boxed]
        for start in range(0, len(rows), _PROMPTS_AT_ONCE):
            part = rows[start : start + _PROMPTS_AT_ONCE]
            masks, iou, _ = predictor.predict_batch(
                [np.array(prompts[row].points) if prompts[row].points else None for row in part],
                [np.array(prompts[row].labels) if prompts[row].points else None for row in part],
                np.array([prompts[row].box for row in part], np.float64) if boxed else None,
            )
            for row, found, scores in zip(part, masks, iou, strict=True):
                best = int(scores.argmax())
                prompt = prompts[row]
                records[row] = {
                    "segmentation": Runs.of(found[best]),
                    "predicted_iou": float(scores[best]),
                    "prompt": {"points": prompt.points, "labels": prompt.labels, "box": prompt.box},
                }
    return records


def _part_of(bar: Progress | None, number: int, count: int, name: str) -> Progress | None:
    if bar is None:
        return None
    tell: Callable[[float, str], None] = bar
    tell(number / count, name)
    return lambda fraction, phase: tell((number + fraction) / count, f"{name}: {phase}")
