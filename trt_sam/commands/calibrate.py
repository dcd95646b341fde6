"""Calibrate a checkpoint on image embeddings and write an INT8 or FP8 graph for TensorRT: Q/DQ pairs, float16 elsewhere.

Example:
  trt-sam embed photos/ --checkpoint standin --output embeddings/
  trt-sam calibrate --checkpoint standin --embeddings embeddings/ --output int8.onnx
  trt-sam calibrate --checkpoint standin --photos photos/ --precision fp8 --output fp8.onnx
  trt-sam calibrate --checkpoint standin --embeddings embeddings/ --calibrator auto --tiers A,B --output auto.onnx
  trt-sam calibrate --checkpoint mobile_sam --encoder --photos photos/ --output encode_int8.onnx

Prompts are drawn with a seed: clicks anywhere, and from the masks that FP32 gives there boxes, further clicks and refinements
(--mask-input), places of an automatic grid, rows with absent points. Or they are yours, in the photos' pixels:
  {"images": {"cat.jpg": [{"points": [[420, 300]], "labels": [1]}, {"box": [80, 40, 600, 420]}]}}
or COCO annotations, whose boxes become box prompts. "auto" holds a quarter of the images back, eight at most, and takes for
each group of products the calibrator that keeps their masks nearest to FP32's; the ranges are then measured on all images.
--encoder quantizes the image encoder instead, for `build --encoder-onnx`: its linear layers in INT8, by the largest values or
another --calibrator, judged by the masks that the FP32 decoder makes of its embeddings.
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
    add_keep_argument,
    calibration_recipe,
    calibration_request,
    check_encoder_flags,
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
from trt_sam.progress import Stages, counted

if TYPE_CHECKING:
    from calibrators.report import CalibrationReport
    from trt_sam.recipe import QuantizationOptions

HELP = "checkpoint and embeddings to an INT8 or FP8 graph"

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `calibrate`."""
    add_checkpoint_argument(parser)
    add_calibration_arguments(parser, required=True)
    add_graph_arguments(parser, target=False)
    parser.add_argument("--encoder", action="store_true", help="quantize the image encoder, on --photos, and not the decoder")
    add_keep_argument(parser)
    parser.add_argument("--output", required=True, metavar="F.onnx", type=Path)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate; 0 when the graph was written."""
    if args.output.suffix != ".onnx":
        raise InputError(f"--output is {args.output}, must end in .onnx")
    if args.encoder:
        check_encoder_flags(args)
    recipe = calibration_recipe(args, encoder=args.encoder)
    source = checkpoint_of(args, recipe)
    for path in (args.output, args.json):
        check_output_file(path)
    check_images_given(args)
    if args.encoder:
        return _run_encoder(args, source, recipe.quantization)
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


def _run_encoder(args: argparse.Namespace, source: str, quantization: QuantizationOptions) -> int:
    with Stages({"load": 1, "photos": 1, "calibrate": 18}) as stages:
        stages.begin("load", f"loading {source}")
        require_all(_PACKAGES, "to calibrate")
        from calibrators.encoder_pipeline import quantize_encoder
        from calibrators.pictures import picture_feeds
        from trt_sam.model.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(source)
        feeds = picture_feeds(args.photos, counted(stages.begin("photos", f"reading {args.photos}")))
        warn_of_few(feeds.num_images)
        progress = stages.begin("calibrate", f"calibrating the encoder on {feeds.num_images} photos", phases=True)
        report = quantize_encoder(checkpoint, feeds, args.output, quantization=quantization, progress=progress)
    if args.json:
        write_json(args.json, {"checkpoint": source, **report.to_dict(), "sha256": sha256_of(args.output)})
    warn_of_coarse(report)
    if args.json != "-":
        print(_summary(report, 0))
    return 0


def _summary(report: CalibrationReport, skipped: int) -> str:
    used = sorted({row.calibrator for row in report.tensors})
    without = f" ({skipped} more without prompts)" if skipped else ""
    left_out = f"; float16 stay {', '.join(report.left_out)}" if report.left_out else ""
    prompts = report.feeds["prompts"]
    given = f", {prompts} prompts" if prompts else ""
    judged = f"{report.agreement.prompts} of them" if prompts else f"{report.agreement.prompts} prompts on them"
    return (
        f"{report.path}: {report.options.precision}, {len(report.tensors)} tensors by {', '.join(used)}, "
        f"{report.quantized_share:.0%} of multiply-adds{left_out}; {report.feeds['images']} images{without}{given}; "
        f"masks against FP32 on {judged}: {report.agreement}"
    )
