"""ONNX to TensorRT engine, for every flavour, from one strongly typed graph. Imports no torch.

The types are in the graph, so no builder flag chooses a precision, and the same file builds on TensorRT 10, 11 and RTX. The one
exception is implicit INT8 (`_implicit.py`), which TensorRT 10 alone has.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trt_sam._files import existing_file, write_atomically
from trt_sam.engine.callbacks import in_words, make_logger, make_monitor
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.implicit import add_calibrator, check_method
from trt_sam.engine.inspector import inspect_engine
from trt_sam.engine.job import BuildJob, MakeCalibrator
from trt_sam.engine.layers import KernelSummary, Layer, parse_layers, summarize_layers
from trt_sam.engine.profiles import add_profiles
from trt_sam.engine.tuning import apply_tuning
from trt_sam.errors import BuildError
from trt_sam.graph.advice import EXPORT_FOR_GPU
from trt_sam.machine.driver import current_gpu, gpu_compute_capability
from trt_sam.progress import Progress
from trt_sam.recipe import EngineRecipe

__all__ = ["BuildResult", "build_engine"]

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildResult:
    """An engine and what is known about it."""

    engine: bytes
    """The serialized engine; only its manifest says where it may run."""
    kernels: tuple[KernelSummary, ...]
    """One per optimization profile: of the list that RTX logs, or by the engine inspector of TensorRT 10 and 11."""
    layers: tuple[Layer, ...]
    seconds: float
    """Wall time of the build alone, parsing included."""
    compute_capabilities: tuple[str, ...]
    """What it was built for; empty is RTX's default, every GPU that RTX supports from 8.0."""
    warnings: tuple[str, ...]
    calibration_cache: bytes | None = None
    """What TensorRT 10 wrote after calibrating by itself; None where it did not."""


def build_engine(
    onnx_path: str | os.PathLike[str],
    recipe: EngineRecipe,
    *,
    flavour: Flavour,
    progress: Progress | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    make_calibrator: MakeCalibrator | None = None,
    device: int = 0,
) -> BuildResult:
    """Build an engine from a graph in which every type is decided.

    The build runs on a thread of its own, so that Ctrl-C is noticed while TensorRT is busy: it then stops at its next step.

    Args:
        onnx_path: the graph; its weights may lie beside it as external data.
        recipe: profiles, compute capabilities, streams, compatibility and the method of quantization; its `graph` and
            `checkpoint` are not looked at.
        flavour: the TensorRT that builds.
        progress: called with (fraction, phase), from the building thread. What it raises stops the build and is raised here.
        timing_cache: file of kernel timings, read where it exists and written at the end (TensorRT 10 and 11 only).
        make_calibrator: for `quantization.method = "implicit"`, which needs TensorRT 10 and a graph of float32; what its
            calibrator fails with stops the build and is raised here.
        device: number of the GPU that builds and calibrates; TensorRT-RTX needs none, and takes none but 0.

    Raises:
        BuildError: the graph cannot be parsed or built, or the recipe asks for what this flavour cannot do.
        InputError: the graph cannot be read, the timing cache cannot be read or written, or there is no such GPU.
        KeyboardInterrupt: the user pressed Ctrl-C; nothing was written.
    """
    path = existing_file(onnx_path, "ONNX graph")
    if timing_cache is not None and not flavour.has_timing_cache:
        raise BuildError(f"{flavour.title} times no kernels, so it has no timing cache; leave the timing cache out")
    check_method(recipe, make_calibrator, flavour)
    if device and not flavour.needs_gpu_to_build:
        raise BuildError(f"{flavour.title} builds on no GPU; leave the number of the GPU out")
    capabilities = tuple(dict.fromkeys(recipe.compute_capabilities))
    for value in capabilities:
        flavour.compute_capability(value)
    cache = Path(timing_cache) if timing_cache is not None else None
    job = BuildJob(path, recipe, flavour, capabilities, progress, cache, make_calibrator, threading.Event(), device)
    return _on_own_thread(lambda: _build_there(job), job.stop)


def _build_there(job: BuildJob) -> BuildResult:
    if not job.flavour.needs_gpu_to_build:
        return _build(job)
    with current_gpu(job.device):
        return _build(job)


def _build(job: BuildJob) -> BuildResult:
    flavour, trt = job.flavour, job.flavour.trt
    started = time.perf_counter()
    logger = make_logger(trt)
    builder = _make_builder(flavour, logger)
    network = builder.create_network(flavour.network_flags if job.make_calibrator is None else 0)  # 0: weakly typed
    parser = trt.OnnxParser(network, logger)
    _parse(parser, network, job.path, flavour)
    _log.debug("%s parsed %s: %d layers", flavour.title, job.path, network.num_layers)
    config = builder.create_builder_config()
    _configure(config, job)
    add_profiles(builder, config, network, job.recipe.profiles, job.path)
    if job.timing_cache is not None:
        _take_timings(config, job.timing_cache)
    config.progress_monitor = monitor = make_monitor(trt, job.progress, job.stop)
    calibrator = None
    if job.make_calibrator is not None:
        calibrator = add_calibrator(builder, config, network, job, job.make_calibrator)
    try:
        plan = builder.build_serialized_network(network, config)
    finally:
        if calibrator is not None:
            calibrator.close()
    if calibrator is not None and calibrator.failure is not None:
        raise calibrator.failure
    if monitor.failure is not None:
        raise monitor.failure
    if job.stop.is_set():
        raise KeyboardInterrupt
    if plan is None:
        raise BuildError(_failure(job, logger.errors))
    engine = bytes(memoryview(plan))
    if job.timing_cache is not None:
        write_atomically(job.timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))
    built_for = job.capabilities
    if flavour.needs_gpu_to_build and (here := gpu_compute_capability(job.device)) is not None:
        built_for = (here,)
    told = logger.layer_list or not flavour.needs_gpu_to_build
    layers, warnings = _layers(logger) if told else _inspected(job, logger, engine)
    written = None
    if calibrator is not None:
        warnings, written = (*calibrator.warnings, *warnings), calibrator.written
    seconds = time.perf_counter() - started
    _log.debug("built in %.1f s: %d bytes, %d layers", seconds, len(engine), len(layers))
    for warning in warnings:
        _log.debug("%s", warning)
    return BuildResult(engine, summarize_layers(layers), layers, seconds, built_for, warnings, written)


