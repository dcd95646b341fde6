"""Write a checkpoint's decoder as an ONNX graph, checked against PyTorch; with --encoder, decoder and image encoder as a set.

Example:
  trt-sam export --checkpoint standin --precision fp16 --output decoder.onnx
  trt-sam export --checkpoint mobile_sam --interface meta --output sam_decoder.onnx   (for samexporter, annotation tools, ...)
  trt-sam export --checkpoint mobile_sam --encoder --decode-mask --output mobile_sam/

The set is a folder of graphs and a manifest, which take photographs in ONNX Runtime without torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path

from trt_sam._files import sha256_of
from trt_sam._lazy import require_all
from trt_sam.commands._encoder_set import write_encoder_set
from trt_sam.commands._options import (
    add_checkpoint_argument,
    add_graph_arguments,
    add_json_argument,
    checkpoint_of,
    recipe_from,
    write_json,
)
from trt_sam.commands._outputs import check_output_file, check_output_folder
from trt_sam.engine.manifest import MANIFEST_NAME, open_manifest
from trt_sam.errors import InputError, ManifestError
from trt_sam.graph.advice import graph_flags
from trt_sam.progress import Stages
from trt_sam.recipe import EXPORT_PRECISIONS, EngineRecipe

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
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="several images a call: image_embeddings [N, 256, 64, 64], and image_index says which a prompt is on; for "
        "ONNX Runtime (default: 1)",
    )
    parser.add_argument("--encoder", action="store_true", help="export the image encoder too; --output is then a folder")
    parser.add_argument(
        "--decode-mask", action="store_true", help="with --encoder: also the graph that refines an earlier mask"
    )
    parser.add_argument("--output", required=True, metavar="F.onnx|DIR", type=Path)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Export; 0 when the graph was written and matches PyTorch."""
    if args.encoder and args.interface == "meta":
        raise InputError("--interface meta is of a decoder alone; leave --encoder out")
    if args.interface == "meta":
        args.mask_input = args.full_resolution = True
    recipe = recipe_from(args, precision="fp32")
    _check_precision(args, recipe)
    if args.encoder:
        return _export_set(args, recipe)
    if args.decode_mask:
        raise InputError("--decode-mask writes a second graph, and only a set has two; give --encoder with it")
    if args.output.suffix != ".onnx":
        raise InputError(f"--output is {args.output}, must end in .onnx")
    check_output_file(args.output)
    check_output_file(args.json)
    source = checkpoint_of(args, recipe)
    with Stages({"load": 1, "export": 4}) as stages:
        stages.begin("load", f"loading {source}")
        require_all(("torch", "onnx", "onnxscript", "onnxruntime"), "to export a graph")
        from trt_sam.graph.export import export_decoder
        from trt_sam.model.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(source)
        progress = stages.begin("export", f"exporting the decoder in {recipe.graph.precision}", phases=True)
        report = export_decoder(
            checkpoint.decoder,
            args.output,
            recipe.graph,
            checkpoint_sha256=checkpoint.sha256,
            metas_interface=args.interface == "meta",
            progress=progress,
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


def _check_precision(args: argparse.Namespace, recipe: EngineRecipe) -> None:
    """Raise InputError for what needs calibration, before a checkpoint is loaded for it."""
    precision = recipe.graph.precision
    if precision in EXPORT_PRECISIONS:
        return
    source, output = args.checkpoint or recipe.checkpoint or "CHECKPOINT", str(args.output)
    calibrated = ["--photos", "PHOTOS", "--precision", precision, *graph_flags(dataclasses.asdict(recipe.graph))]
    words = ["trt-sam", "calibrate", "--checkpoint", source, *calibrated, "--output", output]
    instead = "with --encoder it is fp32 or fp16" if args.encoder else f"write it with {shlex.join(words)}"
    raise InputError(f"precision {precision} needs calibrated scales; {instead}")


def _export_set(args: argparse.Namespace, recipe: EngineRecipe) -> int:
    """Decoder, or decoders, and image encoder of one checkpoint into a folder."""
    if args.output.suffix == ".onnx":
        raise InputError(f"--output is {args.output}; with --encoder it is a folder, for several graphs")
    if recipe.graph.mask_input:
        raise InputError("with --encoder, --decode-mask adds the graph that takes a mask; leave --mask-input out")
    check_output_folder(args.output)
    _check_no_engines(args.output)
    check_output_file(args.json)
    source = checkpoint_of(args, recipe)
    with Stages({"load": 1, "export": 8}) as stages:
        manifest = write_encoder_set(source, recipe, args.output, stages, decode_mask=bool(args.decode_mask))
    if args.json:
        write_json(args.json, {"folder": str(args.output), **manifest.to_dict()})
    if args.json != "-":
        files = ", ".join(f"{graph.onnx.name} ({graph.onnx.size / 1e6:.1f} MB)" for graph in manifest.graphs)
        print(f"{args.output}: {files}, {MANIFEST_NAME}; {recipe.graph.precision}, each within its tolerance of PyTorch")
    return 0


def _check_no_engines(folder: Path) -> None:
    """Raise InputError where a set of graphs would take the place of engines: those may have been built elsewhere, for long."""
    try:
        manifest = open_manifest(folder, verify=False)
    except ManifestError as error:
        engines = sorted(path.name for path in folder.glob("*.engine"))
        # Engines without any manifest are no set, and stay where they are.
        if not engines or not (folder / MANIFEST_NAME).exists():
            return
        again = f"mend that set: {error}"
    else:
        engines = [graph.engine.name for graph in manifest.graphs if graph.engine is not None]
        if not engines:
            return
        again = f"build the set again with {manifest.command()}"
    raise InputError(
        f"{folder} holds a set with {', '.join(engines)}, which graphs alone would replace; name another --output, or {again}"
    )
