"""Where `build` gets its graphs from: a checkpoint, a graph of before, or a calibration."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._lazy import require_all
from trt_sam.commands._calibration import calibration_request, warn_of_few
from trt_sam.commands._options import checkpoint_of
from trt_sam.commands._quantized import EMBEDDINGS, STEPS, Quantized, quantized_graph, shipped_graph
from trt_sam.engine.engine_set import GraphSource, copy_graph
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.implicit import check_method
from trt_sam.errors import InputError
from trt_sam.graph.advice import graph_flags
from trt_sam.graph.metadata import check_decoder, read_graph
from trt_sam.progress import Stages
from trt_sam.recipe import EXPORT_PRECISIONS, EngineRecipe, GraphOptions

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

_log = logging.getLogger(__name__)


def graph_recipes(recipe: EngineRecipe) -> list[EngineRecipe]:
    """A recipe for each graph of the set: alike but for their `mask_input`."""
    if not recipe.decode_mask:
        return [recipe]
    return [recipe, dataclasses.replace(recipe, graph=dataclasses.replace(recipe.graph, mask_input=True))]


def calibrated_graphs(args: argparse.Namespace, recipe: EngineRecipe, stages: Stages) -> tuple[Checkpoint, list[Quantized]]:
    """The checkpoint, and the quantized graphs: each calibrated on its own prompts, or by the ranges that the package has."""
    from calibrators.shipped import shipped_ranges

    checkpoint = _load(args, recipe, stages, "to calibrate")
    steps = args.output / STEPS
    ranges = None if has_data(args) else shipped_ranges(checkpoint)
    if ranges is None and not has_data(args):
        raise needs_data(recipe)
    graphs = []
    for each in graph_recipes(recipe):
        if ranges is not None:
            line = f"quantizing by the ranges that come with the package for {ranges.checkpoint}"
            stages.begin(f"calibrate{' mask' if each.graph.mask_input else ''}", line)
            graphs.append(shipped_graph(ranges, checkpoint, each, steps))
            continue
        request = calibration_request(args, each, cache=steps / EMBEDDINGS)
        graphs.append(quantized_graph(request, checkpoint, each, steps, stages))
        if graphs[-1].was_there:
            _log.info("calibrated before from the same data: %s", graphs[-1].path)
    return checkpoint, graphs


def onnx_source(args: argparse.Namespace, recipe: EngineRecipe) -> GraphSource:
    """Copy the graph; raise InputError where a flag or a recipe wants what the graph is not."""
    has = check_decoder(read_graph(args.onnx))
    if has.target != "gpu":
        flags = graph_flags(dataclasses.asdict(dataclasses.replace(has, images=1)))
        how = ["--precision", "fp16", "--target", "gpu"]
        command = ["trt-sam", "export", "--checkpoint", "CHECKPOINT", *how, *flags, "--output", "GPU.onnx"]
        raise InputError(
            f"{args.onnx} was exported with target = {has.target!r}, and TensorRT takes the gpu form: write that one with "
            f"{shlex.join(command)}, or give --checkpoint instead of --onnx"
            f"{', and --encoder instead of --encoder-onnx' if args.encoder_onnx else ''}"
        )
    for field in dataclasses.fields(GraphOptions):
        wanted, seen = getattr(recipe.graph, field.name), getattr(has, field.name)
        typed = getattr(args, field.name, None) is not None
        name = f"--{field.name.replace('_', '-')}" if typed else field.name
        if (args.recipe or typed) and wanted != seen:
            raise InputError(
                f"{args.onnx} was exported with {name} = {seen!r}, not {wanted!r}, and building cannot change that; "
                "export it again, or leave the flag or recipe out"
            )
    return GraphSource(copy_graph(args.onnx))


def exported_sources(args: argparse.Namespace, recipe: EngineRecipe, stages: Stages) -> list[GraphSource]:
    checkpoint = _load(args, recipe, stages, "to export a graph; build --onnx needs none of them but onnx")
    return [_exported(checkpoint, each.graph, stages) for each in graph_recipes(recipe)]


def _load(args: argparse.Namespace, recipe: EngineRecipe, stages: Stages, why: str, *more: str) -> Checkpoint:
    source = checkpoint_of(args, recipe)
    stages.begin("load", f"loading {source}")
    require_all(("torch", "onnx", "onnxscript", "onnxruntime", *more), why)
    from trt_sam.model.checkpoint import load_checkpoint

    return load_checkpoint(source)


def wants_encoder(args: argparse.Namespace) -> bool:
    """Whether the set gets an image encoder."""
    return bool(args.encoder or args.encoder_onnx)


def encoder_source(args: argparse.Namespace, recipe: EngineRecipe, stages: Stages) -> GraphSource:
    """The graph of the image encoder: the given one, or float16 beside a quantized decoder, else of the decoder's precision."""
    if args.encoder_onnx:
        return GraphSource(copy_graph(args.encoder_onnx))
    source = checkpoint_of(args, recipe)
    require_all(("torch", "onnx", "onnxscript", "onnxruntime"), "to export the image encoder")
    precision = recipe.graph.precision if recipe.graph.precision in EXPORT_PRECISIONS else "fp16"

    def write(path: Path) -> None:
        from trt_sam.graph.encoder import export_encoder
        from trt_sam.model.checkpoint import load_checkpoint

        progress = stages.begin("export", f"exporting the image encoder in {precision} and running it beside PyTorch")
        checkpoint = load_checkpoint(source)
        sha256, target = checkpoint.sha256, recipe.graph.target
        encoder = checkpoint.image_encoder()
        export_encoder(encoder, path, precision=precision, target=target, checkpoint_sha256=sha256, progress=progress)

    return GraphSource(write)


