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
each group of products the calibrator that keeps their masks nearest to FP32's; the ranges are then measured on all images.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from trt_sam._files import sha256_of
from trt_sam._lazy import require_all
from trt_sam.commands._calibration import (
    add_calibration_arguments,
    calibration_recipe,
    calibration_request,
    warn_of_coarse,
    warn_of_few,
)
from trt_sam.commands._options import (
    add_checkpoint_argument,
    add_graph_arguments,
    add_json_argument,
    check_images_given,
    checkpoint_of,
    write_json,
)
from trt_sam.commands._outputs import check_output_file
from trt_sam.errors import InputError
from trt_sam.progress import Stages

if TYPE_CHECKING:
    from calibrators.report import CalibrationReport

HELP = "checkpoint and embeddings to an INT8 or FP8 graph"

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
    check_images_given(args)
    request = calibration_request(args, recipe)
    with Stages({"load": 1, "data": 5, "calibrate": 14}) as stages, contextlib.ExitStack() as stack:
        stages.begin("load", f"loading {source}")
        require_all(_PACKAGES, "to calibrate")
        from calibrators.pipeline import quantize_decoder
        from trt_sam.model.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(source)
        feeds = stack.enter_context(request.open(checkpoint, stages.begin("data", f"reading {request.data}")))
        warn_of_few(feeds.num_images)
        progress = stages.begin("calibrate", f"calibrating on {feeds.num_images} images", phases=True)
        report = quantize_decoder(checkpoint, feeds, recipe.graph, recipe.quantization, args.output, progress=progress)
    if args.json:
        write_json(args.json, {"checkpoint": source, **report.to_dict(), "sha256": sha256_of(args.output)})
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
