"""Building a whole engine set into a folder.

A set has one to three graphs of one checkpoint: `decode`, `decode_mask` that also takes an earlier mask, and `encode`, which is
the image encoder.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from trt_sam._files import existing_file
from trt_sam._version import __version__
from trt_sam.engine.builder import BuildResult, build_engine
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.implicit import check_method
from trt_sam.engine.job import MakeCalibrator
from trt_sam.engine.layers import layer_file_of, write_layers
from trt_sam.engine.manifest import FileEntry, GraphEntry, Manifest, write_manifest
from trt_sam.engine.set_folder import ENCODER_NAMES, ENGINE_NAMES, GRAPH_NAMES, publish, staging, writing
from trt_sam.errors import BuildError
from trt_sam.graph.metadata import PREPARED_ROLES, GraphInfo, check_decoder, check_encoder, is_encoder, read_graph
from trt_sam.machine.driver import gpu_model
from trt_sam.progress import Progress
from trt_sam.recipe import QUANTIZED_PRECISIONS, EngineRecipe, GraphOptions

__all__ = ["BuiltSet", "GraphSource", "Verifier", "build_set", "copy_graph", "encoder_options", "role_of"]

_log = logging.getLogger(__name__)

EngineBuilder = Callable[..., BuildResult]


@dataclass(frozen=True)
class GraphSource:
    """Where a graph comes from."""

    write: Callable[[Path], Any]
    """Called with a path, writes the ONNX graph there."""
    make_calibrator: MakeCalibrator | None = None
    """As in `build_engine`; the graph is then of float32, and the manifest's recipe says int8, implicit."""
    calibration: str | None = None
    """Fingerprint of the feeds of `make_calibrator`; a quantized graph carries its own."""


@dataclass(frozen=True)
class BuiltSet:
    """A set that is on disk, and the builds that made it."""

    manifest: Manifest
    builds: tuple[BuildResult, ...]
    """One for each graph of the manifest."""


class Verifier(Protocol):
    """Judges a set before it is installed."""

    def check(self, checkpoint_sha256: str) -> None:
        """Raise where it could not judge engines of this checkpoint though it was asked to; called before anything is built."""

    def verify(self, staged: Manifest) -> Manifest:
        """The manifest with `verified` or `not_verified`; what it raises keeps the set from being installed.

        Args:
            staged: of the whole set, in a folder that is gone later.
        """


def build_set(
    sources: Sequence[GraphSource],
    recipe: EngineRecipe,
    output: str | os.PathLike[str],
    *,
    flavour: Flavour,
    encoder: GraphSource | None = None,
    progress: Progress | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    device: int = 0,
    verifier: Verifier | None = None,
    engine_builder: EngineBuilder = build_engine,
) -> BuiltSet:
    """Write `decoder.onnx`, `decoder.engine`, where there are two also `decoder_mask.*`, and `manifest.json` into `output`.

    Args:
        sources: of one graph; or where `recipe.decode_mask` is set of two that differ in `mask_input` alone, the one without
            first.
        recipe: what to build; its `graph` gives way to the options that the (first) graph itself carries.
        output: the folder, made where it is missing. An older set in it is replaced only when the new one is whole.
        flavour: the TensorRT that builds.
        encoder: of the image encoder's graph, for a set that takes photographs: `encoder.onnx`, `encoder.engine`.
        progress: as in `build_engine`; it rises over all builds together.
        timing_cache: as in `build_engine`.
        device: as in `build_engine`.
        verifier: judges the engines where they can run; without one the manifest says nothing of it.
        engine_builder: stands in for `build_engine` in tests.

    Raises:
        BuildError: a graph cannot be built, two do not belong together, or another build is writing into the folder.
        GraphError: a graph is not a decoder of this package, or one for the CPU.
        InputError: the folder cannot be written, or the disk is full.
        KeyboardInterrupt: Ctrl-C; the folder is as it was.
    """
    for source in sources:
        check_method(recipe, source.make_calibrator, flavour)
    if len(sources) != 1 + recipe.decode_mask:
        wanted = "two graphs, without and with mask_input" if recipe.decode_mask else "one graph"
        raise BuildError(f"there are {len(sources)} graphs, but decode_mask is {recipe.decode_mask}: give {wanted}")
    folder = Path(output)
    with writing(folder), staging(folder) as stage:
        everything = [*zip(sources, GRAPH_NAMES, ENGINE_NAMES, strict=False)]
        if encoder is not None:
            everything.append((encoder, *ENCODER_NAMES))
        graphs = []
        for source, name, _ in everything:
            source.write(stage / name)
            graphs.append(read_graph(stage / name))
        options = _checked(graphs[: len(sources)])
        if verifier is not None:
            verifier.check(graphs[0].checkpoint_sha256)
        if encoder is not None:
            options.append(encoder_options(graphs[-1], graphs[0]))
        # An implicit engine is INT8 from a graph that is not.
        made = options[0] if sources[0].make_calibrator is None else replace(options[0], precision="int8")
        recipe = replace(recipe, graph=made)
        build = functools.partial(engine_builder, recipe=recipe, flavour=flavour, timing_cache=timing_cache, device=device)
        names_of = [names for _, *names in everything]
        builds = tuple(
            _build(stage, names_of[place], source, build, _part(progress, place, len(everything)))
            for place, (source, *_) in enumerate(everything)
        )
        entries = tuple(
            GraphEntry(
                role=role_of(graph, options[place]),
                onnx=FileEntry.of(stage / names_of[place][0]),
                engine=FileEntry.of(stage / names_of[place][1]),
                layers=_layers(stage, names_of[place][1], builds[place], flavour),
                inputs=graph.inputs,
                outputs=graph.outputs,
                limits=_limits(recipe, graph, full_resolution=options[place].full_resolution),
                options=options[place],
                checkpoint_sha256=graph.checkpoint_sha256,
                kernels=builds[place].kernels,
                calibration=graph.calibration or everything[place][0].calibration,
                calibrated=graph.calibrated,
            )
            for place, graph in enumerate(graphs)
        )
        manifest = Manifest(
            folder=folder,
            graphs=entries,
            recipe=recipe,
            flavour=flavour.name,
            flavour_version=flavour.version,
            target=options[0].target,
            compute_capabilities=builds[0].compute_capabilities,
            calibration=entries[0].calibration,
            gpu_model=gpu_model(device) if flavour.needs_gpu_to_build else None,
            created={
                "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "trt_sam": __version__,
                "build_seconds": round(sum(build.seconds for build in builds), 3),
                "machine": f"{platform.system()} {platform.machine()}",
            },
        )
        if verifier is not None:
            manifest = _verified(stage, manifest, verifier)
        publish(stage, folder, manifest)
    return BuiltSet(manifest, builds)


