"""`segment --everything`: all masks of a photo, in one of the formats, with a picture to look at."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam._files import atomic_path
from trt_sam.commands._decoder import keep_for_the_next, open_decoder
from trt_sam.commands._options import write_json
from trt_sam.commands._outputs import check_distinct, check_output_file, check_picture_suffix, picture_bytes
from trt_sam.errors import InputError
from trt_sam.formats.pictures import index_picture, palette
from trt_sam.formats.records import Photo, runs_of
from trt_sam.formats.save import FOLDER, FORMATS, check_new_folder, encoded, format_of, save_masks, suffix_of
from trt_sam.imaging.overlay import draw_regions
from trt_sam.imaging.photos import read_image
from trt_sam.progress import Progress, Stages

if TYPE_CHECKING:
    from trt_sam.cluster import Everything

__all__ = ["add_everything_arguments", "check_flags_of_everything", "everything_of", "progress_bar", "run_everything"]

_SETTINGS: tuple[tuple[tuple[str, ...], type, str, str], ...] = (
    (("--points-per-side",), int, "N", "N x N clicks (default: 32)"),
    (("--point-grids",), Path, "F.json", "clicks of your own instead: a list of [x, y] from 0 to 1 for each layer"),
    (("--points-per-batch",), int, "N", "most clicks of one call of the decoder (default: 64)"),
    (("--least-iou", "--pred-iou-thresh"), float, "X", "the decoder's own estimate of a mask (default: 0.88)"),
    (("--least-stability", "--stability-score-thresh"), float, "X", "how steady a mask's edge is (default: 0.95)"),
    (("--stability-score-offset",), float, "X", "logits by which the edge is moved to see that (default: 1)"),
    (("--box-nms-thresh",), float, "X", "of boxes with a larger IoU the better mask stays (default: 0.7)"),
    (("--crop-n-layers",), int, "N", "also search N layers of crops, 4^n in layer n, for small objects (default: 0)"),
    (("--crop-nms-thresh",), float, "X", "as --box-nms-thresh, between crops (default: 0.7)"),
    (("--crop-overlap-ratio",), float, "X", "of neighbouring crops, of the short side (default: 0.341)"),
    (("--crop-n-points-downscale-factor",), int, "N", "clicks a side are divided by N in each layer (default: 1)"),
    (("--min-mask-region-area",), int, "N", "holes and islands of fewer pixels go; needs SciPy (default: 0)"),
)
"""Flags, the first of which names the setting in `cluster.Everything`; type, placeholder and help."""


def add_everything_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--everything`, what it takes, and `--format`."""
    parser.add_argument("--everything", action="store_true", help="all masks of the image, instead of a prompt")
    group = parser.add_argument_group("with --everything", "the settings of Meta's generator, by its names too")
    for names, kind, metavar, text in _SETTINGS:
        group.add_argument(*names, type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--format", choices=FORMATS, help="of --output, where its suffix (.json, .png, .npz, or none) does not say it"
    )


def check_flags_of_everything(args: argparse.Namespace) -> None:
    """Raise InputError where a flag goes with `--everything` and that is not given."""
    for name in given_settings(args):
        raise InputError(f"--{name.replace('_', '-')} goes with --everything; add that, or leave it out")


