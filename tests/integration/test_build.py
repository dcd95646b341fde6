"""Real TensorRT-RTX builds, ahead of time and without a GPU, through the library."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest

from tests.fixtures.exports import random_graph
from trt_sam.engine.builder import build_engine
from trt_sam.engine.flavour import Flavour, load_flavour
from trt_sam.errors import BuildError
from trt_sam.recipe import EngineRecipe, GraphOptions, ShapeProfile

GPUS = ("8.6", "8.9", "12.0")
ONE_CLICK = ShapeProfile(num_prompts=(1, 1, 1), num_points=(2, 2, 2), height=(1080, 1080, 1080), width=(1920, 1920, 1920))

GRAPHS = {
    "fp16": GraphOptions(precision="fp16"),
    "fp32": GraphOptions(precision="fp32"),
    "fp16 with mask, size and bits": GraphOptions(precision="fp16", mask_input=True, full_resolution=True, mask_bits=True),
    "fp32 with mask and size": GraphOptions(precision="fp32", mask_input=True, full_resolution=True),
}


@pytest.fixture(scope="session")
def graph() -> Path:
    """The FP16 graph, for tests that any graph will do."""
    return random_graph(GRAPHS["fp16"])


@pytest.fixture(scope="session")
def rtx() -> Flavour:
    return load_flavour("rtx")


FULL = [pytest.param(name, marks=() if name == "fp16 with mask, size and bits" else pytest.mark.slow) for name in GRAPHS]
"""That with every output and input builds in `make test`."""


@pytest.mark.parametrize("name", FULL)
def test_every_graph_builds_dynamic_and_static_for_every_gpu(name: str, rtx: Flavour) -> None:
    path, attentions = random_graph(GRAPHS[name]), 7 if GRAPHS[name].precision == "fp16" else 0
    dynamic = build_engine(path, EngineRecipe(compute_capabilities=GPUS), flavour=rtx)
    static = build_engine(path, EngineRecipe(profiles=(ONE_CLICK,), compute_capabilities=("8.9",)), flavour=rtx)
    for build, sizes in ((dynamic, -1), (static, 1)):
        (summary,) = build.kernels
        assert summary.fused_attentions == attentions
        assert 20 <= summary.matrix_products <= summary.kernels <= 200
        assert len(build.engine) > 5_000_000
        labels = next(t for layer in build.layers for t in layer.inputs if t.name == "point_labels")
        assert labels.dims[0] == sizes
    assert (dynamic.compute_capabilities, static.compute_capabilities) == (GPUS, ("8.9",))
    assert dynamic.warnings == static.warnings == ()


@pytest.mark.parametrize("gpu", GPUS)
def test_a_single_gpu_can_be_built_for(gpu: str, graph: Path, rtx: Flavour) -> None:
    build = build_engine(graph, EngineRecipe(compute_capabilities=(gpu, gpu)), flavour=rtx)
    assert build.compute_capabilities == (gpu,)
    assert build.kernels[0].fused_attentions == 7


def test_rtx_does_not_compile_a_decoder_for_turing(graph: Path, rtx: Flavour) -> None:
    """Though it lists 7.5: a manifest's advice for such a GPU is the other TensorRT."""
    with pytest.raises(BuildError, match=r"for compute capability 7\.5: .*FP32 GEMM is not supported"):
        build_engine(graph, EngineRecipe(compute_capabilities=("7.5",)), flavour=rtx)


def test_profiles_are_built_and_counted_one_by_one(graph: Path, rtx: Flavour) -> None:
    recipe = EngineRecipe(profiles=(ShapeProfile(), ONE_CLICK), compute_capabilities=("8.9",))
    dynamic, static = build_engine(graph, recipe, flavour=rtx).kernels
    assert dynamic.fused_attentions == static.fused_attentions == 7
    assert dynamic != static
    alone = build_engine(graph, dataclasses.replace(recipe, profiles=(ONE_CLICK,)), flavour=rtx)
    assert alone.kernels == (static,)


def test_progress_rises_to_one(graph: Path, rtx: Flavour) -> None:
    seen: list[float] = []
    recipe = EngineRecipe(profiles=(ONE_CLICK,), compute_capabilities=("8.9",))
    build_engine(graph, recipe, flavour=rtx, progress=lambda fraction, phase: seen.append(fraction))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)


def test_what_progress_raises_stops_the_build(graph: Path, rtx: Flavour) -> None:
    calls = []

    def fail(fraction: float, phase: str) -> None:
        calls.append(phase)
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        build_engine(graph, EngineRecipe(), flavour=rtx, progress=fail)
    assert len(calls) == 1


def test_ctrl_c_in_the_library_is_a_keyboard_interrupt(graph: Path, rtx: Flavour) -> None:
    calls = []

    def press(fraction: float, phase: str) -> None:
        calls.append(phase)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # the main thread has to wake up

    # A run of tests in the background is started with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(graph, EngineRecipe(), flavour=rtx, progress=press)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(calls) == 3
