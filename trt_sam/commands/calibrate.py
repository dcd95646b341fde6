"""Calibrate a checkpoint on image embeddings and write an INT8 or FP8 graph for TensorRT: Q/DQ pairs, float16 elsewhere.

Example:
  trt-sam embed photos/ --checkpoint standin --output embeddings/
  trt-sam calibrate --checkpoint standin --embeddings embeddings/ --output int8.onnx
  trt-sam calibrate --checkpoint standin --photos photos/ --precision fp8 --output fp8.onnx
  trt-sam calibrate --checkpoint standin --embeddings embeddings/ --calibrator auto --tiers A,B --output auto.onnx

Prompts are drawn with a seed: clicks, boxes, several clicks, rows with absent points. Or they are yours, in the photos' pixels:
  {"images": {"cat.jpg": [{"points": [[420, 300]], "labels": [1]}, {"box": [80, 40, 600, 420]}]}}
or COCO annotations, whose boxes become box prompts. "auto" holds a quarter of the images back, eight at most, and takes for
each group of products the calibrator that keeps their masks nearest to FP32's.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._files import sha256_of
from trt_sam._lazy import require
from trt_sam.commands._options import (
    add_checkpoint_argument,
    add_graph_arguments,
    add_json_argument,
    checkpoint_of,
    recipe_from,
    write_json,
)
from trt_sam.commands._outputs import check_output_file
from trt_sam.errors import InputError
from trt_sam.imaging.photos import list_images
from trt_sam.progress import TerminalBar
from trt_sam.recipe import CALIBRATORS, TIERS, EngineRecipe

if TYPE_CHECKING:
    from calibrators.feeds import CalibrationFeeds
    from calibrators.report import CalibrationReport
    from trt_sam.model.checkpoint import Checkpoint

HELP = "checkpoint and embeddings to an INT8 or FP8 graph"

_FEW_IMAGES = 8
"""Seen on the stand-in (entropy, tier A, 24 prompts of other scenes): mean IoU .95 from 2 images, .98 from 3, .994 from 8."""
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `calibrate`."""
    add_checkpoint_argument(parser)
    add_calibration_arguments(parser, required=True)
    add_graph_arguments(parser, target=False)
    parser.add_argument("--output", required=True, metavar="F.onnx", type=Path)
    add_json_argument(parser)


