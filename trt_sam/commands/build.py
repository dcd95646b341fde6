"""Build a TensorRT engine from a checkpoint or from a graph that `trt-sam export --target gpu` wrote.

Writes decoder.onnx, decoder.engine and manifest.json into the output folder. TensorRT-RTX builds without a GPU.
--decode-mask adds decoder_mask.onnx and decoder_mask.engine, which refine an earlier mask, to the same set, and --encoder
encoder.onnx and encoder.engine, which embed photographs; --encoder-onnx takes the encoder's graph, such as an INT8 one.
--precision int8 and fp8 calibrate first, on embeddings or photos; without them, mobile_sam is built in INT8 by the ranges that
come with the package. Finished steps are kept in the folder calibration of the
output and not done twice.
On a machine with the GPU that was built for, the engines are judged by golden data before they are installed, as by `compare
--golden`, and the manifest has the figures as `verified`. Where they miss a limit nothing is installed, and the exit code is 1.

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
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam.commands._build_sources import (
    calibrated_graphs,
    encoder_source,
    exported_sources,
    graph_recipes,
    has_data,
    implicit_sources,
    needs_data,
    onnx_source,
    wants_encoder,
)
from trt_sam.commands._build_summary import Modelled, build_summary, encoder_warning, modelled
from trt_sam.commands._calibration import add_calibration_arguments, calibration_recipe
from trt_sam.commands._options import (
    CHECKPOINT_HELP,
    add_cache_argument,
    add_capability_argument,
    add_graph_arguments,
    add_json_argument,
    capabilities_from,
    check_images_given,
    checkpoint_of,
    recipe_from,
    write_json,
)
from trt_sam.commands._outputs import check_output_file, check_output_folder
from trt_sam.commands._quantized import finished_set
from trt_sam.commands._verify import VerdictError, add_verify_arguments, verifier_of
from trt_sam.download import check_source
from trt_sam.engine.engine_set import BuiltSet, GraphSource, build_set, check_one_image, copy_graph
from trt_sam.engine.flavour import Flavour, choose_flavour
from trt_sam.engine.manifest import Manifest
from trt_sam.errors import BuildError, GraphError, InputError
from trt_sam.graph.metadata import check_encoder, read_graph
from trt_sam.progress import Stages
from trt_sam.recipe import BACKENDS, EXPORT_PRECISIONS, EngineRecipe, ShapeProfile

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

HELP = "checkpoint or ONNX to TensorRT engine"

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `build`."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", metavar="C", type=check_source, help=CHECKPOINT_HELP)
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
    encoder = parser.add_mutually_exclusive_group()
    encoder.add_argument(
        "--encoder", action="store_true", help="also build the image encoder, so that the set takes photographs"
    )
    encoder.add_argument(
        "--encoder-onnx", metavar="F", help="the same, of its graph: INT8 of calibrate --encoder, or one of export --encoder"
    )
    add_calibration_arguments(parser, required=False)
    parser.add_argument("--backend", choices=BACKENDS, help="which TensorRT (default: TensorRT beside a GPU, else RTX)")
    add_capability_argument(parser)
    parser.add_argument(
        "--device", metavar="N", type=int, default=0, help="number of the GPU that builds (TensorRT 10 and 11; default: 0)"
    )
    parser.add_argument("--timing-cache", metavar="F", type=Path, help="kernel timings to keep (TensorRT 10 and 11)")
    add_verify_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", type=Path)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Build; 0 when the set is whole, 1 where an engine of it was judged and failed."""
    try:
        return _build(args)
    except VerdictError as error:
        print(f"trt-sam: error: {error}", file=sys.stderr)
        return 1