def _checked(graphs: Sequence[GraphInfo]) -> list[GraphOptions]:
    """The options of the graphs; raises BuildError where they are no set."""
    options = [check_decoder(graph) for graph in graphs]
    if options[0].target != "gpu":
        raise BuildError("the graph has the cpu form; TensorRT wants the other: export it again with --target gpu")
    check_one_image(options[0])
    if len(graphs) == 1:
        return options
    if options[0].mask_input or options[1] != replace(options[0], mask_input=True):
        raise BuildError(
            f"the two graphs have the options {options[0]} and {options[1]}; they must differ in mask_input alone, "
            "the first without it"
        )
    if graphs[0].checkpoint_sha256 != graphs[1].checkpoint_sha256:
        raise BuildError("the two graphs are of different checkpoints; export both from one")
    return options


def check_one_image(options: GraphOptions) -> None:
    """Raise BuildError where a graph takes several images: the TensorRT runner brings one image to a launch."""
    if options.images > 1:
        raise BuildError(
            f"the graph takes {options.images} images a call, an engine's runner one: export it without --images; "
            "OnnxRunner runs a graph of several"
        )


def encoder_options(encoder: GraphInfo, decoder: GraphInfo) -> GraphOptions:
    """The options that stand for an encoder's graph; raises BuildError where it belongs to another decoder."""
    precision = check_encoder(encoder)
    if encoder.checkpoint_sha256 != decoder.checkpoint_sha256:
        raise BuildError("the image encoder's graph is of another checkpoint than the decoder's; export both from one")
    # A quantized encoder is the GPU's, whatever the decoder is.
    return GraphOptions(precision=precision, target="gpu" if precision in QUANTIZED_PRECISIONS else _target_of(decoder))


def _target_of(decoder: GraphInfo) -> str:
    """The target that a decoder's graph was exported for; "gpu" where it does not say."""
    return "gpu" if decoder.options is None else decoder.options.target


def role_of(graph: GraphInfo, options: GraphOptions) -> str:
    """What a graph does in a set, one of `manifest.ROLES`."""
    if is_encoder(graph.metadata):
        return "encode"
    if graph.metadata.get("trt_sam.role") in PREPARED_ROLES:
        return graph.metadata["trt_sam.role"]
    return "decode_mask" if options.mask_input else "decode"


def _build(
    stage: Path, names: Sequence[str], source: GraphSource, engine_builder: EngineBuilder, progress: Progress | None
) -> BuildResult:
    path = stage / names[0]
    try:
        build = engine_builder(path, progress=progress, make_calibrator=source.make_calibrator)
    except BuildError as error:
        # The staging folder is gone when the user reads this.
        raise BuildError(str(error).replace(str(path), path.name)) from error
    (stage / names[1]).write_bytes(build.engine)
    return build


def _layers(stage: Path, engine: str, build: BuildResult, flavour: Flavour) -> FileEntry | None:
    if not build.layers:
        return None
    path = stage / layer_file_of(engine)
    write_layers(path, build.layers, flavour.title)
    return FileEntry.of(path)


def _verified(stage: Path, manifest: Manifest, verifier: Verifier) -> Manifest:
    """What `verifier` makes of the manifest; the folder is afterwards as it was."""
    built = {path.name for path in stage.iterdir()}
    staged = replace(manifest, folder=stage)
    write_manifest(staged)
    judged = verifier.verify(staged)
    for path in stage.iterdir():
        if path.name not in built:  # the manifest, and what TensorRT-RTX keeps of what it compiled
            path.unlink()
    return replace(judged, folder=manifest.folder)


def _part(progress: Progress | None, place: int, count: int) -> Progress | None:
    """`progress` for build number `place` of `count`."""
    if progress is None or count == 1:
        return progress
    return lambda fraction, phase: progress((place + fraction) / count, phase)


def _limits(recipe: EngineRecipe, graph: GraphInfo, *, full_resolution: bool) -> dict[str, tuple[int, int]]:
    if is_encoder(graph.metadata):
        return {}
    names = ["num_prompts", "num_points", *(["height", "width"] if full_resolution else [])]
    ranges = {name: [getattr(profile, name) for profile in recipe.profiles] for name in names}
    return {name: (min(low for low, _, _ in values), max(high for _, _, high in values)) for name, values in ranges.items()}


def copy_graph(source: str | os.PathLike[str]) -> Callable[[Path], None]:
    """A `write` of a `GraphSource` that copies an existing file; raises InputError where it cannot be read."""
    path = existing_file(source, "ONNX graph")

    def copy(target: Path) -> None:
        shutil.copyfile(path, target)

    return copy
