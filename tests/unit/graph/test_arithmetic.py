"""Counts of small graphs done by hand, and the decoder's forms against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from trt_sam.errors import GraphError
from trt_sam.graph.arithmetic import count_graph
from trt_sam.model import SamDecoder
from trt_sam.model.fused import FormOptions, for_target, fuse

DIMS = {"num_prompts": 1, "num_points": 2}


def make_graph(nodes: list[Any], inputs: dict[str, list[Any]], outputs: list[str], weights: dict[str, Any]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", values, results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_products_by_hand() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Gemm", ["w", "w"], ["g"], transA=1),
    ]
    model = make_graph(nodes, {"x": ["n", 3, 4]}, ["z", "g"], {"w": np.zeros((4, 4), np.float32)})
    counted = count_graph(model, {"n": 5})
    assert counted.kinds["MatMul"].multiply_adds == 5 * 3 * 4 * 4
    assert counted.kinds["Gemm"].multiply_adds == 4 * 4 * 4
    assert counted.kinds["MatMul"].bytes_moved == 4 * (60 + 16 + 60)
    assert counted.kinds["Relu"].bytes_moved == 4 * (60 + 60)
    assert counted.kinds["Gemm"].bytes_moved == 4 * (16 + 16)  # one tensor used twice is read once
    assert (counted.nodes, counted.multiply_adds, counted.gflop) == (3, 304, 608e-9)
    assert count_graph(model, {"n": 10}).kinds["MatMul"].multiply_adds == 480


def test_convolutions_by_hand() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], kernel_shape=[2, 2], group=2),
        helper.make_node("ConvTranspose", ["y", "t"], ["z"], strides=[2, 2], kernel_shape=[2, 2]),
    ]
    weights = {"w": np.zeros((6, 2, 2, 2), np.float32), "t": np.zeros((6, 3, 2, 2), np.float32)}
    counted = count_graph(make_graph(nodes, {"x": [1, 4, 8, 8]}, ["z"], weights), {})
    assert counted.kinds["Conv"].multiply_adds == (6 * 4 * 4) * (2 * 2 * 2)
    assert counted.kinds["ConvTranspose"].multiply_adds == (3 * 8 * 8) * 6  # stride 2: one kernel cell per output pixel


def test_views_are_free_and_lookups_read_what_they_write() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Reshape", ["x", "flat"], ["r"]),
        helper.make_node("Reshape", ["r", "s"], ["x2"]),
        helper.make_node("Gather", ["table", "index"], ["rows"]),
    ]
    weights = {
        "flat": np.array([-1], np.int64),
        "table": np.zeros((1000, 4), np.float32),
        "index": np.array([1, 2], np.int64),
    }
    counted = count_graph(make_graph(nodes, {"x": ["n", 3]}, ["x2", "rows"], weights), {"n": 2})
    assert list(counted.kinds) == ["Gather"]
    assert counted.kinds["Gather"].bytes_moved == 2 * 4 * 4 + 2 * 8 + 2 * 4 * 4


def test_inputs_that_decide_shapes_take_their_values() -> None:
    sizes = helper.make_node("Concat", ["front", "size"], ["sizes"], axis=0)
    resize = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear")
    model = make_graph([sizes, resize], {"x": ["n", 4, 8, 8]}, ["y"], {"front": np.array([1, 4], np.int64)})
    model.graph.input.append(helper.make_tensor_value_info("size", TensorProto.INT64, [2]))
    counted = count_graph(model, {"n": 1}, {"size": [30, 50]})
    assert counted.kinds["Resize"].bytes_moved == 4 * (4 * 8 * 8 + 4 * 30 * 50) + 4 * 8
    with pytest.raises(GraphError, match="shape of 'y' at node 'Resize' cannot be inferred"):
        count_graph(model, {"n": 1})


def test_products_are_named_as_tensorrt_names_them() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["y"], name="first"),
        helper.make_node("MatMul", ["y", "x"], ["z"]),
        helper.make_node("Relu", ["z"], ["r"], name="last"),
    ]
    counted = count_graph(make_graph(nodes, {"x": [3, 3]}, ["r"], {}), {})
    assert counted.products == {"first": 27, "node_of_z": 27}


def test_result_is_json_and_the_graph_is_not_changed(tmp_path: Path) -> None:
    model = make_graph([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n"]}, ["y"], {})
    before = model.SerializeToString()
    path = tmp_path / "g.onnx"
    onnx.save(model, str(path))
    data = json.loads(json.dumps(count_graph(path, {"n": 7}).to_dict()))
    assert data == count_graph(model, {"n": 7}).to_dict()
    assert data["kinds"] == {"Relu": {"nodes": 1, "multiply_adds": 0, "bytes": 56}}
    assert (data["dims"], data["bytes"], data["nodes"]) == ({"n": 7}, 56, 1)
    assert model.SerializeToString() == before


def test_what_cannot_be_counted_says_why(tmp_path: Path) -> None:
    model = make_graph([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n"]}, ["y"], {})
    with pytest.raises(GraphError, match="x has n, which needs a size"):
        count_graph(model, {})
    with pytest.raises(GraphError, match="no input has the dimension 'm'"):
        count_graph(model, {"n": 1, "m": 2})
    with pytest.raises(GraphError, match="cannot be read: No such file"):
        count_graph(tmp_path / "none.onnx", {})
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(GraphError, match="not an ONNX file"):
        count_graph(tmp_path / "text.onnx", {})
    einsum = make_graph([helper.make_node("Einsum", ["x", "x"], ["y"], equation="i,i->i")], {"x": [2]}, ["y"], {})
    with pytest.raises(GraphError, match="Einsum, whose arithmetic is not known"):
        count_graph(einsum, {})
    mismatch = make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], {"x": ["n", 3]}, ["y"], {})
    with pytest.raises(GraphError, match="do not fit"):
        count_graph(mismatch, {"n": 2})


def export(module: nn.Module, path: Path) -> Path:
    feed = (torch.randn(1, 256, 64, 64), torch.rand(3, 4, 2), torch.ones(3, 4))
    prompts, points = torch.export.Dim("num_prompts"), torch.export.Dim("num_points")
    torch.onnx.export(
        module,
        feed,
        str(path),
        dynamo=True,
        dynamic_shapes=({}, {0: prompts, 1: points}, {0: prompts, 1: points}),
        input_names=["image_embeddings", "point_coords", "point_labels"],
        opset_version=20,
        verbose=False,
    )
    return path


@pytest.mark.slow  # two exports
def test_forms_of_the_decoder(tmp_path: Path) -> None:
    decoder = SamDecoder().eval().requires_grad_(False)
    meta = FormOptions("plain", *[False] * 5)
    plain = count_graph(export(fuse(decoder, meta), tmp_path / "plain.onnx"), DIMS)
    path = export(fuse(decoder, for_target("cpu")), tmp_path / "cpu.onnx")
    absorbed = count_graph(path, DIMS)
    assert plain.gflop == pytest.approx(3.6, abs=0.1)
    assert absorbed.gflop <= 2.1
    assert "ConvTranspose" in plain.kinds
    assert "ConvTranspose" not in absorbed.kinds
    # 16 prompts share layer 1's image side in bytes, not in multiply-adds.
    many = count_graph(path, {"num_prompts": 16, "num_points": 2})
    assert many.multiply_adds == pytest.approx(16 * absorbed.multiply_adds, rel=0.01)
    assert many.bytes_moved < 16 * absorbed.bytes_moved
