"""Two graphs of one decoder, node by node: which tensors are the same, what they hold, and the reference run on from a cut.

The exporter numbers tensors anew in every graph, but names nodes by their module: nodes are matched by name and operation,
and their outputs with them. In a quantized graph the sums of a product are scaled by a Mul of its own, whose output is the
product's. A float16 graph has Casts more, which move the numbers of the others: a Cast is known by what it casts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from trt_sam.errors import GraphError, InputError
from trt_sam.graph.float16 import emulate_float16
from trt_sam.graph.metadata import recorded_options
from trt_sam.quantize.products import find_products, product_groups
from trt_sam.recipe import TIERS, GraphOptions
from trt_sam.runtime.session import session_options

__all__ = [
    "Cut",
    "MatchedTensor",
    "Run",
    "check_common",
    "cuts",
    "group_of_node",
    "matched_tensors",
    "nodes_of_groups",
    "runnable",
    "tail",
]

Array = npt.NDArray[Any]
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class MatchedTensor:
    """A float tensor that both graphs have."""

    index: int
    """Of its node in the reference."""
    node: str
    operation: str
    reference: str
    """Name in the reference."""
    candidate: str


@dataclass(frozen=True)
class Cut:
    """Before reference node `index`: what the nodes from there on read of those before."""

    index: int
    taken: Mapping[str, str] = field(repr=False)
    """Reference's tensors that the candidate has, by name, with the candidate's name."""
    kept: tuple[str, ...] = field(repr=False)
    """Shapes and other whole numbers, which are the reference's own."""


