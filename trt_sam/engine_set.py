"""Building a whole engine set into a folder, so that a kill at any moment leaves nothing that a runner accepts.

Everything is made in a hidden folder inside the output. Only when it is whole is the old manifest removed, are the files moved
in, and is the new manifest written: between these steps the folder has no manifest, so it is no engine set. A build that fails
leaves an older set as it was.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trt_sam import __version__
from trt_sam._build_callbacks import Progress
from trt_sam._files import existing_file
from trt_sam._implicit import MakeCalibrator, check_method
from trt_sam.builder import BuildResult, build_engine
from trt_sam.errors import BuildError, InputError
from trt_sam.graph import check_decoder, read_graph
from trt_sam.manifest import MANIFEST_NAME, FileEntry, GraphEntry, Manifest, write_manifest
from trt_sam.recipe import EngineRecipe
from trt_sam.tensorrt import Flavour

__all__ = ["ENGINE_NAME", "GRAPH_NAME", "BuiltSet", "build_set", "copy_graph"]

GRAPH_NAME = "decoder.onnx"
ENGINE_NAME = "decoder.engine"
_STAGING = ".trt-sam-build-"

EngineBuilder = Callable[..., BuildResult]


@dataclass(frozen=True)
class BuiltSet:
    """A set that is on disk, and the build that made it."""

    manifest: Manifest
    build: BuildResult


def build_set(
    write_graph: Callable[[Path], Any],
    recipe: EngineRecipe,
    output: str | os.PathLike[str],
    *,
    flavour: Flavour,
    progress: Progress | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    make_calibrator: MakeCalibrator | None = None,
    calibration: str | None = None,
    engine_builder: EngineBuilder = build_engine,
) -> BuiltSet:
    """Write `decoder.onnx`, `decoder.engine` and `manifest.json` into the folder `output`.

    Args:
        write_graph: called with a path, writes the ONNX graph there.
        recipe: what to build; its `graph` gives way to the options that the graph itself carries.
        output: the folder, made where it is missing. An older set in it is replaced only when the new one is whole.
        flavour: the TensorRT that builds.
        progress: as in `build_engine`.
        timing_cache: as in `build_engine`.
        make_calibrator: as in `build_engine`; the graph is then of float32, and the manifest's recipe says int8, implicit.
        calibration: fingerprint of the feeds of `make_calibrator`; a quantized graph carries its own.
        engine_builder: stands in for `build_engine` in tests.

    Raises:
        BuildError: the graph cannot be built, or another build is writing into the folder.
        GraphError: the graph is not a decoder of this package, or one for the CPU.
        InputError: the folder cannot be written, or the disk is full.
        KeyboardInterrupt: Ctrl-C; the folder is as it was.
    """
    check_method(recipe, make_calibrator, flavour)
    folder = Path(output)
    with _writing(folder), _staging(folder) as stage:
        graph_path, engine_path = stage / GRAPH_NAME, stage / ENGINE_NAME
        write_graph(graph_path)
        graph = read_graph(graph_path)
        options = check_decoder(graph)
        if options.target != "gpu":
            raise BuildError("the graph has the cpu form; TensorRT wants the other: export it again with --target gpu")
        # An implicit engine is INT8 from a graph that is not.
        made = replace(options, precision="int8") if make_calibrator is not None else options
        recipe = replace(recipe, graph=made)
        try:
            build = engine_builder(
                graph_path,
                recipe,
                flavour=flavour,
                progress=progress,
                timing_cache=timing_cache,
                make_calibrator=make_calibrator,
            )
        except BuildError as error:
            # The staging folder is gone when the user reads this.
            raise BuildError(str(error).replace(str(graph_path), graph_path.name)) from error
        engine_path.write_bytes(build.engine)
        entry = GraphEntry(
            role="decode_mask" if options.mask_input else "decode",
            onnx=FileEntry.of(graph_path),
            engine=FileEntry.of(engine_path),
            inputs=graph.inputs,
            outputs=graph.outputs,
            limits=_limits(recipe, full_resolution=options.full_resolution),
            options=options,
            checkpoint_sha256=graph.checkpoint_sha256,
            kernels=build.kernels,
        )
        manifest = Manifest(
            folder=folder,
            graphs=(entry,),
            recipe=recipe,
            flavour=flavour.name,
            flavour_version=flavour.version,
            target=options.target,
            compute_capabilities=build.compute_capabilities,
            calibration=graph.calibration or calibration,
            created={
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "trt_sam": __version__,
                "build_seconds": round(build.seconds, 3),
                "machine": f"{platform.system()} {platform.machine()}",
            },
        )
        _publish(stage, folder, manifest)
    return BuiltSet(manifest, build)


def _publish(stage: Path, folder: Path, manifest: Manifest) -> None:
    for path in stage.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    # The removal must reach the disk before the files change, or a power cut could leave the old manifest beside new files.
    _sync_folder(folder)
    for name in (GRAPH_NAME, ENGINE_NAME):
        os.replace(stage / name, folder / name)
    _sync_folder(folder)
    write_manifest(manifest)
    _sync_folder(folder)


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
    """A `write_graph` that copies an existing file; raises InputError where it cannot be read."""
    path = existing_file(source, "ONNX graph")

    def copy(target: Path) -> None:
        shutil.copyfile(path, target)

    return copy