def _build(args: argparse.Namespace) -> int:
    check_output_folder(args.output)
    check_output_file(args.json)
    recipe = recipe_from(args, precision="fp16", target="gpu")
    check_one_image(recipe.graph)
    calibrates = not args.onnx and recipe.graph.precision not in EXPORT_PRECISIONS
    _check_data(args, recipe, calibrates=calibrates)
    if calibrates:
        recipe = calibration_recipe(args)
    # The manifest names what was built, not what the recipe would have taken.
    changes: dict[str, Any] = {"checkpoint": None if args.onnx else checkpoint_of(args, recipe)}
    if args.backend:
        changes["backend"] = args.backend
    if args.decode_mask:
        changes["decode_mask"] = True
    if args.compute_capability is not None:
        changes["compute_capabilities"] = capabilities_from(args.compute_capability)
    if args.max_points is not None:
        changes["profiles"] = _profiles(recipe, args.max_points)
    recipe = dataclasses.replace(recipe, **changes)
    _check_decode_mask(args, recipe)
    flavour = choose_flavour(recipe.backend)
    for value in recipe.compute_capabilities:
        flavour.compute_capability(value)
    if recipe.quantization.method != "implicit":  # which has faults of its own to tell first
        check_images_given(args)
    with Stages(_shares(recipe)) as stages, contextlib.ExitStack() as stack:
        verifier = verifier_of(args, flavour, stages)
        judged: list[str] = []
        checkpoint: Checkpoint | None = None
        if args.onnx:
            sources = [onnx_source(args, recipe)]
        elif calibrates and recipe.quantization.method == "implicit":
            sources = implicit_sources(args, recipe, flavour, stages, stack)
        elif calibrates:
            checkpoint, graphs = calibrated_graphs(args, recipe, stages)
            paths = [graph.path for graph in graphs]
            judged = [graph.judged for graph in graphs]
            if not wants_encoder(args) and (manifest := finished_set(args.output, paths, recipe, flavour)) is not None:
                done = "the same graph" if len(graphs) == 1 else "the same graphs"
                _report(args, manifest, f"{args.output}: built before from {done}, nothing to do")
                return 0
            sources = [GraphSource(copy_graph(path)) for path in paths]
        else:
            sources = exported_sources(args, recipe, stages)
        progress = stages.later("engine", f"building with {flavour.title}")
        built = build_set(
            sources,
            recipe,
            args.output,
            flavour=flavour,
            encoder=encoder_source(args, recipe, stages) if wants_encoder(args) else None,
            progress=progress,
            timing_cache=args.timing_cache,
            device=args.device,
            verifier=verifier,
        )
        _warn(built, flavour)
        times = _modelled(built, flavour, stages, checkpoint)
    facts = {"judged": judged, "modelled": [dataclasses.asdict(time) for time in times]}
    summary = build_summary(built, flavour.title, judged=judged, times=times, checkpoint=recipe.checkpoint)
    _report(args, built.manifest, summary, **facts)
    return 0


def _shares(recipe: EngineRecipe) -> dict[str, float]:
    """About how long the stages take, in their order; those that a build does not have are jumped over."""
    graphs = [" mask" if each.graph.mask_input else "" for each in graph_recipes(recipe)]
    calibration = {f"{stage}{of}": share for of in graphs for stage, share in (("data", 6), ("calibrate", 14))}
    return {"load": 1, **calibration, **{f"export{of}": 3 for of in graphs}, "engine": 4, "verify": 2, "model": 4}


def _check_data(args: argparse.Namespace, recipe: EngineRecipe, *, calibrates: bool) -> None:
    """Raise InputError where calibration data are missing, or given and of no use."""
    data_given = has_data(args)
    if calibrates and not data_given and (recipe.graph.precision != "int8" or recipe.quantization.method != "explicit"):
        raise needs_data(recipe)
    if not calibrates and data_given:
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


def _check_decode_mask(args: argparse.Namespace, recipe: EngineRecipe) -> None:
    """Raise InputError where two graphs are wanted and cannot be."""
    if args.encoder and args.onnx:
        raise InputError(
            "--encoder exports the image encoder of a checkpoint, and --onnx has none; give --checkpoint, or --encoder-onnx F"
        )
    if args.encoder_onnx:
        check_encoder(read_graph(args.encoder_onnx))
    if wants_encoder(args) and recipe.quantization.method == "implicit":
        raise InputError('quantization.method = "implicit" is for a decoder alone; leave the encoder out, or use "explicit"')
    if not recipe.decode_mask:
        return
    asked = "--decode-mask" if args.decode_mask else "decode_mask of the recipe"
    if args.onnx:
        raise InputError(f"{asked} makes two graphs of a checkpoint, and --onnx gives one; give --checkpoint, or leave one out")
    if recipe.graph.mask_input:
        mask_input = "--mask-input" if args.mask_input else "graph.mask_input of the recipe"
        raise InputError(f"{asked} builds a graph with mask_input beside one without; leave {mask_input} out")


def _profiles(recipe: EngineRecipe, most_points: int) -> tuple[ShapeProfile, ...]:
    if most_points < 1:
        raise InputError(f"--max-points is {most_points}, must be at least 1")
    return tuple(profile.with_points(most_points) for profile in recipe.profiles)


def _warn(built: BuiltSet, flavour: Flavour) -> None:
    # Two graphs of one decoder are warned of in the same words.
    for warning in dict.fromkeys(warning for build in built.builds for warning in build.warnings):
        _log.warning("%s: %s", flavour.title, warning)
    if told := encoder_warning(built.manifest):
        _log.warning("%s", told)


def _report(args: argparse.Namespace, manifest: Manifest, summary: str, **facts: Any) -> None:
    if args.json:
        write_json(args.json, {"folder": str(args.output), **manifest.to_dict(), **facts})
    if args.json != "-":
        print(summary)


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
