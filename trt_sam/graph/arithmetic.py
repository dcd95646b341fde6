"""Arithmetic and memory traffic of an ONNX graph, counted node by node for given sizes of its dynamic dimensions.

Multiply-adds are those of products and convolutions (2 FLOP each); elementwise work shows in the bytes. Bytes are what each
node reads and writes if nothing is fused: every input once, every output once. Views (reshapes and the like) are free. A graph
is judged against another one by these numbers, on no particular hardware.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_sam._lazy import require
from trt_sam.errors import GraphError

if TYPE_CHECKING:
    import onnx

__all__ = ["Arithmetic", "KindCount", "count_graph"]

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Constant"})
_UNCOUNTED = frozenset(
    {"Attention", "ConvInteger", "DeformConv", "Einsum", "If", "Loop", "QLinearConv", "QLinearMatMul", "Scan"}
)
_SMALL = 64
_Shape = tuple[int, ...]
_Tensor = tuple[_Shape, float]


@dataclass
class KindCount:
    """What all nodes of one operator do together."""

    nodes: int = 0
    multiply_adds: int = 0
    bytes_moved: int = 0


@dataclass
class Arithmetic:
    """Counts of one graph, by operator."""

    dims: dict[str, int]
    """The dynamic dimensions as they were bound."""
    kinds: dict[str, KindCount] = field(default_factory=dict)
    products: dict[str, int] = field(default_factory=dict)
    """Multiply-adds of each product or convolution, by the node's name as TensorRT's parser has it."""

    @property
    def nodes(self) -> int:
        """Number of nodes that are not views."""
        return sum(count.nodes for count in self.kinds.values())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all products and convolutions."""
        return sum(count.multiply_adds for count in self.kinds.values())

    @property
    def gflop(self) -> float:
        """Two operations per multiply-add, in units of 1e9."""
        return 2 * self.multiply_adds / 1e9

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written by all nodes."""
        return sum(count.bytes_moved for count in self.kinds.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able counts, the operators with most bytes first."""
        kinds = sorted(self.kinds.items(), key=lambda item: (-item[1].bytes_moved, item[0]))
        totals = {"nodes": self.nodes, "multiply_adds": self.multiply_adds, "gflop": self.gflop, "bytes": self.bytes_moved}
        by_kind = {
            kind: {"nodes": count.nodes, "multiply_adds": count.multiply_adds, "bytes": count.bytes_moved}
            for kind, count in kinds
        }
        return {"dims": dict(self.dims), **totals, "kinds": by_kind}


def count_graph(
    model: onnx.ModelProto | str | Path, dims: Mapping[str, int], values: Mapping[str, Sequence[int]] | None = None
) -> Arithmetic:
    """Count a graph with its dynamic dimensions bound: `{"num_prompts": 1, "num_points": 2}`.

    `values` are the contents of int64 inputs that decide shapes: `{"orig_im_size": [1080, 1920]}`.

    Raises:
        GraphError: the file is not ONNX, a dynamic input dimension is not in `dims`, a name in `dims` is not in the graph,
            a shape cannot be inferred, or an operator's arithmetic is not known.
    """
    inferred = _infer(_bind(_load(model), dims, values or {}), dims)
    tensors = _tensors(inferred)
    result = Arithmetic(dict(dims))
    for node in inferred.node:
        if node.op_type in _VIEWS:
            continue
        count = result.kinds.setdefault(node.op_type, KindCount())
        count.nodes += 1
        if multiply_adds := _multiply_adds(node, tensors):
            count.multiply_adds += multiply_adds
            result.products[node.name or f"node_of_{node.output[0]}"] = multiply_adds
        count.bytes_moved += _bytes(node, tensors)
    return result


