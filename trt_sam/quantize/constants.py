"""Weights and biases of a graph's products in float64 while they are changed, written back in the graph's type at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.errors import GraphError

if TYPE_CHECKING:
    import onnx

__all__ = ["Constants", "replace_nodes"]

Array = npt.NDArray[np.float64]
_Site = tuple[str, int]
"""A constant by its reader: node name and number of the input; initializers have other names in every export."""


class Constants:
    """A copy of a graph, its constants read from `source` (the same graph with wider weights) where that is given."""

    def __init__(self, model: onnx.ModelProto, source: onnx.ModelProto | None) -> None:
        self._onnx = require("onnx", "to change a graph's constants")
        self._model = self._onnx.ModelProto()
        self._model.CopyFrom(model)
        self._graph = self._model.graph
        self._stored = _initializers(self._graph)
        self._inputs = {node.name: list(node.input) for node in self._graph.node}
        self._nodes = {node.name: node for node in self._graph.node}
        source_graph = model.graph if source is None else source.graph
        self._source_stored = _initializers(source_graph)
        self._source_nodes = {node.name: node for node in source_graph.node}
        self._source_adds = _bias_sites(source_graph, self._source_stored)
        self._adds = _bias_sites(self._graph, self._stored)
        self._inserted: dict[str, list[onnx.NodeProto]] = {}
        """New nodes by the node that they stand before."""
        self._values: dict[_Site, Array] = {}
        self._biases: dict[str, Array] = {}

    def get(self, node: str, index: int) -> Array:
        """A copy of the constant that is input `index` of a node, as it is now."""
        if (node, index) not in self._values:
            return self._read(self._source_nodes.get(node), node, index)
        return self._values[node, index].copy()

    def set(self, node: str, index: int, value: Array) -> None:
        """Change the constant that is input `index` of a node, for that node alone."""
        self._values[node, index] = value

    def weight(self, product: str) -> Array:
        """A copy of a product's weight [channels, outputs]."""
        return self.get(product, 1)

    def bias(self, product: str) -> Array:
        """What the node after a product adds, [outputs] or [rows, outputs]; zeros [outputs] where it adds no constant."""
        if product in self._biases:
            return self._biases[product].copy()
        if (site := self._source_adds.get(product)) is None:
            return np.zeros(self.weight(product).shape[1])
        return self._read(self._source_nodes[site[0]], *site)

    def set_bias(self, product: str, value: Array) -> None:
        """Change a product's bias; a node that adds it is made where there is none."""
        self._biases[product] = value

    def names(self, product: str) -> tuple[str, str | None]:
        """The initializers that the product will have as its weight and bias when the work is finished."""
        weight = _new_name(product, 1) if (product, 1) in self._values else self._nodes[product].input[1]
        if product in self._biases:
            return weight, f"{product} bias"
        site = self._adds.get(product)
        return weight, None if site is None else self._nodes[site[0]].input[site[1]]

    def norm_before(self, tensor: str) -> str | None:
        """The LayerNormalization with scale and bias that makes `tensor`, if one does."""
        maker = next((node for node in self._graph.node if tensor in node.output), None)
        is_norm = maker is not None and maker.op_type == "LayerNormalization"
        return maker.name if maker is not None and is_norm and len(maker.input) == 3 else None

    def products_after(self, tensor: str) -> list[str] | None:
        """The products with constant weights that read `tensor`; None where anything else reads it too."""
        readers = [node for node in self._graph.node if tensor in node.input]
        outputs = [value.name for value in self._graph.output]
        if tensor in outputs or not all(n.op_type == "MatMul" and n.input[1] in self._stored for n in readers):
            return None
        return [node.name for node in readers]

    def rename(self, old: str, new: str) -> None:
        """Rename a tensor that a node makes."""
        for node in self._graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
        for value in self._graph.value_info:
            if value.name == old:
                value.name = new

    def insert_before(self, products: Sequence[str], old: str, new: str, subtract: Array, multiply: Array) -> None:
        """Let the products read the tensor `new` = (old - subtract) * multiply; either is left out where it does nothing."""
        steps = [("Sub", subtract)] if subtract.any() else []
        steps += [("Mul", multiply)] if (multiply != 1).any() else []
        nodes, tensor = [], old
        for number, (kind, value) in enumerate(steps):
            result = new if number == len(steps) - 1 else f"{new} before scale"
            constant = self._add_initializer(f"{new} {kind.lower()}", value, self._dtype(products[0]))
            nodes.append(self._onnx.helper.make_node(kind, [tensor, constant], [result], name=f"{new}/{kind}"))
            tensor = result
        if not nodes:
            self.rename(old, new)
            return
        first = min(products, key=[node.name for node in self._graph.node].index)
        self._inserted.setdefault(first, []).extend(nodes)
        for name in products:
            self._nodes[name].input[0] = new

    def finish(self) -> onnx.ModelProto:
        """Write what was changed, and return the graph."""
        for (node, index), value in self._values.items():
            self._nodes[node].input[index] = self._add_initializer(_new_name(node, index), value, self._dtype(node, index))
        nodes = []
        for node in self._graph.node:
            nodes += [*self._inserted.get(node.name, []), node]
            if node.name not in self._biases:
                continue
            bias = self._add_initializer(f"{node.name} bias", self._biases[node.name], self._dtype(node.name))
            if (site := self._adds.get(node.name)) is not None:
                self._nodes[site[0]].input[site[1]] = bias
            else:
                raw, result = f"{node.name} without bias", node.output[0]
                node.output[0] = raw
                nodes.append(self._onnx.helper.make_node("Add", [raw, bias], [result], name=f"{node.name} bias/Add"))
        replace_nodes(self._graph, nodes)
        self._onnx.checker.check_model(self._model)
        return self._model

    def _read(self, node: onnx.NodeProto | None, name: str, index: int) -> Array:
        tensor = None if node is None or len(node.input) <= index else self._source_stored.get(node.input[index])
        own = self._inputs.get(name, [])
        mine = None if len(own) <= index else self._stored.get(own[index])
        if tensor is None or (mine is not None and mine.dims != tensor.dims):
            raise GraphError(f"input {index} of node {name!r} is not the constant that it should be; export both graphs again")
        return np.asarray(self._onnx.numpy_helper.to_array(tensor)).astype(np.float64)

    def _dtype(self, node: str, index: int = 1) -> np.dtype[Any]:
        tensor = self._stored[self._inputs[node][index]]
        return np.dtype(self._onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))

    def _add_initializer(self, name: str, value: Array, dtype: np.dtype[Any]) -> str:
        rounded = value.astype(dtype)
        if not np.isfinite(rounded).all():
            raise GraphError(f"{name!r} does not fit {dtype}; quantize without shift and scale, or export another checkpoint")
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(rounded, name))
        return name


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Take `nodes` (some of them the graph's own) as the graph's nodes, and drop initializers that none of them reads."""
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    stored = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(stored) < len(graph.initializer):
        stored = [type(tensor).FromString(tensor.SerializeToString()) for tensor in stored]
        del graph.initializer[:]
        graph.initializer.extend(stored)


def _new_name(node: str, index: int) -> str:
    return f"{node} changed {index}"


def _initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _bias_sites(graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]) -> dict[str, _Site]:
    """Where each product with a constant weight has its bias: the node after it and the input that is the constant."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    sites = {}
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in stored:
            continue
        following = readers.get(node.output[0], [])
        if len(following) == 1 and following[0].op_type == "Add":
            for index, name in enumerate(following[0].input):
                if name in stored and list(stored[name].dims)[-1:] == list(stored[node.input[1]].dims)[-1:]:
                    sites[node.name] = following[0].name, index
    return sites