def _exported(checkpoint: Checkpoint, options: GraphOptions, stages: Stages, **calibrated: Any) -> GraphSource:
    from trt_sam.graph.export import export_decoder

    def write(path: Path) -> None:
        progress = stages.begin(
            f"export{' mask' if options.mask_input else ''}", f"exporting {path.name} in {options.precision}"
        )
        export_decoder(checkpoint.decoder, path, options, checkpoint_sha256=checkpoint.sha256, progress=progress)

    return GraphSource(write, **calibrated)


def implicit_sources(
    args: argparse.Namespace, recipe: EngineRecipe, flavour: Flavour, stages: Stages, stack: contextlib.ExitStack
) -> list[GraphSource]:
    """Float32 graphs, each with its calibrator for TensorRT 10's implicit INT8; the feeds live as long as `stack`."""
    if recipe.graph.precision != "int8":
        raise InputError(
            f'quantization.method = "implicit" is int8 alone, precision is {recipe.graph.precision}; use "explicit"'
        )
    if not flavour.has_implicit_int8:
        check_method(recipe, None, flavour)
    algorithm = {"auto": "entropy", "entropy": "entropy", "max": "minmax"}.get(recipe.quantization.calibrator)
    if algorithm is None:
        raise InputError(
            f'calibrator is {recipe.quantization.calibrator!r}; with quantization.method = "implicit" it is entropy or max'
        )
    checkpoint = _load(args, recipe, stages, "to calibrate with TensorRT 10", "pycuda")
    from calibrators.implicit import ImplicitCalibration

    sources = []
    for each in graph_recipes(recipe):
        request = calibration_request(args, each, cache=args.output / STEPS / EMBEDDINGS)
        progress = stages.begin(f"data{' mask' if each.graph.mask_input else ''}", f"reading {request.data}")
        feeds = stack.enter_context(request.open(checkpoint, progress))
        warn_of_few(feeds.num_images)
        calibrator = ImplicitCalibration(feeds, algorithm=algorithm)
        plain = dataclasses.replace(each.graph, precision="fp32")
        sources.append(_exported(checkpoint, plain, stages, make_calibrator=calibrator, calibration=feeds.fingerprint))
    return sources


def has_data(args: argparse.Namespace) -> bool:
    return args.embeddings is not None or args.photos is not None


def needs_data(recipe: EngineRecipe) -> InputError:
    return InputError(f"precision {recipe.graph.precision} needs calibration data: give --embeddings DIR or --photos DIR")