def given_settings(args: argparse.Namespace) -> dict[str, int | float | Path]:
    """The settings that flags gave, by their names in `cluster.Everything`."""
    names = [flags[0][2:].replace("-", "_") for flags, *_ in _SETTINGS]
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def run_everything(args: argparse.Namespace) -> int:
    """Find and write all masks; 0 when every file was written, also where there is no mask."""
    started = time.perf_counter()
    output, overlay, chosen = _outputs(args)
    task = everything_of(args)
    image = read_image(args.image)
    photo = Photo(args.image.name, (image.shape[0], image.shape[1]))
    with open_decoder(args, image, num_prompts=task.num_prompts) as decoder:
        with progress_bar() as progress:
            records = task.records(decoder.runner, image, decoder.embedding, decoder.embed, progress)
        report = {
            "image": str(args.image),
            "original_size": list(photo.size),
            "checkpoint": args.checkpoint,
            "onnx": None if args.onnx is None else str(args.onnx),
            "embedding": None if args.embedding is None else str(args.embedding),
            "executed": decoder.executed,
            "from_cache": list(decoder.from_cache),
            "masks": len(records),
            "format": chosen,
            "output": str(output),
            "overlay": None if overlay is None else str(overlay),
            "seconds": round(time.perf_counter() - started, 3),
        }
        _write(args, output, overlay, chosen, image, photo, records, report)
        if args.json != "-":
            found = f"{len(records)} masks" if records else "no mask found; lower --least-iou or --least-stability"
            print(f"{output}: {found}; decoder in {decoder.executed}, {report['seconds']:.1f} s")
            if overlay is not None:
                print(f"{overlay}: the masks over the image")
            sys.stdout.flush()
        keep_for_the_next(decoder)
    return 0


def everything_of(args: argparse.Namespace) -> Everything:
    """What the flags of `--everything` ask for; raises InputError for an impossible setting, or crops without an encoder."""
    from trt_sam.cluster import Everything

    given: dict[str, Any] = given_settings(args)
    if args.point_grids is not None:
        if args.points_per_side is not None:
            raise InputError("--points-per-side came with --point-grids; give one of them")
        from trt_sam.masks.settings import read_point_grids

        given |= {"points_per_side": None, "point_grids": read_point_grids(args.point_grids)}
    task = dataclasses.replace(Everything(), **given)
    if task.crop_n_layers and args.checkpoint is None and args.set is None:
        raise InputError("--crop-n-layers embeds crops, and there is no image encoder; give --checkpoint or --set")
    return task


@contextlib.contextmanager
def progress_bar(doing: str = "looking for everything in the picture") -> Iterator[Progress]:
    """Who is told how far it is: what it is `doing` is said in a line, on a terminal by a bar."""
    with Stages({"everything": 1}) as stages:
        yield stages.begin("everything", doing)


def _outputs(args: argparse.Namespace) -> tuple[Path, Path | None, str]:
    """Names of masks and picture and the format, once every fault that can be seen before the work was looked for."""
    for flag, given in (("--point", args.point), ("--box", args.box), ("--all-masks", args.all_masks)):
        if given:
            raise InputError(f"{flag} came with --everything; give one of them")
    output, overlay = args.output, args.overlay
    if output is None:
        output = args.image.with_name(f"{args.image.stem}.masks{suffix_of(args.format or 'json')}")
        overlay = overlay or args.image.with_name(f"{args.image.stem}.overlay.png")
    chosen = format_of(output, args.format)
    check_picture_suffix("--overlay", overlay)
    report = Path(args.json) if args.json not in (None, "-") else None
    check_distinct({"IMAGE": args.image, "--output": output, "--overlay": overlay, "--json": report})
    # The work takes minutes: what cannot be written is told before it.
    for path in (None if chosen == FOLDER else output, overlay, report):
        check_output_file(path)
    if chosen == FOLDER:
        check_new_folder(output)
    return output, overlay, chosen


def _write(
    args: argparse.Namespace,
    output: Path,
    overlay: Path | None,
    chosen: str,
    image: npt.NDArray[np.uint8],
    photo: Photo,
    records: list[dict[str, Any]],
    report: dict[str, Any],
) -> None:
    """Write masks, picture and report: all of them, or on failure none."""
    with ExitStack() as stack:
        if overlay is not None:
            runs = [runs_of(record["segmentation"], photo.size) for record in records]
            drawn = draw_regions(image, index_picture(runs, photo.size), palette(len(runs) + 1))
            stack.enter_context(atomic_path(overlay)).write_bytes(picture_bytes(drawn, overlay.suffix.lower()))
        if chosen == FOLDER:
            save_masks(output, photo, records, chosen)
        else:
            stack.enter_context(atomic_path(output)).write_bytes(encoded(photo, records, chosen))
        if args.json:
            write_json(args.json, report)