class Run:
    """A graph in ONNX Runtime that gives any of its tensors; nothing is fused, so that every node is there."""

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str] = ()) -> None:
        import onnxruntime

        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        known = {value.name for value in whole.graph.output}
        produced = {name for node in whole.graph.node for name in node.output}
        for name in tensors:
            if name not in known and name in produced:
                whole.graph.output.append(helper.make_empty_tensor_value_info(name))
        settings = session_options(emulate_quantization=True)
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(whole.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(self, feed: Mapping[str, Array], tensors: Sequence[str]) -> dict[str, Array]:
        """The tensors by name, for a feed that may have more inputs than the graph."""
        if not tensors:
            # ONNX Runtime takes an empty list for all outputs.
            return {}
        given = {name: feed[name] for name in self._inputs}
        return dict(zip(tensors, self._session.run(list(tensors), given), strict=True))


def runnable(model: onnx.ModelProto, *, half: bool) -> onnx.ModelProto:
    """The graph as it is judged: one of float16 in its emulation, which keeps the tensors' names; any other as it is."""
    if not half:
        return model
    emulated = emulate_float16(model)
    wanted = {output.name for output in model.graph.output}
    kept = [output for output in emulated.graph.output if output.name in wanted]
    del emulated.graph.output[:]
    emulated.graph.output.extend(kept)
    return emulated


def matched_tensors(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> list[MatchedTensor]:
    """Float tensors of both, in the reference's order."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in _values(reference)}
    theirs = {(node.name, node.op_type): node for node in candidate.graph.node if node.op_type != "Cast"}
    theirs_cast, own_cast = _casts(candidate), {node.name: what for what, node in _casts(reference).items()}
    results = {node.name.removesuffix(" columns/Mul"): node.output[0] for node in _scalings(candidate)}
    outputs = {value.name for value in reference.graph.output}
    found = []
    for index, node in enumerate(reference.graph.node):
        cast = own_cast.get(node.name)
        other = theirs.get((node.name, node.op_type)) if cast is None else theirs_cast.get(cast)
        if other is None or len(other.output) != len(node.output):
            continue
        for own, name in zip(node.output, other.output, strict=True):
            if kinds.get(own) in _FLOATS:
                # Outputs have one name in every graph, whatever node gives them.
                theirs_too = own if own in outputs else results.get(node.name, name)
                found.append(MatchedTensor(index, node.name, node.op_type, own, theirs_too))
    return found


def check_common(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> None:
    """Raise InputError where two graphs are of other forms, or have hardly a node in common."""
    forms = {o.target for o in map(_options, (reference, candidate)) if o is not None}
    if len(forms) > 1:
        raise InputError(f"the graphs are of targets {' and '.join(sorted(forms))}; compare layers of graphs with one --target")
    theirs = {(node.name, node.op_type) for node in candidate.graph.node}
    shared = sum((node.name, node.op_type) in theirs for node in reference.graph.node)
    if shared < len(reference.graph.node) // 2:
        raise InputError(
            f"the graphs have {shared} of {len(reference.graph.node)} nodes in common: other forms of the decoder, or another "
            "exporter; compare layers of graphs with one --target and the same options"
        )


def cuts(reference: onnx.ModelProto, matched: Sequence[MatchedTensor]) -> Iterator[Cut]:
    """Every place where the candidate has all the float tensors that cross, behind the first node, ..., behind the last."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in _values(reference)}
    names = {tensor.reference: tensor.candidate for tensor in matched}
    nodes = list(reference.graph.node)
    last: dict[str, int] = {value.name: len(nodes) for value in reference.graph.output}
    for index, node in enumerate(nodes):
        for name in node.input:
            last[name] = max(last.get(name, -1), index)
    alive: dict[str, None] = {}
    for index, node in enumerate(nodes, start=1):
        for name in node.output:
            alive[name] = None
        alive = {name: None for name in alive if last.get(name, -1) >= index}
        floats = [name for name in alive if kinds.get(name) in _FLOATS]
        if all(name in names for name in floats):
            kept = tuple(name for name in alive if name not in floats)
            yield Cut(index, {name: names[name] for name in floats}, kept)


def tail(reference: onnx.ModelProto, cut: Cut) -> onnx.ModelProto:
    """The reference from the cut on, with what crosses it as inputs; outputs that lie before it pass through."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in _values(reference)}
    crossing = [*cut.taken, *cut.kept]
    model = onnx.ModelProto()
    model.CopyFrom(reference)
    nodes = list(model.graph.node)[cut.index :]
    del model.graph.node[:]
    outputs = {value.name for value in reference.graph.output}
    for name in crossing:
        if name in outputs:
            # An input cannot be an output: it passes a node.
            nodes.append(helper.make_node("Identity", [f"{name} given"], [name], name=f"{name} given"))
        shown = f"{name} given" if name in outputs else name
        value = helper.make_tensor_value_info(shown, kinds.get(name, TensorProto.INT64), None)
        model.graph.input.append(value)
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    return model


def nodes_of_groups(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """The products' nodes by calibration group; empty for a graph that cannot be quantized (target cpu, other exporters)."""
    try:
        groups = product_groups(find_products(model, TIERS))
    except GraphError:
        return {}
    return {name: tuple(product.name for product in products) for name, products in groups.items()}


def group_of_node(model: onnx.ModelProto) -> dict[str, str]:
    """The calibration group of every node in a product's module, and of what adds its bias, which may lie outside."""
    products = {name: group for group, names in nodes_of_groups(model).items() for name in names}
    modules = {name.rpartition("/")[0]: group for name, group in products.items()}
    sums = {name: products[node.name] for node in model.graph.node if node.name in products for name in node.output}
    groups = {}
    for node in model.graph.node:
        added = next((sums[name] for name in node.input if name in sums), "") if node.op_type == "Add" else ""
        groups[node.name] = modules.get(node.name.rpartition("/")[0], added)
    return groups


def _options(model: onnx.ModelProto) -> GraphOptions | None:
    return recorded_options({entry.key: entry.value for entry in model.metadata_props}, "the graph")


def _values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return [*inferred.value_info, *inferred.input, *inferred.output]


def _casts(model: onnx.ModelProto) -> dict[tuple[str, str, bool], onnx.NodeProto]:
    """Each Cast by the node that it casts (name and operation; of an input its name), and whether to a float."""
    made = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type == "Cast":
            source, to_float = made.get(node.input[0]), next(a.i for a in node.attribute if a.name == "to") in _FLOATS
            name, operation = (node.input[0], "") if source is None else (source.name, source.op_type)
            found[name, operation, to_float] = node
    return found


def _scalings(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    return (node for node in model.graph.node if node.name.endswith(" columns/Mul"))