def add_calibration_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Declare what calibration takes: its data, and how ranges are chosen."""
    data = parser.add_mutually_exclusive_group(required=required)
    data.add_argument("--embeddings", metavar="DIR", type=Path, help="folder of trt-sam embed")
    data.add_argument("--photos", metavar="DIR", type=Path, help="folder of images, embedded on the way")
    parser.add_argument("--prompts", metavar="FILE.json", type=Path, help="your own prompts, or COCO annotations")
    parser.add_argument("--prompts-per-image", metavar="N", type=int, help="drawn prompts of each image (default 16)")
    parser.add_argument("--seed", metavar="N", type=int, help="of drawn prompts (default 0)")
    parser.add_argument("--calibrator", choices=CALIBRATORS, help="how ranges are chosen (default: entropy; max for fp8)")
    parser.add_argument(
        "--tiers", metavar="LIST", help=f"products to quantize, of {','.join(TIERS)} (default A: the image side)"
    )


def run(args: argparse.Namespace) -> int:
    """Calibrate; 0 when the graph was written."""
    if args.output.suffix != ".onnx":
        raise InputError(f"--output is {args.output}, must end in .onnx")
    recipe = calibration_recipe(args)
    source = checkpoint_of(args, recipe)
    for path in (args.output, args.json):
        check_output_file(path)
    for package in _PACKAGES:
        require(package, "to calibrate")
    from calibrators.pipeline import quantize_decoder
    from trt_sam.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(source)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(TerminalBar(sys.stderr)) if sys.stderr.isatty() else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        feeds = open_feeds(args, recipe, checkpoint, folder, bar)
        report = quantize_decoder(checkpoint, feeds, recipe.graph, recipe.quantization, args.output, progress=bar)
    if args.json:
        write_json(args.json, {"checkpoint": source, **report.to_dict(), "sha256": sha256_of(args.output)})
    if report.feeds["images"] < _FEW_IMAGES:
        print(f"trt-sam: warning: {report.feeds['images']} images are few; give {_FEW_IMAGES} or more", file=sys.stderr)
    warn_of_coarse(report)
    if args.json != "-":
        print(_summary(report, len(feeds.skipped)))
    return 0


def warn_of_coarse(report: CalibrationReport) -> None:
    """A line on stderr for each tensor that far values leave too few steps."""
    for line in report.coarse:
        print(f"trt-sam: warning: {line}", file=sys.stderr)


def calibration_recipe(args: argparse.Namespace) -> EngineRecipe:
    """The recipe that the flags describe, its precision int8 or fp8: int8 where neither a flag nor the recipe says which.

    Raises:
        RecipeError: an impossible value.
        InputError: another precision was asked for.
    """
    recipe = recipe_from(args, precision="int8", target="gpu")
    if recipe.graph.precision not in ("int8", "fp8"):
        if args.precision is not None:
            raise InputError(
                f"--precision is {args.precision}, calibrate writes int8 or fp8; trt-sam export writes {args.precision}"
            )
        recipe = dataclasses.replace(recipe, graph=dataclasses.replace(recipe.graph, precision="int8"))
    changes: dict[str, Any] = {
        name: value for name in ("calibrator", "prompts_per_image", "seed") if (value := getattr(args, name)) is not None
    }
    if args.tiers is not None:
        changes["tiers"] = tuple(part.strip() for part in args.tiers.split(","))
    if recipe.graph.precision == "fp8" and args.recipe is None:
        # FP8 has finer steps for small values, so clipping large ones gains nothing.
        changes.setdefault("calibrator", "max")
    return dataclasses.replace(recipe, quantization=dataclasses.replace(recipe.quantization, **changes))


def open_feeds(
    args: argparse.Namespace, recipe: EngineRecipe, checkpoint: Checkpoint, folder: Path, bar: TerminalBar | None = None
) -> CalibrationFeeds:
    """The feeds of `--embeddings`, or of `--photos` embedded into `folder`, which must outlive them.

    Raises:
        InputError: the data cannot be used; see `calibrators.feeds.calibration_feeds`.
    """
    from calibrators.feeds import FeedOptions, calibration_feeds
    from calibrators.sources import write_embeddings

    options = FeedOptions(
        prompts_per_image=recipe.quantization.prompts_per_image,
        seed=recipe.quantization.seed,
        mask_input=recipe.graph.mask_input,
    )

    def progress(phase: str, done: int, total: int) -> None:
        if bar is not None:
            bar(done / total, phase)

    encoder_sha256 = ""
    if args.photos is not None:
        photos = list_images([args.photos])
        write_embeddings(photos, checkpoint.image_encoder(), folder, progress=progress)
    elif checkpoint.has_image_encoder:
        # Of an encoder that cannot be run here the hash is unknown.
        encoder_sha256 = checkpoint.image_encoder().sha256
    source = folder if args.photos is not None else args.embeddings
    return calibration_feeds(source, options, prompts=args.prompts, encoder_sha256=encoder_sha256, progress=progress)


def _summary(report: CalibrationReport, skipped: int) -> str:
    used = sorted({row.calibrator for row in report.tensors})
    without = f" ({skipped} more without prompts)" if skipped else ""
    left_out = f"; float16 stay {', '.join(report.left_out)}" if report.left_out else ""
    return (
        f"{report.path}: {report.options.precision}, {len(report.tensors)} tensors by {', '.join(used)}, "
        f"{report.quantized_share:.0%} of multiply-adds{left_out}; {report.feeds['images']} images{without}, "
        f"{report.feeds['prompts']} prompts; masks against FP32 on {report.agreement.prompts} of them: {report.agreement}"
    )
