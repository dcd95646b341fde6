"""Build a TensorRT engine from a checkpoint or from a graph that `trt-sam export --target gpu` wrote.

Writes decoder.onnx, decoder.engine and manifest.json into the output folder. TensorRT-RTX builds without a GPU.
--decode-mask adds decoder_mask.onnx and decoder_mask.engine, which refine an earlier mask, to the same set, and --encoder
encoder.onnx and encoder.engine, which embed photographs.
--precision int8 and fp8 calibrate first, on embeddings or photos; without them, mobile_sam is built in INT8 by the ranges that
come with the package. Finished steps are kept in the folder calibration of the
output and not done twice.

Example:
  trt-sam build --checkpoint standin --precision fp16 --compute-capability 8.9,12.0 --output engines/built/standin
  trt-sam build --checkpoint standin --precision int8 --photos photos/ --output engines/built/standin_int8
  trt-sam build --checkpoint standin --decode-mask --output engines/built/standin_refining
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._lazy import require_all
from trt_sam.commands._build_summary import Modelled, build_summary, modelled
from trt_sam.commands._calibration import add_calibration_arguments, calibration_recipe, calibration_request, warn_of_few
from trt_sam.commands._options import (
    CHECKPOINT_HELP,
    add_cache_argument,
    add_capability_argument,
    add_graph_arguments,
    add_json_argument,
    capabilities_from,
    checkpoint_of,
    recipe_from,
    write_json,
)
from trt_sam.commands._quantized import EMBEDDINGS, STEPS, Quantized, finished_set, quantized_graph, shipped_graph
from trt_sam.engine.engine_set import BuiltSet, GraphSource, build_set, copy_graph
from trt_sam.engine.flavour import Flavour, choose_flavour
from trt_sam.engine.implicit import check_method
from trt_sam.engine.manifest import Manifest
from trt_sam.errors import BuildError, GraphError, InputError
from trt_sam.graph.metadata import check_decoder, read_graph
from trt_sam.progress import Stages
from trt_sam.recipe import BACKENDS, EXPORT_PRECISIONS, EngineRecipe, GraphOptions, ShapeProfile

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

HELP = "checkpoint or ONNX to TensorRT engine"

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `build`."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", metavar="C", help=CHECKPOINT_HELP)
    source.add_argument("--onnx", metavar="F", help="a graph of trt-sam export; needs no torch")
    add_cache_argument(parser)
    add_graph_arguments(parser, target=False)
    parser.add_argument(
        "--decode-mask", action="store_true", default=None, help="also build the graph that refines an earlier mask"
    )
    parser.add_argument(
        "--max-points",
        metavar="N",
        type=int,
        help="most points of a prompt; a box counts as two, clicks without a box as one more (default: the recipe's, often 32)",
    )
    parser.add_argument(
        "--encoder", action="store_true", help="also build the image encoder, so that the set takes photographs"
    )
    add_calibration_arguments(parser, required=False)
    parser.add_argument("--backend", choices=BACKENDS, help="which TensorRT (default: TensorRT beside a GPU, else RTX)")
    add_capability_argument(parser)
    parser.add_argument(
        "--device", metavar="N", type=int, default=0, help="number of the GPU that builds (TensorRT 10 and 11; default: 0)"
    )
    parser.add_argument("--timing-cache", metavar="F", type=Path, help="kernel timings to keep (TensorRT 10 and 11)")
    parser.add_argument("--output", required=True, metavar="DIR", type=Path)
    add_json_argument(parser)


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
    if args.decode_mask:
        changes["decode_mask"] = True
    if args.compute_capability is not None:
        changes["compute_capabilities"] = capabilities_from(args.compute_capability)
    if args.max_points is not None:
        changes["profiles"] = tuple(_with_points(profile, args.max_points) for profile in recipe.profiles)
    recipe = dataclasses.replace(recipe, **changes)
    _check_decode_mask(args, recipe)
    flavour = choose_flavour(recipe.backend)
    for value in recipe.compute_capabilities:
        flavour.compute_capability(value)
    with Stages(_shares(recipe)) as stages, contextlib.ExitStack() as stack:
        judged: list[str] = []
        checkpoint: Checkpoint | None = None
        if args.onnx:
            sources = [_from_onnx(args, recipe)]
        elif calibrates and recipe.quantization.method == "implicit":
            sources = _implicit(args, recipe, flavour, stages, stack)
        elif calibrates:
            checkpoint, graphs = _calibrated(args, recipe, stages)
            paths = [graph.path for graph in graphs]
            judged = [graph.judged for graph in graphs]
            if not args.encoder and (manifest := finished_set(args.output, paths, recipe, flavour)) is not None:
                done = "the same graph" if len(graphs) == 1 else "the same graphs"
                _report(args, manifest, f"{args.output}: built before from {done}, nothing to do")
                return 0
            sources = [GraphSource(copy_graph(path)) for path in paths]
        else:
            sources = _from_checkpoint(args, recipe, stages)
        progress = stages.later("engine", f"building with {flavour.title}")
        built = build_set(
            sources,
            recipe,
            args.output,
            flavour=flavour,
            encoder=_encoder(args, recipe, stages) if args.encoder else None,
            progress=progress,
            timing_cache=args.timing_cache,
            device=args.device,
        )
        # Two graphs of one decoder are warned of in the same words.
        for warning in dict.fromkeys(warning for build in built.builds for warning in build.warnings):
            _log.warning("%s: %s", flavour.title, warning)
        times = _modelled(built, flavour, stages, checkpoint)
    source = None if args.onnx else checkpoint_of(args, recipe)
    facts = {"judged": judged, "modelled": [dataclasses.asdict(time) for time in times]}
    summary = build_summary(built, flavour.title, judged=judged, times=times, checkpoint=source)
    _report(args, built.manifest, summary, **facts)
    return 0


def _shares(recipe: EngineRecipe) -> dict[str, float]:
    """About how long the stages take, in their order; those that a build does not have are jumped over."""
    graphs = [" mask" if each.graph.mask_input else "" for each in _graph_recipes(recipe)]
    calibration = {f"{stage}{of}": share for of in graphs for stage, share in (("data", 6), ("calibrate", 14))}
    return {"load": 1, **calibration, **{f"export{of}": 3 for of in graphs}, "engine": 4, "model": 4}


def _check_data(args: argparse.Namespace, recipe: EngineRecipe, *, calibrates: bool) -> None:
    """Raise InputError where calibration data are missing, or given and of no use."""
    has_data = _has_data(args)
    if calibrates and not has_data and (recipe.graph.precision != "int8" or recipe.quantization.method != "explicit"):
        raise _needs_data(recipe)
    if not calibrates and has_data:
        data = "--embeddings" if args.embeddings is not None else "--photos"
        if args.onnx:
            raise InputError(
                f"{args.onnx} has its types already and is built as it is, so {data} is of no use; leave it out, or give "
                "--checkpoint instead of --onnx to calibrate"
            )
        raise InputError(
            f"precision {recipe.graph.precision} is not calibrated, so {data} is of no use; leave it out, or give "
            "--precision int8 or fp8"
        )


def _has_data(args: argparse.Namespace) -> bool:
    return args.embeddings is not None or args.photos is not None


def _needs_data(recipe: EngineRecipe) -> InputError:
    return InputError(f"precision {recipe.graph.precision} needs calibration data: give --embeddings DIR or --photos DIR")


def _check_decode_mask(args: argparse.Namespace, recipe: EngineRecipe) -> None:
    """Raise InputError where two graphs are wanted and cannot be."""
    if args.encoder and args.onnx:
        raise InputError("--encoder exports the image encoder of a checkpoint, and --onnx has none; give --checkpoint")
    if args.encoder and recipe.quantization.method == "implicit":
        raise InputError('quantization.method = "implicit" is for a decoder alone; leave --encoder out, or use "explicit"')
    if not recipe.decode_mask:
        return
    asked = "--decode-mask" if args.decode_mask else "decode_mask of the recipe"
    if args.onnx:
        raise InputError(f"{asked} makes two graphs of a checkpoint, and --onnx gives one; give --checkpoint, or leave one out")
    if recipe.graph.mask_input:
        mask_input = "--mask-input" if args.mask_input else "graph.mask_input of the recipe"
        raise InputError(f"{asked} builds a graph with mask_input beside one without; leave {mask_input} out")


def _with_points(profile: ShapeProfile, most: int) -> ShapeProfile:
    """The profile for prompts of up to `most` points, tuned for what it was tuned for."""
    if most < 1:
        raise InputError(f"--max-points is {most}, must be at least 1")
    low, best, _ = profile.num_points
    return dataclasses.replace(profile, num_points=(min(low, most), min(best, most), most))


def _graph_recipes(recipe: EngineRecipe) -> list[EngineRecipe]:
    """A recipe for each graph of the set: alike but for their `mask_input`."""
    if not recipe.decode_mask:
        return [recipe]
    return [recipe, dataclasses.replace(recipe, graph=dataclasses.replace(recipe.graph, mask_input=True))]


def _report(args: argparse.Namespace, manifest: Manifest, summary: str, **facts: Any) -> None:
    if args.json:
        write_json(args.json, {"folder": str(args.output), **manifest.to_dict(), **facts})
    if args.json != "-":
        print(summary)


def _calibrated(args: argparse.Namespace, recipe: EngineRecipe, stages: Stages) -> tuple[Checkpoint, list[Quantized]]:
    """The checkpoint, and the quantized graphs: each calibrated on its own prompts, or by the ranges that the package has."""
    from calibrators.shipped import shipped_ranges

    checkpoint = _load(args, recipe, stages, "to calibrate")
    steps = args.output / STEPS
    ranges = None if _has_data(args) else shipped_ranges(checkpoint)
    if ranges is None and not _has_data(args):
        raise _needs_data(recipe)
    graphs = []
    for each in _graph_recipes(recipe):
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


def _from_onnx(args: argparse.Namespace, recipe: EngineRecipe) -> GraphSource:
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
    return GraphSource(copy_graph(args.onnx))


def _from_checkpoint(args: argparse.Namespace, recipe: EngineRecipe, stages: Stages) -> list[GraphSource]:
    checkpoint = _load(args, recipe, stages, "to export a graph; build --onnx needs none of them but onnx")
    return [_exported(checkpoint, each.graph, stages) for each in _graph_recipes(recipe)]


def _load(args: argparse.Namespace, recipe: EngineRecipe, stages: Stages, why: str, *more: str) -> Checkpoint:
    source = checkpoint_of(args, recipe)
    stages.begin("load", f"loading {source}")
    require_all(("torch", "onnx", "onnxscript", "onnxruntime", *more), why)
    from trt_sam.model.checkpoint import load_checkpoint

    return load_checkpoint(source)


def _encoder(args: argparse.Namespace, recipe: EngineRecipe, stages: Stages) -> GraphSource:
    """The graph of the image encoder: float16 beside a quantized decoder, else of the decoder's precision."""
    source = checkpoint_of(args, recipe)
    require_all(("torch", "onnx", "onnxscript", "onnxruntime"), "to export the image encoder")
    precision = recipe.graph.precision if recipe.graph.precision in EXPORT_PRECISIONS else "fp16"

    def write(path: Path) -> None:
        from trt_sam.graph.encoder import export_encoder
        from trt_sam.model.checkpoint import load_checkpoint

        stages.begin("export", f"exporting the image encoder in {precision} and running it beside PyTorch")
        checkpoint = load_checkpoint(source)
        export_encoder(checkpoint.image_encoder(), path, precision=precision, checkpoint_sha256=checkpoint.sha256)

    return GraphSource(write)


