"""Nodes of two graphs of one decoder, and which tensors of them are the same."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from trt_sam.gate.graphs import matched_tensors


def graph(*, half: bool) -> onnx.ModelProto:
    """Labels that are padding as floats, scaled; in float16 the image is cast first, which takes the first number of a Cast."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    image = [helper.make_node("Cast", ["image"], ["narrow"], name="Cast", to=kind)] if half else []
    name = "Cast_1" if half else "Cast"
    nodes = [
        helper.make_node("Equal", ["labels", "absent"], ["is"], name="Equal"),
        *image,
        helper.make_node("Cast", ["is"], ["flag"], name=name, to=kind),
        helper.make_node("Mul", ["flag", "factor"], ["bias"], name="Mul"),
        helper.make_node("Add", ["bias", "narrow" if half else "image"], ["sum"], name="Add"),
    ]
    stored = [
        helper.make_tensor("absent", TensorProto.FLOAT, [], [-2.0]),
        helper.make_tensor("factor", kind, [], [-30000.0]),
    ]
    inputs = [helper.make_tensor_value_info(each, TensorProto.FLOAT, [3]) for each in ("labels", "image")]
    made = helper.make_graph(nodes, "made", inputs, [helper.make_tensor_value_info("sum", kind, [3])], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_a_cast_is_known_by_what_it_casts() -> None:
    matched = matched_tensors(graph(half=False), graph(half=True))
    assert [(each.node, each.reference, each.candidate) for each in matched] == [
        ("Cast", "flag", "flag"),
        ("Mul", "bias", "bias"),
        ("Add", "sum", "sum"),
    ]
