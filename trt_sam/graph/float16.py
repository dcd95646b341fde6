"""Judge a float16 graph without a GPU: the same graph in float32, every float16 tensor rounded to float16 and back.

ONNX Runtime on a CPU runs float16 graphs in float32, so by itself it shows the rounding of weights but never overflow. Here
each float16 result passes through float16, products accumulate in float32 as tensor cores do, and an overflow becomes infinity
as on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_sam._lazy import require
from trt_sam.errors import GraphError

__all__ = ["Float16Emulation", "emulate_float16"]

Array = npt.NDArray[Any]
_LARGE = 2**20
"""Bytes from which a weight stays float16 and is widened at run time: ViT-H in float32 is over a protobuf's 2 GB."""
_MAGNITUDE = "largest magnitude of "


class Float16Emulation:
    """An emulated float16 graph in ONNX Runtime that keeps the largest |x| ever seen in each float16 tensor."""

    def __init__(self, graph: str | os.PathLike[str] | onnx.ModelProto, *, threads: int = 0) -> None:
        """Emulate the graph in a file, or a model; `threads` as ONNX Runtime counts them (0: all cores)."""
        ort = require("onnxruntime", "to run the float16 emulation")
        model = graph if isinstance(graph, onnx.ModelProto) else onnx.load(graph)
        settings = ort.SessionOptions()
        # The optimizer would take the Cast pairs, which are the point, for no-ops.
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.log_severity_level = 3
        settings.intra_op_num_threads = threads
        # In its own order ONNX Runtime takes the magnitudes, which end nowhere else, last, and holds every tensor until then;
        # with patterns of memory it holds them twice. Seen: 8 prompts 4,261 MB, in the graph's order without patterns 403 MB.
        settings.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        settings.enable_mem_pattern = False
        emulated = emulate_float16(model)
        self._session = ort.InferenceSession(emulated.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in emulated.graph.output]
        self.largest: dict[str, float] = {}
        """Largest |x| before rounding, by tensor name, over all calls; NaN for a tensor that ever held one."""

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one feed (as the float16 graph takes it); outputs are float32 arrays with float16 values."""
        values = dict(zip(self._names, self._session.run(None, dict(feed)), strict=True))
        for name in [n for n in values if n.startswith(_MAGNITUDE)]:
            tensor = name.removeprefix(_MAGNITUDE)
            # Not max(): a NaN must be seen, and stay.
            self.largest[tensor] = float(np.maximum(self.largest.get(tensor, 0.0), values.pop(name)))
        return values


def emulate_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the float32 emulation of a float16 `model`, with an extra scalar output per float16 tensor: its largest |x|.

    Raises:
        GraphError: the graph has no float16 tensor.
    """
    emulated = onnx.ModelProto()
    emulated.CopyFrom(model)
    graph = emulated.graph
    half = _float16_names(emulated)
    if not half:
        raise GraphError("the graph has no float16 tensor; export it with --precision fp16")
    widening = []
    for initializer in graph.initializer:
        if initializer.data_type != TensorProto.FLOAT16:
            continue
        if initializer.ByteSize() < _LARGE:
            initializer.CopyFrom(_widen(initializer))
            continue
        widening.append(helper.make_node("Cast", [f"{initializer.name} as stored"], [initializer.name], to=TensorProto.FLOAT))
        initializer.name = f"{initializer.name} as stored"
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(widening)
    for node in nodes:
        _widen_attributes(node)
        produced = [name for name in node.output if name in half]
        for index, name in enumerate(node.output):
            if name in half:
                node.output[index] = f"{name} before rounding"
        graph.node.append(node)
        for name in produced:
            graph.node.extend(_rounding(name))
            graph.output.append(helper.make_tensor_value_info(f"{_MAGNITUDE}{name}", TensorProto.FLOAT, []))
    return emulated


def _float16_names(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT16}


def _rounding(name: str) -> list[onnx.NodeProto]:
    raw, rounded, magnitude = f"{name} before rounding", f"{name} as float16", f"|{name}|"
    largest, total, broken = f"max {magnitude}", f"sum {magnitude}", f"NaN in {name}"
    return [
        helper.make_node("Cast", [raw], [rounded], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT),
        helper.make_node("Abs", [raw], [magnitude]),
        helper.make_node("ReduceMax", [magnitude], [largest], keepdims=0),
        # ONNX Runtime's ReduceMax passes over NaN; a sum of magnitudes is NaN where, and only where, one of them is.
        helper.make_node("ReduceL1", [raw], [total], keepdims=0),
        helper.make_node("IsNaN", [total], [broken]),
        helper.make_node("Where", [broken, total, largest], [f"{_MAGNITUDE}{name}"]),
    ]


def _widen(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _widen_attributes(node: onnx.NodeProto) -> None:
    """Make float16 constants and casts of a node float32."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT16:
            attribute.t.CopyFrom(_widen(attribute.t))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