def _exported(checkpoint: Checkpoint, options: GraphOptions, stages: Stages, **calibrated: Any) -> GraphSource:
    from trt_sam.graph.export import export_decoder

    def write(path: Path) -> None:
        stages.begin(f"export{' mask' if options.mask_input else ''}", f"exporting {path.name} in {options.precision}")
        export_decoder(checkpoint.decoder, path, options, checkpoint_sha256=checkpoint.sha256)

    return GraphSource(write, **calibrated)


def _implicit(
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
    for each in _graph_recipes(recipe):
        request = calibration_request(args, each, cache=args.output / STEPS / EMBEDDINGS)
        progress = stages.begin(f"data{' mask' if each.graph.mask_input else ''}", f"reading {request.data}")
        feeds = stack.enter_context(request.open(checkpoint, progress))
        warn_of_few(feeds.num_images)
        calibrator = ImplicitCalibration(feeds, algorithm=algorithm)
        plain = dataclasses.replace(each.graph, precision="fp32")
        sources.append(_exported(checkpoint, plain, stages, make_calibrator=calibrator, calibration=feeds.fingerprint))
    return sources


def _modelled(built: BuiltSet, flavour: Flavour, stages: Stages, calibrated: Checkpoint | None) -> tuple[Modelled, ...]:
    """The modelled time of a click with the decoder, of a `calibrated` one beside FP16's; none without a layer list."""
    if not built.builds[0].layers:
        return ()
    entry = built.manifest.graphs[0]
    graphs = {entry.options.precision: built.manifest.folder / entry.onnx.name}
    progress = stages.begin("model", "modelling the time of one click")
    with tempfile.TemporaryDirectory() as folder:
        if calibrated is not None:
            from trt_sam.graph.export import export_decoder

            graphs["fp16"] = Path(folder) / "fp16.onnx"
            options = dataclasses.replace(entry.options, precision="fp16")
            export_decoder(calibrated.decoder, graphs["fp16"], options, checkpoint_sha256=calibrated.sha256)
        try:
            return modelled(graphs, flavour, progress=progress)
        except (BuildError, GraphError) as error:
            # The set is whole, and its files do not depend on this figure.
            _log.warning("the time of one click is not modelled: %s", error)
            return ()
