"""The parser of the builder's layer list, on lines that TensorRT-RTX 1.7.1.116 logged (picked from four builds)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trt_sam.engine.layers import KernelSummary, Layer, LayerTensor, parse_layers, product_types, summarize_layers

MESSAGE = (Path(__file__).parent / "data" / "layer_list.txt").read_text()


def test_a_line_becomes_a_layer_with_its_tensors() -> None:
    layer = next(layer for layer in parse_layers(MESSAGE) if layer.name == "mm_myl0_2" and layer.reads("Int8"))
    assert layer.type == "gemm"
    assert layer.inputs == (LayerTensor("q.1_myl0", (-1, 256), "Int8", "(Linear) Row major linear format"),)
    assert [tensor.dtype for tensor in layer.constants] == ["Int8", "Float", "Float"]
    assert [tensor.dims for tensor in layer.outputs] == [(-1, 256)]
    assert layer.tactic == "__myelin_CASK_STUB"
    assert layer.onnx_nodes == ("mm", "dq", "wdq", "relu", "wq")


def test_no_tensor_and_no_node_is_lost() -> None:
    layers = parse_layers(MESSAGE)
    assert sum(len(layer.inputs + layer.constants + layer.outputs) for layer in layers) == MESSAGE.count("{ Name: ")
    assert sum(len(layer.onnx_nodes) for layer in layers) == MESSAGE.count("[ONNX Layer: ")


def test_kernels_are_counted_per_profile() -> None:
    first, second = summarize_layers(parse_layers(MESSAGE))
    assert first == KernelSummary(
        kernels=10,
        matrix_products=3,
        convolutions=1,
        fused_attentions=1,
        int8_products=1,
        fp8_products=1,
        casts=1,
        biased_moves=1,
        host_calls=1,
        by_type={"deconv": 1, "gemm": 2, "kgen": 6, "runtime_fusion": 1, "shape_call": 1},
        precisions={"FP8": 1, "Half": 3, "Int8": 1},
    )
    assert second == KernelSummary(
        kernels=4, matrix_products=1, fused_attentions=1, layout_moves=1, by_type={"gemm": 1, "kgen": 3}, precisions={"Half": 2}
    )


def test_waits_are_no_kernels() -> None:
    lines = "Layers:\nName: a_myl0_0, LayerType: signal, Inputs: [], Outputs: []\nName: b_myl0_1, LayerType: wait, Inputs: []\n"
    (summary,) = summarize_layers(parse_layers(lines))
    assert (summary.kernels, summary.waits) == (0, 2)


@pytest.mark.parametrize(
    ("name", "move", "cast", "biased"),
    [
        ("__myl_ReshTranMove_myl0_1", True, False, False),
        ("__myl_CastTran_myl0_1", False, True, False),
        ("__myl_AddReshTranMulMove_myl0_1", False, False, True),
        ("__myl_AddAddTran_myl0_1", False, False, False),
        ("__myl_ReshEtc_myl0_1", False, False, False),
        ("_gemm_mha_v2_myl0_1", False, False, False),
    ],
)
def test_what_counts_as_a_move(name: str, move: bool, cast: bool, biased: bool) -> None:
    layer = Layer(name, "kgen")
    assert (layer.is_layout_move, layer.is_cast, layer.is_biased_move) == (move, cast, biased)


def test_int8_weights_alone_are_no_int8_product() -> None:
    half, int8 = LayerTensor("x", (1, 4), "Half", "f"), LayerTensor("w", (4, 4), "Int8", "f")
    (summary,) = summarize_layers([Layer("mm_myl0_0", "gemm", inputs=(half,), constants=(int8,))])
    assert (summary.matrix_products, summary.int8_products) == (1, 0)


def test_product_types_are_those_of_the_activations() -> None:
    half, int8 = LayerTensor("x", (1, 4), "Half", "f"), LayerTensor("w", (4, 4), "Int8", "f")
    layers = [
        Layer("a+b_myl0_0", "gemm", inputs=(int8,), onnx_nodes=("a", "b", "a/Dequantize")),
        Layer("__myl_MulAdd_myl0_1", "kgen", inputs=(half,), onnx_nodes=("a",)),
        Layer("__myl_FcAdd_myl0_2", "runtime_fusion", inputs=(half,), constants=(int8,), onnx_nodes=("c", "c")),
        Layer("a+b_myl1_0", "gemm", inputs=(half,), onnx_nodes=("a",)),
    ]
    assert product_types(layers) == {"a": ("Int8", "Half"), "b": ("Int8",), "a/Dequantize": ("Int8",), "c": ("Half",)}
    assert product_types(parse_layers(MESSAGE))["wdq"] == ("Int8", "FP8")  # of two builds


def test_a_summary_survives_json() -> None:
    for summary in summarize_layers(parse_layers(MESSAGE)):
        assert KernelSummary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary


@pytest.mark.parametrize(
    "wrong", [{"kernels": -1}, {"kernels": "4"}, {"kernels": True}, {"nonsense": 1}, {"by_type": {"gemm": 0.5}}]
)
def test_a_damaged_summary_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        KernelSummary.from_dict(wrong)


@pytest.mark.parametrize("message", ["", "Name: a, LayerType: gemm", "Layers:\nKernel: a\n", "Layers:\nName: a, Inputs: []\n"])
def test_another_form_is_refused_rather_than_miscounted(message: str) -> None:
    with pytest.raises(ValueError, match="layer list"):
        parse_layers(message)
