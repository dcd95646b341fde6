"""Which matrix products of a decoder's or an image encoder's graph may be quantized, by the names that the exporter gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_sam.errors import GraphError, RecipeError
from trt_sam.graph.advice import EXPORT_FOR_GPU
from trt_sam.graph.metadata import is_encoder, recorded_options
from trt_sam.quantize.tables import DECODER, ENCODER, LAYERS_OF_A_BLOCK, Row, Table
from trt_sam.recipe import TIERS

if TYPE_CHECKING:
    import onnx

__all__ = ["Product", "find_products", "product_groups"]


@dataclass(frozen=True)
class Product:
    """One matrix product `activation @ weight` that may be quantized."""

    name: str
    """Its node; float32 and float16 graphs of one decoder have the same."""
    tier: str
    """"A": image side; "B": upscaling; "C": tokens. Of an image encoder "B" are the MLPs' second layers."""
    group: str
    """What a recipe's `keep_fp16` calls it: "block0.image", "upscale1", of an encoder "stage1.block0.mlp_in"."""
    activation: str
    """The tensor [..., channels] that is quantized; several products may read the same one."""
    weight: str
    """The initializer [channels, outputs]."""
    bias: str | None
    """The initializer [outputs] or [positions, outputs] that the next node adds; None where it adds none."""
    multiply_adds: int
    """For one prompt of two points, or one picture."""


def find_products(model: onnx.ModelProto, tiers: Sequence[str] = ("A",), keep_fp16: Sequence[str] = ()) -> tuple[Product, ...]:
    """The products of `tiers` in a `--target gpu` graph, float32 or float16, in graph order, without the groups `keep_fp16`.

    `trt_sam.quantize.tables` says which there are. Groups of tiers that are not asked for may be named in `keep_fp16` too.

    Raises:
        GraphError: the graph is not one of `trt-sam export --target gpu`, is quantized already, or its products are others.
        RecipeError: an unknown tier, a name in `keep_fp16` that is no group of the graph, or no product left.
    """
    for tier in tiers:
        if tier not in TIERS:
            raise RecipeError(f"tier is {tier!r}, must be one of {', '.join(TIERS)}")
    products = _all_products(model)
    groups = product_groups(products)
    for name in keep_fp16:
        if name not in groups:
            raise RecipeError(f"keep_fp16 names {name!r}, which is no group of this graph; known are {', '.join(groups)}")
    found = tuple(product for product in products if product.tier in tiers and product.group not in keep_fp16)
    if not found:
        kept = ", ".join(keep_fp16) or "none"
        raise RecipeError(f"no product is left to quantize: tiers {', '.join(tiers) or 'none'}, keep_fp16 {kept}")
    return found


def product_groups(products: Sequence[Product]) -> dict[str, tuple[Product, ...]]:
    """Products by group, in graph order."""
    groups: dict[str, tuple[Product, ...]] = {}
    for product in products:
        groups[product.group] = (*groups.get(product.group, ()), product)
    return groups


def _all_products(model: onnx.ModelProto) -> tuple[Product, ...]:
    table = _table_of(model)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    products, strangers = [], []
    for node in model.graph.node:
        if node.op_type != "MatMul" or (module := node.name.rpartition("/")[0]) == "":
            continue
        row = table.row_of(module)
        if row is not None and len(shapes.get(node.input[1], ())) == 2:
            products.append(_product(node, table.group_of(row, module), row, shapes, readers))
        elif row is not None or not table.never.fullmatch(module):
            strangers.append(node.name)
    counts = {tier: sum(product.tier == tier for product in products) for tier in TIERS}
    required = dict(table.required) or {tier: LAYERS_OF_A_BLOCK.get(tier, 0) * _attentions(model) for tier in TIERS}
    if strangers or counts != required:
        seen = ", ".join(strangers) or ", ".join(product.name for product in products) or "none"
        raise GraphError(
            f"the graph's products are not those of this version ({counts}, expected {required}; seen: {seen}); "
            f"export it again with {EXPORT_FOR_GPU}"
        )
    return tuple(products)


def _attentions(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Softmax" for node in model.graph.node)


def _product(
    node: onnx.NodeProto,
    group: str,
    row: Row,
    shapes: Mapping[str, tuple[int, ...]],
    readers: Mapping[str, Sequence[onnx.NodeProto]],
) -> Product:
    inner, outer = shapes[node.input[1]]
    bias = None
    if len(following := readers.get(node.output[0], ())) == 1 and following[0].op_type == "Add":
        bias = next((name for name in following[0].input if shapes.get(name, ())[-1:] == (outer,)), None)
    return Product(node.name, row.tier, group, node.input[0], node.input[1], bias, row.rows * inner * outer)


def _table_of(model: onnx.ModelProto) -> Table:
    """The table of the graph's model; raises GraphError where it has none, or is quantized already."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    encoder = is_encoder(metadata)
    options = recorded_options(metadata, "the graph")
    if options is None and not encoder:
        raise GraphError(f"the graph is no decoder of trt-sam (it has no trt_sam.options); export one with {EXPORT_FOR_GPU}")
    if options is not None and options.target != "gpu":
        raise GraphError(
            f"the graph is for target {options.target!r}, where nothing can be quantized; export it with --target gpu"
        )
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise GraphError("the graph is quantized already; start from the float32 or float16 graph that it came from")
    return ENCODER if encoder else DECODER
