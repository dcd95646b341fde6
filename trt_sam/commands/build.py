"""Build a TensorRT engine from a checkpoint or from a graph that `trt-sam export --target gpu` wrote.

Writes decoder.onnx, decoder.engine and manifest.json into the output folder. TensorRT-RTX builds without a GPU.
--precision int8 and fp8 calibrate first, on embeddings or photos; finished steps are kept in the folder calibration of the
output and not done twice.

Example:
  trt-sam build --checkpoint standin --precision fp16 --compute-capability 8.9,12.0 --output engines/built/standin
  trt-sam build --checkpoint standin --precision int8 --photos photos/ --output engines/built/standin_int8
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trt_sam._build_callbacks import TerminalBar
from trt_sam._implicit import check_method
from trt_sam._lazy import require
from trt_sam.commands._options import add_graph_arguments, add_json_argument, checkpoint_of, recipe_from, write_json
from trt_sam.commands._quantized import calibration_feeds_of, finished_set, quantized_graph
from trt_sam.commands.calibrate import add_calibration_arguments, calibration_recipe
from trt_sam.engine_set import BuiltSet, build_set, copy_graph
from trt_sam.errors import InputError
from trt_sam.graph import check_decoder, read_graph
from trt_sam.manifest import MANIFEST_NAME, Manifest
from trt_sam.recipe import BACKENDS, EXPORT_PRECISIONS, EngineRecipe, GraphOptions
from trt_sam.tensorrt import Flavour, choose_flavour

HELP = "checkpoint or ONNX to TensorRT engine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `build`."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", metavar="C", help="standin, standin-hard, a .pth, a Hugging Face folder or id")
    source.add_argument("--onnx", metavar="F", help="a graph of trt-sam export; needs no torch")
    add_graph_arguments(parser, target=False)
    add_calibration_arguments(parser, required=False)
    parser.add_argument("--backend", choices=BACKENDS, help="which TensorRT (default: TensorRT beside a GPU, else RTX)")
    add_capability_argument(parser)
    parser.add_argument("--timing-cache", metavar="F", type=Path, help="kernel timings to keep (TensorRT 10 and 11)")
    parser.add_argument("--output", required=True, metavar="DIR", type=Path)
    add_json_argument(parser)


def add_capability_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--compute-capability`."""
    parser.add_argument(
        "--compute-capability", metavar="LIST", help='GPUs to build for, as "8.9,12.0" (RTX; default: all it supports from 8.0)'
    )


def capabilities_from(text: str) -> tuple[str, ...]:
    """Split "8.9,12.0"; the recipe checks each."""
    return tuple(part.strip() for part in text.split(","))


def run(args: argparse.Namespace) -> int:
    """Build; 0 when the set is whole."""
    recipe = recipe_from(args, precision="fp16", target="gpu")
    calibrates = not args.onnx and recipe.graph.precision not in EXPORT_PRECISIONS
    _check_data(args, recipe, calibrates=calibrates)
    if calibrates:
        recipe = calibration_recipe(args)
    changes: dict[str, Any] = {}
    if args.backend:
        changes["backend"] = args.backend
    if args.compute_capability is not None:
        changes["compute_capabilities"] = capabilities_from(args.compute_capability)
    recipe = dataclasses.replace(recipe, **changes)
    flavour = choose_flavour(recipe.backend)
    for value in recipe.compute_capabilities:
        flavour.compute_capability(value)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(TerminalBar(sys.stderr)) if sys.stderr.isatty() else None
        extra: dict[str, Any] = {}
        if args.onnx:
            write_graph = _from_onnx(args, recipe)
        elif calibrates and recipe.quantization.method == "implicit":
            write_graph, extra = _implicit(args, recipe, flavour, bar, stack)
        elif calibrates:
            graph = _calibrated(args, recipe, bar)
            if (manifest := finished_set(args.output, graph, recipe, flavour)) is not None:
                _report(args, manifest, f"{args.output}: built before from the same graph, nothing to do")
                return 0
            write_graph = copy_graph(graph)
        else:
            write_graph = _from_checkpoint(checkpoint_of(args, recipe), recipe)
        built = build_set(
            write_graph, recipe, args.output, flavour=flavour, progress=bar, timing_cache=args.timing_cache, **extra
        )
    for warning in built.build.warnings:
        print(f"trt-sam: warning: {flavour.title}: {warning}", file=sys.stderr)
    _report(args, built.manifest, _summary(built, flavour.title))
    return 0


