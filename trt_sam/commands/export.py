"""Write a checkpoint's decoder as an ONNX graph, checked against PyTorch.

Example:
  trt-sam export --checkpoint standin --precision fp16 --output decoder.onnx
  trt-sam export --checkpoint mobile_sam --interface meta --output sam_decoder.onnx   (for samexporter, annotation tools, ...)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from trt_sam._files import sha256_of
from trt_sam._lazy import require_all
from trt_sam.commands._options import (
    add_checkpoint_argument,
    add_graph_arguments,
    add_json_argument,
    checkpoint_of,
    recipe_from,
    write_json,
)
from trt_sam.errors import InputError
from trt_sam.progress import Stages

HELP = "checkpoint to ONNX"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `export`."""
    add_checkpoint_argument(parser)
    add_graph_arguments(parser, target=True)
    parser.add_argument(
        "--interface",
        choices=("trt-sam", "meta"),
        default="trt-sam",
        help="meta: names, order and types of Meta's own ONNX export, for programs made for that one (default: %(default)s)",
    )
    parser.add_argument("--output", required=True, metavar="F.onnx", type=Path)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Export; 0 when the graph was written and matches PyTorch."""
    if args.interface == "meta":
        args.mask_input = args.full_resolution = True
    recipe = recipe_from(args, precision="fp32")
    if args.output.suffix != ".onnx":
        raise InputError(f"--output is {args.output}, must end in .onnx")
    source = checkpoint_of(args, recipe)
    with Stages({"load": 1, "export": 4}) as stages:
        stages.begin("load", f"loading {source}")
        require_all(("torch", "onnx", "onnxscript", "onnxruntime"), "to export a graph")
        from trt_sam.graph.export import export_decoder
        from trt_sam.model.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(source)
        stages.begin("export", f"exporting the decoder in {recipe.graph.precision} and running it beside PyTorch")
        report = export_decoder(
            checkpoint.decoder,
            args.output,
            recipe.graph,
            checkpoint_sha256=checkpoint.sha256,
            metas_interface=args.interface == "meta",
        )
    if args.json:
        write_json(args.json, {**report.to_dict(), "checkpoint": source, "sha256": sha256_of(args.output)})
    if args.json != "-":
        worst = max(row.error for row in report.parity)
        size = args.output.stat().st_size / 1e6
        print(
            f"{args.output}: {recipe.graph.precision}, target {recipe.graph.target}, {size:.1f} MB; "
            f"largest logit error against PyTorch {worst:.1e} (relative, ONNX Runtime on the CPU)"
        )
    return 0