def _take_timings(config: Any, timing_cache: Path) -> None:
    """Start from the timings that are kept, or from none where they are another GPU's, another version's or no timings."""
    for known in (timing_cache.read_bytes() if timing_cache.exists() else b"", b""):
        cache = config.create_timing_cache(known)  # None for what is no timing cache
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _make_builder(flavour: Flavour, logger: Any) -> Any:
    try:
        return flavour.trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        reason = "; ".join(logger.errors) or in_words(str(error))
        need = (
            "it needs an NVIDIA GPU with its driver; use --backend rtx where there is none"
            if flavour.needs_gpu_to_build
            else reason
        )
        raise BuildError(f"{flavour.title} cannot start its builder ({reason}): {need}") from error


def _parse(parser: Any, network: Any, path: Path, flavour: Flavour) -> None:
    parsed = parser.parse_from_file(str(path))
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if parsed and not errors and network.num_outputs:
        return
    if not errors or errors[0].node() < 0:
        words = in_words(errors[0].desc()) if errors else "it declares no outputs"
        raise BuildError(f"{flavour.title} cannot read {path} as ONNX ({words}); export it again with {EXPORT_FOR_GPU}")
    error = errors[0]
    where = f"node {error.node_name() or error.node()!r} ({error.node_operator()})"
    words = in_words(error.desc())
    if "Plugin not found" in words:
        words = f"it has no operation {error.node_operator()!r}"
    raise BuildError(f"{flavour.title} cannot parse {path} at {where}: {words}; export the graph again with {EXPORT_FOR_GPU}")


def _configure(config: Any, job: BuildJob) -> None:
    recipe, capabilities, flavour, trt = job.recipe, job.capabilities, job.flavour, job.flavour.trt
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, value in enumerate(capabilities):
            config.set_compute_capability(flavour.compute_capability(value), index)
    if flavour.needs_user_allocation:
        # Our CUDA graphs record only engines that allocate nothing of their own; the runner gives them their memory anyway.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    apply_tuning(config, recipe.tuning, flavour)
    if recipe.max_aux_streams is not None:
        config.max_aux_streams = recipe.max_aux_streams
    if not flavour.has_compatibility_modes and (recipe.version_compatible or recipe.hardware_compatible):
        raise BuildError(
            f"{flavour.title} builds no version- or hardware-compatible engines; take version_compatible and "
            "hardware_compatible out of the recipe and list compute_capabilities instead"
        )
    if recipe.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if recipe.any_model:
        if not flavour.has_any_model_mode:
            raise BuildError(f"{flavour.title} cannot build for all models of a compute capability; take any_model out")
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if recipe.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _layers(logger: Any) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    warnings = tuple(logger.warnings)
    if not logger.layer_list:
        return (), warnings
    try:
        return parse_layers(logger.layer_list), warnings
    except ValueError as error:
        # Another version may print the list in another way; the engine is as good without the counts.
        return (), (*warnings, f"the layer list was not understood, so kernels are not counted: {error}")


def _inspected(job: BuildJob, logger: Any, engine: bytes) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    warnings = tuple(logger.warnings)
    try:
        host_code = job.recipe.version_compatible
        return inspect_engine(job.flavour.trt, logger, engine, host_code=host_code), warnings
    except Exception as error:  # whatever TensorRT's inspector does, the engine is as good without the counts
        return (), (*warnings, f"the engine's layers could not be read, so kernels are not counted: {error}")


def _failure(job: BuildJob, errors: list[str]) -> str:
    reason = "; ".join(dict.fromkeys(errors)) or "it gave no reason"
    advice = "simplify the graph or try another precision or TensorRT"
    if "HW-specific datatypes" in reason:
        advice = "leave those compute capabilities out, or build another precision for them"
    elif "memory" in reason.lower():
        advice = "close what else uses the memory, or give the profiles a smaller max"
    target = f" for compute capability {', '.join(job.capabilities)}" if job.capabilities else ""
    return f"{job.flavour.title} cannot build {job.path}{target}: {reason}; {advice}"


def _on_own_thread(work: Callable[[], Result], stop: threading.Event) -> Result:
    """Run `work` and return or raise what it does; Ctrl-C sets `stop`, waits for `work` and is raised."""
    results: list[Result] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            # The traceback keeps TensorRT's objects. Were they freed on another thread, which holds the GIL while it waits for
            # TensorRT's lock, a build that logs, and so holds the lock while it waits for the GIL, would never end.
            traceback.clear_frames(error.__traceback__)
            failures.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="trt_sam.engine.builder").start()
    interrupted = False
    while not done.is_set():
        try:
            # Not Thread.join: interrupted, CPython 3.11 takes the thread for ended (bpo-45274); leaving it crashes TensorRT.
            while not done.wait(0.1):
                pass
        except KeyboardInterrupt:
            interrupted = True
            stop.set()
    if interrupted:
        raise KeyboardInterrupt
    if failures:
        raise failures.pop()
    return results[0]
