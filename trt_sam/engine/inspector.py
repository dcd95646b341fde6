"""The layers of an engine that is there, by TensorRT's engine inspector: what runs in which precision on the GPU that built it.

TensorRT-RTX logs its layers while it builds, without a GPU (`layers`); TensorRT 10 and 11 tell them of an opened engine only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from trt_sam.engine.layers import Layer, LayerTensor

__all__ = ["inspect_engine", "parse_inspection"]

_DTYPES = (
    ("Int8", r"int8"),
    ("FP8", r"fp8|float8"),
    ("BF16", r"bf16|bfloat16"),
    ("Half", r"half|fp16|float16"),
    ("Float", r"float|fp32"),
    ("Int64", r"int64"),
    ("Int32", r"int32"),
    ("Bool", r"bool"),
    ("UInt8", r"uint8"),
)
"""As `layers` spells them, and how inspectors of several versions do."""


def inspect_engine(trt: Any, logger: Any, engine: bytes, *, host_code: bool = False) -> tuple[Layer, ...]:
    """The layers of a serialized engine, which is deserialized on the current GPU.

    Args:
        trt: the binding module that built it.
        logger: its logger.
        engine: serialized.
        host_code: it is version-compatible, and brings its runtime as code.

    Raises:
        ValueError: TensorRT could not, or what it told is not understood; the message says which.
    """
    runtime = trt.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    opened = runtime.deserialize_cuda_engine(engine)
    if opened is None:
        raise ValueError("the engine could not be opened again")
    told = opened.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return parse_inspection(told)


def parse_inspection(told: str) -> tuple[Layer, ...]:
    """The layers in an inspector's JSON; raises ValueError where it is another."""
    try:
        listed = json.loads(told)["Layers"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the inspector's answer is not understood ({error!r})") from error
    if not isinstance(listed, list):
        raise ValueError(f"the inspector's Layers are {type(listed).__name__}, not a list")
    return tuple(_layer(each) for each in listed)


def _layer(told: Any) -> Layer:
    if isinstance(told, str):  # an engine that was built with names alone
        return Layer(told, "")
    if not isinstance(told, Mapping) or "Name" not in told:
        raise ValueError(f"a layer of the inspector has no name: {str(told)[:80]}")
    return Layer(
        name=str(told["Name"]),
        type=str(told.get("LayerType", "")),
        inputs=_tensors(told.get("Inputs", ())),
        constants=_tensors(told.get("Constants", ())),
        outputs=_tensors(told.get("Outputs", ())),
        tactic=str(told.get("TacticName", "")),
        onnx_nodes=tuple(re.findall(r"\[ONNX Layer: ([^\]\x1e\x1f]+)", str(told.get("Metadata", "")))),
    )


def _tensors(told: Any) -> tuple[LayerTensor, ...]:
    found = []
    for each in told or ():
        form = str(each.get("Format/Datatype", each.get("Format", "")))
        dims = tuple(int(size) for size in each.get("Dimensions", ()))
        found.append(LayerTensor(str(each.get("Name", "")), dims, _dtype(str(each.get("Datatype", form))), form))
    return tuple(found)


def _dtype(text: str) -> str:
    for dtype, pattern in _DTYPES:
        if re.search(rf"(?<![a-z]){pattern}" if dtype == "Int8" else pattern, text.lower()):
            return dtype
    return text
