"""Building a whole engine set into a folder, so that a kill at any moment leaves nothing that a runner accepts.

A set has one graph, or two of one checkpoint: `decode`, and `decode_mask` that also takes an earlier mask.

Everything is made in a hidden folder inside the output. Only when it is whole is the old manifest removed, are the files moved
in, and is the new manifest written: between these steps the folder has no manifest, so it is no engine set. A build that fails
leaves an older set as it was.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trt_sam import __version__
from trt_sam._files import existing_file
from trt_sam.engine.builder import BuildResult, build_engine
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.implicit import check_method
from trt_sam.engine.job import MakeCalibrator
from trt_sam.engine.manifest import CACHE_SUFFIX, MANIFEST_NAME, FileEntry, GraphEntry, Manifest, open_manifest, write_manifest
from trt_sam.errors import BuildError, InputError, ManifestError
from trt_sam.graph.metadata import GraphInfo, check_decoder, read_graph
from trt_sam.machine.driver import gpu_model
from trt_sam.progress import Progress
from trt_sam.recipe import EngineRecipe, GraphOptions

__all__ = ["ENGINE_NAMES", "GRAPH_NAMES", "BuiltSet", "GraphSource", "build_set", "copy_graph"]

GRAPH_NAMES = ("decoder.onnx", "decoder_mask.onnx")
ENGINE_NAMES = ("decoder.engine", "decoder_mask.engine")
"""Of the first graph and of the second."""
_STAGING = ".trt-sam-build-"
_TWO_GRAPHS = ".trt-sam-two-graphs"
"""Stands in the folder while files of a second graph may lie there without a manifest that says so."""

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


def build_set(
    sources: Sequence[GraphSource],
    recipe: EngineRecipe,
    output: str | os.PathLike[str],
    *,
    flavour: Flavour,
    progress: Progress | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    device: int = 0,
    engine_builder: EngineBuilder = build_engine,
) -> BuiltSet:
    """Write `decoder.onnx`, `decoder.engine`, where there are two also `decoder_mask.*`, and `manifest.json` into `output`.

    Args:
        sources: of one graph; or where `recipe.decode_mask` is set of two that differ in `mask_input` alone, the one without
            first.
        recipe: what to build; its `graph` gives way to the options that the (first) graph itself carries.
        output: the folder, made where it is missing. An older set in it is replaced only when the new one is whole.
        flavour: the TensorRT that builds.
        progress: as in `build_engine`; it rises over all builds together.
        timing_cache: as in `build_engine`.
        device: as in `build_engine`.
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
    with _writing(folder), _staging(folder) as stage:
        graphs = []
        for source, name in zip(sources, GRAPH_NAMES, strict=False):
            source.write(stage / name)
            graphs.append(read_graph(stage / name))
        options = _checked(graphs)
        # An implicit engine is INT8 from a graph that is not.
        made = options[0] if sources[0].make_calibrator is None else replace(options[0], precision="int8")
        recipe = replace(recipe, graph=made)
        build = functools.partial(engine_builder, recipe=recipe, flavour=flavour, timing_cache=timing_cache, device=device)
        builds = tuple(
            _build(stage, place, source, build, _part(progress, place, len(sources))) for place, source in enumerate(sources)
        )
        entries = tuple(
            GraphEntry(
                role="decode_mask" if options[place].mask_input else "decode",
                onnx=FileEntry.of(stage / GRAPH_NAMES[place]),
                engine=FileEntry.of(stage / ENGINE_NAMES[place]),
                inputs=graph.inputs,
                outputs=graph.outputs,
                limits=_limits(recipe, full_resolution=options[place].full_resolution),
                options=options[place],
                checkpoint_sha256=graph.checkpoint_sha256,
                kernels=builds[place].kernels,
                calibration=graph.calibration or sources[place].calibration,
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
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "trt_sam": __version__,
                "build_seconds": round(sum(build.seconds for build in builds), 3),
                "machine": f"{platform.system()} {platform.machine()}",
            },
        )
        _publish(stage, folder, manifest)
    return BuiltSet(manifest, builds)


