"""The engine inspector's answer as layers: in the spellings of several versions, and what is no answer."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from trt_sam.engine.inspector import inspect_engine, parse_inspection
from trt_sam.engine.layers import KernelSummary, summarize_layers

TOLD = {
    "Layers": [
        {
            "Name": "__myl_FcAdd_myl0_3",
            "LayerType": "runtime_fusion",
            "Inputs": [{"Name": "a", "Dimensions": [1, 4096, 256], "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "b", "Dimensions": [1, 4096, 256], "Format/Datatype": "Half"}],
            "TacticName": "sm90_gemm",
            "Metadata": "[ONNX Layer: first/MatMul]\u001e[ONNX Layer: first/Add]",
        },
        {
            "Name": "_gemm_mha_v2_myl0_4",
            "LayerType": "kgen",
            "Inputs": [{"Name": "q", "Dimensions": [8], "Datatype": "Half"}],
        },
        {"Name": "quantized_myl0_5", "LayerType": "gemm", "Inputs": [{"Name": "c", "Dimensions": [], "Datatype": "Int8"}]},
        {"Name": "single_myl0_6", "LayerType": "gemm", "Inputs": [{"Name": "c", "Format/Datatype": "Four wide channel FP32"}]},
        "only a name",
    ],
    "Bindings": ["point_coords"],
}


def test_layers_precisions_and_fusions() -> None:
    layers = parse_inspection(json.dumps(TOLD))
    assert [layer.name for layer in layers][-1] == "only a name"
    assert layers[0].onnx_nodes == ("first/MatMul", "first/Add")
    assert (layers[0].inputs[0].dims, layers[0].tactic) == ((1, 4096, 256), "sm90_gemm")
    (summary,) = summarize_layers(layers[:-1])
    assert (summary.kernels, summary.matrix_products, summary.fused_attentions, summary.int8_products) == (4, 3, 1, 1)
    assert summary.precisions == {"Float": 1, "Half": 2, "Int8": 1}
    assert KernelSummary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary


@pytest.mark.parametrize("told", ["", "{}", "[]", '{"Layers": 3}', '{"Layers": [{}]}', '{"Layers": [3]}'])
def test_what_is_no_answer_is_told(told: str) -> None:
    with pytest.raises(ValueError, match="inspector"):
        parse_inspection(told)


@pytest.mark.parametrize("host_code", [False, True])
def test_an_engine_is_opened_as_it_was_built(host_code: bool) -> None:
    seen: list[Any] = []

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: object) -> None:
            seen.append(logger)

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            seen.append((plan, self.engine_host_code_allowed))
            inspector = SimpleNamespace(get_engine_information=lambda form: json.dumps(TOLD) if form == "JSON" else "")
            return SimpleNamespace(create_engine_inspector=lambda: inspector) if plan == b"engine" else None

    trt = SimpleNamespace(Runtime=Runtime, LayerInformationFormat=SimpleNamespace(JSON="JSON"))
    assert len(inspect_engine(trt, "logger", b"engine", host_code=host_code)) == 5
    assert seen == ["logger", (b"engine", host_code)]
    with pytest.raises(ValueError, match="could not be opened again"):
        inspect_engine(trt, "logger", b"torn")
