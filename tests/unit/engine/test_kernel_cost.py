"""The modelled time, on kernels whose bounds are worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from trt_sam.engine.kernel_cost import GPUS, LAUNCH_SECONDS, Gpu, kernel_costs, model_time, unplaced_products
from trt_sam.engine.layers import Layer, LayerTensor

GPU = Gpu("round numbers", 1e12, {"int8": 400e12, "fp8": 400e12, "half": 100e12, "vector": 10e12})


def tensor(name: str, *dims: int, dtype: str = "Half") -> LayerTensor:
    return LayerTensor(name, dims, dtype, "Row major")


def gemm(name: str, *nodes: str, rows: int = 8, dtype: str = "Half") -> Layer:
    a, w = tensor("a", rows, 16, dtype=dtype), tensor("w", 16, 4, dtype=dtype)
    return Layer(name, "gemm", (a,), (w,), (tensor("y", rows, 4),), "tactic", nodes)


def test_bytes_are_those_of_all_tensors_once() -> None:
    (cost,) = kernel_costs([gemm("g", "mm")], {"mm": 8 * 16 * 4})
    assert cost.bytes == 2 * (8 * 16 + 16 * 4 + 8 * 4)
    assert cost.flop == 2 * 8 * 16 * 4
    (cost,) = kernel_costs([gemm("g", "mm", dtype="Int8")], {"mm": 8 * 16 * 4})
    assert cost.bytes == 8 * 16 + 16 * 4 + 2 * 8 * 4
    square = Layer("s", "gemm", (tensor("a", 4, 4), tensor("a", 4, 4)), (), (tensor("y", 4, 4),))
    assert kernel_costs([square], {})[0].bytes == 2 * (16 + 16)
    nibbles = Layer("n", "kgen", (tensor("a", 3, dtype="Int4"),), (), (tensor("b", 3, dtype="Bool"),))
    assert kernel_costs([nibbles], {})[0].bytes == 2 + 3


def test_the_type_of_the_activation_chooses_the_peak() -> None:
    attention = Layer("_gemm_mha_v2_myl0_3", "kgen", (tensor("q", 8, 7, 16), tensor("b", 1, 7, dtype="Float")))
    generated = Layer("__myl_MulSum_myl0_4", "kgen", (tensor("x", 8),), (), (), "", ("gemv",))
    fusion = Layer("__myl_FcAdd_myl0_5", "runtime_fusion", (tensor("x", 8),))
    layers = [
        gemm("f", dtype="Float"),
        gemm("h"),
        gemm("i", dtype="Int8"),
        gemm("e", dtype="FP8"),
        attention,
        generated,
        fusion,
    ]
    units = [cost.unit for cost in kernel_costs(layers, {"gemv": 8})]
    assert units == ["vector", "half", "int8", "fp8", "half", "vector", "half"]
    for gpu in GPUS:
        assert set(units) <= set(gpu.peaks)


def test_each_kernel_takes_its_largest_bound() -> None:
    (cost,) = kernel_costs([gemm("g", "mm")], {"mm": 1})
    small = dataclasses.replace(cost, bytes=1000, flop=1000)
    wide = dataclasses.replace(cost, bytes=5_000_000, flop=1000)
    deep = dataclasses.replace(cost, bytes=5_000_000, flop=700_000_000)
    quick = dataclasses.replace(deep, unit="int8")  # 400e12: 1.75 us, so its bytes bound it
    assert [c.seconds(GPU) for c in (small, wide, deep, quick)] == pytest.approx([LAUNCH_SECONDS, 5e-6, 7e-6, 5e-6])
    time = model_time([small, wide, deep, quick], GPU)
    assert time.seconds == pytest.approx(19e-6)
    assert (time.launch_bound, time.bandwidth_bound, time.arithmetic_bound) == (1, 2, 1)
    assert time.to_dict()["microseconds"] == 19.0
    assert model_time([], GPU).seconds == 0


def test_products_go_to_the_kernels_that_name_them() -> None:
    scaling = Layer("__myl_MulAdd_myl0_2", "kgen", (tensor("y", 8, 4),), (), (), "", ("one", "small", "other"))
    layers = [gemm("a", "one", "shared", "one"), gemm("b", "shared"), scaling, Layer("w", "wait", onnx_nodes=("two",))]
    products = {"one": 10, "shared": 100, "two": 7, "small": 3}
    assert [cost.flop for cost in kernel_costs(layers, products)] == [20 + 100, 100, 6]
    assert unplaced_products(layers, products) == {"two": 7}


def test_what_cannot_be_priced_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dynamic shape \[-1, 16\]"):
        kernel_costs([gemm("g", rows=-1)], {})
    with pytest.raises(ValueError, match="type Complex"):
        kernel_costs([gemm("g", dtype="Complex")], {})
