"""The FP16 emulation on a graph of two nodes: rounding, overflow, and what it says of the largest values."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from trt_sam.errors import GraphError
from trt_sam.graph.float16 import Float16Emulation


def squaring_graph(dtype: int) -> onnx.ModelProto:
    """`y` = the float32 `x` as `dtype`, squared."""
    nodes = [helper.make_node("Cast", ["x"], ["narrow"], to=dtype), helper.make_node("Mul", ["narrow", "narrow"], ["y"])]
    values = [helper.make_tensor_value_info(name, kind, [2]) for name, kind in (("x", TensorProto.FLOAT), ("y", dtype))]
    graph = helper.make_graph(nodes, "squaring", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def emulation() -> Float16Emulation:
    return Float16Emulation(squaring_graph(TensorProto.FLOAT16), threads=1)


def run(emulation: Float16Emulation, *values: float) -> list[float]:
    return emulation.run({"x": np.array(values, np.float32)})["y"].tolist()


def test_a_tensor_of_zeros_counts_as_zero_and_is_no_fault(emulation: Float16Emulation) -> None:
    """What a mask_input with flag 0 gives: the first magnitude is exactly 0."""
    assert run(emulation, 0, 0) == [0, 0]
    assert emulation.largest == {"narrow": 0, "y": 0}
    run(emulation, 3, -5)
    run(emulation, 1, 0)
    assert emulation.largest == {"narrow": 5, "y": 25}


def test_values_are_rounded_and_overflow_as_on_a_gpu(emulation: Float16Emulation) -> None:
    assert run(emulation, 0.1, 300) == [float(np.float16(np.float32(np.float16(0.1)) ** 2)), math.inf]
    assert emulation.largest == {"narrow": 300, "y": 90_000}


def test_a_nan_stays(emulation: Float16Emulation) -> None:
    run(emulation, 1, math.nan)
    run(emulation, 2, 2)
    assert all(math.isnan(value) for value in emulation.largest.values())


def test_a_graph_without_float16_is_refused() -> None:
    with pytest.raises(GraphError, match="no float16 tensor; export it with --precision fp16"):
        Float16Emulation(squaring_graph(TensorProto.FLOAT))
