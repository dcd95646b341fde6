"""The kernels that TensorRT-RTX makes of the GPU form in FP16 without a mask input, from its layer list; nothing is timed.

The counts hold for one version of the builder. Another one may fuse more or less: look before a bound is changed.
"""

from __future__ import annotations

import collections
import re
from pathlib import Path

import onnx
import pytest

from tests.fixtures.exports import random_graph
from tests.fixtures.pinned_rtx import pinned_rtx
from trt_sam.engine.builder import BuildResult, build_engine
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.kernel_cost import GPUS, kernel_costs, model_time, unplaced_products
from trt_sam.engine.layers import Layer
from trt_sam.graph.arithmetic import count_graph
from trt_sam.graph.full_resolution import append_full_resolution
from trt_sam.graph.mask_bits import append_mask_bits
from trt_sam.recipe import EngineRecipe, GraphOptions, ShapeProfile


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return pinned_rtx()


@pytest.fixture(scope="module")
def graph() -> Path:
    return random_graph(GraphOptions(precision="fp16", target="gpu"))


def build(graph: Path, rtx: Flavour, profile: ShapeProfile, gpu: str = "8.9") -> BuildResult:
    return build_engine(graph, EngineRecipe(profiles=(profile,), compute_capabilities=(gpu,)), flavour=rtx)


def fixed(prompts: int, points: int) -> ShapeProfile:
    return ShapeProfile((prompts,) * 3, (points,) * 3)


@pytest.mark.parametrize(("profile", "bound"), [(fixed(1, 2), 53), (fixed(16, 2), 58), (ShapeProfile(), 58)])
def test_kernels_of_the_gpu_form(profile: ShapeProfile, bound: int, graph: Path, rtx: Flavour) -> None:
    result = build(graph, rtx, profile)
    (kernels,) = result.kernels
    assert kernels.kernels <= bound
    assert kernels.fused_attentions == 7
    assert kernels.waits == 0
    assert kernels.convolutions == 0
    assert not {"deconv", "signal", "wait"} & set(kernels.by_type)
    assert kernels.int8_products == kernels.fp8_products == 0


def test_taking_many_points_changes_no_kernel(graph: Path, rtx: Flavour) -> None:
    """Room for 30 clicks is free: what is tuned for two points is the same as where eight are the most."""
    wide, narrow = (build(graph, rtx, ShapeProfile(num_points=(1, 2, most))) for most in (32, 8))
    assert [_described(layer) for layer in wide.layers] == [_described(layer) for layer in narrow.layers]
    assert len(wide.engine) < 1.01 * len(narrow.engine)


def _described(layer: Layer) -> tuple[object, ...]:
    """A layer without the numbers of its tensors and the hash of its source, which name the range of points."""
    tensors = [(tensor.dims, tensor.dtype, tensor.format) for tensor in (*layer.inputs, *layer.outputs)]
    tactic = re.sub(r"_0x[0-9a-f]+\w*", "", layer.tactic)
    return re.sub(r"\d+", "", layer.name), layer.type, re.sub(r"\d+", "", tactic), tensors


@pytest.mark.parametrize("profile", [fixed(1, 2), ShapeProfile()])
def test_bits_join_the_kernel_that_writes_the_masks(profile: ShapeProfile, graph: Path, rtx: Flavour, tmp_path: Path) -> None:
    model = onnx.load(graph)
    append_mask_bits(model)
    onnx.save(model, tmp_path / "bits.onnx")
    before, after = build(graph, rtx, profile), build(tmp_path / "bits.onnx", rtx, profile)
    assert after.kernels[0].kernels == before.kernels[0].kernels
    (writer,) = (layer for layer in after.layers for tensor in layer.outputs if tensor.name == "mask_bits")
    assert {tensor.name: tensor.dtype for tensor in writer.outputs} == {"mask_bits": "UInt8", "low_res_masks": "Half"}


@pytest.mark.parametrize("size", [ShapeProfile(height=(333,) * 3, width=(501,) * 3), ShapeProfile()])
def test_bits_at_full_resolution_are_one_kernel_at_most(size: ShapeProfile, graph: Path, rtx: Flavour, tmp_path: Path) -> None:
    model = onnx.load(graph)
    append_full_resolution(model)
    onnx.save(model, tmp_path / "full.onnx")
    append_mask_bits(model)
    onnx.save(model, tmp_path / "bits.onnx")
    before, after = (build(tmp_path / name, rtx, size).kernels[0].kernels for name in ("full.onnx", "bits.onnx"))
    assert before <= after <= before + 1


def test_the_gpu_form_is_the_same_on_other_gpus(graph: Path, rtx: Flavour) -> None:
    (kernels,) = build(graph, rtx, fixed(1, 2), gpu="8.6").kernels
    assert (kernels.kernels <= 53, kernels.fused_attentions) == (True, 7)


def test_every_product_is_in_one_kernel_and_is_priced(graph: Path, rtx: Flavour) -> None:
    counted = count_graph(graph, {"num_prompts": 1, "num_points": 2})
    assert counted.gflop == pytest.approx(3.63, abs=0.03)
    layers = build(graph, rtx, fixed(1, 2)).layers
    assert unplaced_products(layers, counted.products) == {}
    named = collections.Counter(name for layer in layers for name in layer.onnx_nodes if name in counted.products)
    assert set(named.values()) == {1}
    costs = kernel_costs(layers, counted.products)
    assert sum(cost.flop for cost in costs) == 2 * counted.multiply_adds
    assert sum(cost.bytes for cost in costs) < counted.bytes_moved / 2  # fusion saves more than half of the traffic
    # Only the last products of the heads, with one row each, are sums on the vector units.
    assert max(cost.flop for cost in costs if cost.unit == "vector") < 1e6
    for gpu in GPUS:
        time = model_time(costs, gpu)
        assert len(costs) * 2e-6 <= time.seconds < 200e-6
        assert time.arithmetic_bound == 0