def _checked(graphs: Sequence[GraphInfo]) -> list[GraphOptions]:
    """The options of the graphs; raises BuildError where they are no set."""
    options = [check_decoder(graph) for graph in graphs]
    if options[0].target != "gpu":
        raise BuildError("the graph has the cpu form; TensorRT wants the other: export it again with --target gpu")
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


def _build(
    stage: Path, place: int, source: GraphSource, engine_builder: EngineBuilder, progress: Progress | None
) -> BuildResult:
    path = stage / GRAPH_NAMES[place]
    try:
        build = engine_builder(path, progress=progress, make_calibrator=source.make_calibrator)
    except BuildError as error:
        # The staging folder is gone when the user reads this.
        raise BuildError(str(error).replace(str(path), path.name)) from error
    (stage / ENGINE_NAMES[place]).write_bytes(build.engine)
    return build


def _part(progress: Progress | None, place: int, count: int) -> Progress | None:
    """`progress` for build number `place` of `count`."""
    if progress is None or count == 1:
        return progress
    return lambda fraction, phase: progress((place + fraction) / count, phase)


def _publish(stage: Path, folder: Path, manifest: Manifest) -> None:
    names = sorted(path.name for path in stage.iterdir())
    for name in names:
        with (stage / name).open("rb") as file:
            os.fsync(file.fileno())
    marker = folder / _TWO_GRAPHS
    # Only what a build wrote may be removed: decoder_mask.onnx of a set with one graph is the user's own.
    if len(manifest.graphs) > 1 or _has_two_graphs(folder):
        marker.touch()
        _sync_folder(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    # The removal must reach the disk before the files change, or a power cut could leave the old manifest beside new files.
    _sync_folder(folder)
    for name in names:
        os.replace(stage / name, folder / name)
    if len(manifest.graphs) == 1 and marker.exists():
        for left in (GRAPH_NAMES[1], ENGINE_NAMES[1], ENGINE_NAMES[1] + CACHE_SUFFIX):
            (folder / left).unlink(missing_ok=True)
    _sync_folder(folder)
    write_manifest(manifest)
    _log.debug("%s holds %s", folder, ", ".join(names))
    marker.unlink(missing_ok=True)
    _sync_folder(folder)


def _has_two_graphs(folder: Path) -> bool:
    """Whether the set in `folder` has a second graph; False where there is none to be read."""
    try:
        return any(graph.onnx.name == GRAPH_NAMES[1] for graph in open_manifest(folder, verify=False).graphs)
    except ManifestError:
        return False


def _limits(recipe: EngineRecipe, *, full_resolution: bool) -> dict[str, tuple[int, int]]:
    names = ["num_prompts", "num_points", *(["height", "width"] if full_resolution else [])]
    ranges = {name: [getattr(profile, name) for profile in recipe.profiles] for name in names}
    return {name: (min(low for low, _, _ in values), max(high for _, _, high in values)) for name, values in ranges.items()}


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make `folder`, hold it against other builds, and turn what goes wrong in it into one line."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _exclusive(folder):
                yield
        except BaseException:
            if new:
                with contextlib.suppress(OSError):  # not empty: somebody else uses it
                    folder.rmdir()
            raise
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another --output") from error


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows has no flock; two builds into one folder are then the user's to avoid.
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"another build is writing into {folder}; wait for it, or choose another --output") from None
        # The lock is ours, so whatever temporary is left belongs to a build that was killed.
        for left in folder.glob(f"{_STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in folder.glob(f".{MANIFEST_NAME}.*"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    stage = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_graph(source: str | os.PathLike[str]) -> Callable[[Path], None]:
    """A `write` of a `GraphSource` that copies an existing file; raises InputError where it cannot be read."""
    path = existing_file(source, "ONNX graph")

    def copy(target: Path) -> None:
        shutil.copyfile(path, target)

    return copy