def _check_data(args: argparse.Namespace, recipe: EngineRecipe, *, calibrates: bool) -> None:
    """Raise InputError where calibration data are missing, or given and of no use."""
    has_data = args.embeddings is not None or args.photos is not None
    if calibrates and not has_data:
        raise InputError(f"precision {recipe.graph.precision} needs calibration data: give --embeddings DIR or --photos DIR")
    if not calibrates and has_data:
        what = "--onnx has its types already" if args.onnx else f"precision {recipe.graph.precision} is not calibrated"
        raise InputError(f"{what}, so --embeddings and --photos are of no use; leave them out, or give --precision int8 or fp8")


def _report(args: argparse.Namespace, manifest: Manifest, summary: str) -> None:
    if args.json:
        write_json(args.json, {"folder": str(args.output), **manifest.to_dict()})
    if args.json != "-":
        print(summary)


def _calibrated(args: argparse.Namespace, recipe: EngineRecipe, bar: TerminalBar | None) -> Path:
    source = checkpoint_of(args, recipe)
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        require(package, "to calibrate")
    from trt_sam.model.checkpoint import load_checkpoint

    path, was_there = quantized_graph(args, load_checkpoint(source), recipe, bar)
    if was_there:
        print(f"trt-sam: calibrated before from the same data: {path}", file=sys.stderr)
    return path


def _from_onnx(args: argparse.Namespace, recipe: EngineRecipe) -> Callable[[Path], Any]:
    """Copy the graph; raise InputError where a flag or a recipe wants what the graph is not."""
    has = check_decoder(read_graph(args.onnx))
    for field in dataclasses.fields(GraphOptions):
        wanted, seen = getattr(recipe.graph, field.name), getattr(has, field.name)
        asked = args.recipe or getattr(args, field.name, None) is not None or field.name == "target"
        if asked and wanted != seen:
            raise InputError(
                f"{args.onnx} was exported with {field.name} = {seen!r}, not {wanted!r}, and building cannot change that; "
                "export it again, or leave the flag or recipe out"
            )
    return copy_graph(args.onnx)


def _from_checkpoint(source: str, recipe: EngineRecipe) -> Callable[[Path], Any]:
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        require(package, "to export a graph; build --onnx needs none of them but onnx")
    from trt_sam.export import export_decoder
    from trt_sam.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(source)
    return lambda path: export_decoder(checkpoint.decoder, path, recipe.graph, checkpoint_sha256=checkpoint.sha256)


def _implicit(
    args: argparse.Namespace, recipe: EngineRecipe, flavour: Flavour, bar: TerminalBar | None, stack: contextlib.ExitStack
) -> tuple[Callable[[Path], Any], dict[str, Any]]:
    """The float32 graph and the calibrator for TensorRT 10's implicit INT8; the feeds live as long as `stack`."""
    if recipe.graph.precision != "int8":
        raise InputError(
            f'quantization.method = "implicit" is int8 alone, precision is {recipe.graph.precision}; use "explicit"'
        )
    if not flavour.has_implicit_int8:
        check_method(recipe, None, flavour)
    source = checkpoint_of(args, recipe)
    for package in ("torch", "onnx", "onnxscript", "onnxruntime", "pycuda"):
        require(package, "to calibrate with TensorRT 10")
    from calibrators.implicit import ImplicitCalibration
    from trt_sam.model.checkpoint import load_checkpoint

    feeds = stack.enter_context(calibration_feeds_of(args, load_checkpoint(source), recipe, bar))
    algorithm = {"entropy": "entropy", "max": "minmax"}.get(recipe.quantization.calibrator)
    if algorithm is None:
        raise InputError(
            f'calibrator is {recipe.quantization.calibrator!r}; with quantization.method = "implicit" it is entropy or max'
        )
    plain = dataclasses.replace(recipe, graph=dataclasses.replace(recipe.graph, precision="fp32"))
    calibrator = ImplicitCalibration(feeds, algorithm=algorithm)
    return _from_checkpoint(source, plain), {"make_calibrator": calibrator, "calibration": feeds.fingerprint}


def _summary(built: BuiltSet, title: str) -> str:
    graph = built.manifest.graphs[0]
    targets = ", ".join(built.build.compute_capabilities) or "all that RTX supports from 8.0"
    lines = [
        f"{built.manifest.folder}: {graph.onnx.name}, {graph.engine.name}, {MANIFEST_NAME}",
        f"  {graph.options.precision}, {title}, compute capability {targets}, built in {built.build.seconds:.1f} s",
        f"  engine {graph.engine.size / 1e6:.1f} MB, graph {graph.onnx.size / 1e6:.1f} MB",
    ]
    for number, summary in enumerate(built.build.kernels, start=1):
        lines.append(
            f"  profile {number}: {summary.kernels} kernels, {summary.matrix_products} matrix products, "
            f"{summary.fused_attentions} fused attentions"
        )
    return "\n".join(lines)