def _load(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    onnx = require("onnx", "to count a graph's arithmetic")
    if not isinstance(model, str | Path):
        return copy.deepcopy(model)
    try:
        return onnx.load(str(model), load_external_data=False)
    except OSError as error:
        raise GraphError(f"graph {model} cannot be read: {error.strerror}") from error
    except Exception as error:  # protobuf has its own exception class, in a module that moves between versions
        raise GraphError(f"graph {model} is not an ONNX file") from error


def _bind(model: onnx.ModelProto, dims: Mapping[str, int], values: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """Write the sizes into the inputs, make inputs with a value constants; forget shapes that were stored for dynamic sizes."""
    onnx = require("onnx", "to count a graph's arithmetic")
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in values.items()
        if name in {item.name for item in model.graph.input}
    )
    seen = set()
    stored = {initializer.name for initializer in model.graph.initializer}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") or value.name in stored:
                continue
            if dim.dim_param not in dims:
                name = dim.dim_param or f"dimension {axis} without a name"
                raise GraphError(f"input {value.name} has {name}, which needs a size; given are {dict(dims)}")
            seen.add(dim.dim_param)
            dim.dim_value = dims[dim.dim_param]
    for name in dims:
        if name not in seen:
            raise GraphError(f"no input has the dimension {name!r}; the graph's are {', '.join(sorted(seen)) or 'none'}")
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


def _infer(model: onnx.ModelProto, dims: Mapping[str, int]) -> onnx.GraphProto:
    """The graph with all shapes, and without the nodes that only compute shapes.

    onnx's own propagation of shape values stops at operators that exporters use (Reshape), so they are evaluated here.
    """
    onnx = require("onnx", "to count a graph's arithmetic")
    while True:
        try:
            inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise GraphError(f"the graph's shapes do not fit {dict(dims)}: {str(error).splitlines()[0]}") from error
        tensors = _tensors(inferred.graph)
        small = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
        known = {t.name: t for t in model.graph.initializer if t.data_type in small and math.prod(t.dims) <= _SMALL}
        kept = []
        for node in model.graph.node:
            values = _evaluate(node, tensors, known, model.opset_import)
            known.update((value.name, value) for value in values)
            model.graph.initializer.extend(values)
            if not values:
                kept.append(copy.deepcopy(node))
        if len(kept) == len(model.graph.node):
            return inferred.graph
        del model.graph.node[:]
        model.graph.node.extend(kept)


def _evaluate(
    node: onnx.NodeProto, tensors: Mapping[str, _Tensor], known: Mapping[str, onnx.TensorProto], opsets: Any
) -> list[onnx.TensorProto]:
    """The outputs of a node that computes a few values from known ones; nothing where it is not such a node."""
    onnx = require("onnx", "to count a graph's arithmetic")
    if node.op_type == "Shape" and node.input[0] in tensors:
        shape = tensors[node.input[0]][0]
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        part = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
        return [onnx.numpy_helper.from_array(np.array(part, np.int64), node.output[0])]
    inputs = [name for name in dict.fromkeys(node.input) if name]
    if node.domain or not (inputs or node.op_type == "Constant") or not all(name in known for name in inputs):
        return []
    if any(name not in tensors or math.prod(tensors[name][0]) > _SMALL for name in node.output):
        return []
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = onnx.helper.make_graph([node], "node", [], outputs, [known[name] for name in inputs])
    reference = require("onnx.reference", "to count a graph's arithmetic")
    results = reference.ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(None, {})
    return [onnx.numpy_helper.from_array(np.asarray(value), name) for value, name in zip(results, node.output, strict=True)]


def _tensors(graph: onnx.GraphProto) -> dict[str, _Tensor]:
    """Shape and bytes per element of every tensor whose shape is known."""
    onnx = require("onnx", "to count a graph's arithmetic")
    tensors = {item.name: (tuple(item.dims), _width(item.data_type)) for item in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            tensors[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim), _width(tensor.elem_type)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    tensors[node.output[0]] = tuple(attribute.t.dims), _width(attribute.t.data_type)
    return tensors


def _width(data_type: int) -> float:
    onnx = require("onnx", "to count a graph's arithmetic")
    if data_type in (onnx.TensorProto.UINT4, onnx.TensorProto.INT4):
        return 0.5
    return float(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _shape(name: str, node: onnx.NodeProto, tensors: Mapping[str, _Tensor]) -> _Shape:
    if name not in tensors:
        raise GraphError(f"the shape of {name!r} at node {node.name or node.op_type!r} cannot be inferred")
    return tensors[name][0]


def _multiply_adds(node: onnx.NodeProto, tensors: Mapping[str, _Tensor]) -> int:
    """Of one node: output elements times the length of the sum behind each of them."""
    kind = node.op_type
    if kind in _UNCOUNTED or node.domain not in ("", "ai.onnx"):
        raise GraphError(f"node {node.name!r} is {node.domain or 'ai.onnx'} {kind}, whose arithmetic is not known here")
    if kind in ("MatMul", "MatMulInteger"):
        return math.prod(_shape(node.output[0], node, tensors)) * _shape(node.input[0], node, tensors)[-1]
    if kind == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(_shape(node.output[0], node, tensors)) * _shape(node.input[0], node, tensors)[0 if transposed else 1]
    if kind == "Conv":  # weight [out, in / groups, kernel...]
        return math.prod(_shape(node.output[0], node, tensors)) * math.prod(_shape(node.input[1], node, tensors)[1:])
    if kind == "ConvTranspose":  # weight [in, out / groups, kernel...]: each input element meets all of its row
        return math.prod(_shape(node.input[0], node, tensors)) * math.prod(_shape(node.input[1], node, tensors)[1:])
    return 0


def _bytes(node: onnx.NodeProto, tensors: Mapping[str, _Tensor]) -> int:
    """All distinct inputs and all outputs; a lookup reads no more rows than it writes."""
    sizes = {}
    for name in (*node.input, *node.output):
        if name:
            shape = _shape(name, node, tensors)
            sizes[name] = math.prod(shape) * tensors[name][1]
    if node.op_type in ("Gather", "GatherElements", "GatherND", "Slice", "Split"):
        written = sum(sizes[name] for name in node.output if name)
        sizes[node.input[0]] = min(sizes[node.input[0]], written)
    return math.ceil(sum(sizes.values()))
