"""Calibrate a checkpoint on image embeddings and write an INT8 or FP8 graph for TensorRT: Q/DQ pairs, float16 elsewhere.

Example:
  trt-sam embed photos/ --checkpoint standin --output embeddings/
  trt-sam calibrate --checkpoint standin --embeddings embeddings/ --output int8.onnx
  trt-sam calibrate --checkpoint standin --photos photos/ --precision fp8 --output fp8.onnx
  trt-sam calibrate --checkpoint standin --embeddings embeddings/ --calibrator auto --tiers A,B --output auto.onnx

Prompts are drawn with a seed: clicks anywhere, and from the masks that FP32 gives there boxes, further clicks and refinements
(--mask-input), places of an automatic grid, rows with absent points. Or they are yours, in the photos' pixels:
  {"images": {"cat.jpg": [{"points": [[420, 300]], "labels": [1]}, {"box": [80, 40, 600, 420]}]}}
or COCO annotations, whose boxes become box prompts. "auto" holds a quarter of the images back, eight at most, and takes for
each group of products the calibrator that keeps their masks nearest to FP32's.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trt_sam._files import sha256_of
from trt_sam._lazy import require_all
from trt_sam.commands._calibration import (
    add_calibration_arguments,
    calibration_recipe,
    calibration_request,
    warn_of_coarse,
)
from trt_sam.commands._options import (
    add_checkpoint_argument,
    add_graph_arguments,
    add_json_argument,
    checkpoint_of,
    write_json,
)
from trt_sam.commands._outputs import check_output_file
from trt_sam.errors import InputError
from trt_sam.progress import TerminalBar

if TYPE_CHECKING:
    from calibrators.report import CalibrationReport

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


def run(args: argparse.Namespace) -> int:
    """Calibrate; 0 when the graph was written."""
    if args.output.suffix != ".onnx":
        raise InputError(f"--output is {args.output}, must end in .onnx")
    recipe = calibration_recipe(args)
    source = checkpoint_of(args, recipe)
    for path in (args.output, args.json):
        check_output_file(path)
    require_all(_PACKAGES, "to calibrate")
    from calibrators.pipeline import quantize_decoder
    from trt_sam.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(source)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(TerminalBar(sys.stderr)) if sys.stderr.isatty() else None
        feeds = stack.enter_context(calibration_request(args, recipe).open(checkpoint, bar))
        report = quantize_decoder(checkpoint, feeds, recipe.graph, recipe.quantization, args.output, progress=bar)
    if args.json:
        write_json(args.json, {"checkpoint": source, **report.to_dict(), "sha256": sha256_of(args.output)})
    if report.feeds["images"] < _FEW_IMAGES:
        print(f"trt-sam: warning: {report.feeds['images']} images are few; give {_FEW_IMAGES} or more", file=sys.stderr)
    warn_of_coarse(report)
    if args.json != "-":
        print(_summary(report, len(feeds.skipped)))
    return 0


def _summary(report: CalibrationReport, skipped: int) -> str:
    used = sorted({row.calibrator for row in report.tensors})
    without = f" ({skipped} more without prompts)" if skipped else ""
    left_out = f"; float16 stay {', '.join(report.left_out)}" if report.left_out else ""
    return (
        f"{report.path}: {report.options.precision}, {len(report.tensors)} tensors by {', '.join(used)}, "
        f"{report.quantized_share:.0%} of multiply-adds{left_out}; {report.feeds['images']} images{without}, "
        f"{report.feeds['prompts']} prompts; masks against FP32 on {report.agreement.prompts} of them: {report.agreement}"
    )
