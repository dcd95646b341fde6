"""Which matrix products of a decoder graph may be quantized, found by the module names that `trt-sam export` gives nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_sam.errors import GraphError, RecipeError
from trt_sam.graph.metadata import recorded_options
from trt_sam.recipe import TIERS

if TYPE_CHECKING:
    import onnx

__all__ = ["Product", "find_products", "product_groups"]

_POSITIONS = 4096
_TOKENS = 7
"""Five output tokens and two points: what multiply-adds are counted for."""

# (module, tier, group, rows that one prompt sends through it). Where a product keeps one side of a block in step, it is one
# product in the graph, and so one group: the image's keys, values and queries of a block read one tensor.
_TABLE: tuple[tuple[str, str, str, int], ...] = (
    (r"transformer\.image_layers\.(\d+)\.product", "A", r"block\1.image", _POSITIONS),
    (r"transformer\.image_layers\.(\d+)\.out_image", "A", r"block\1.image_out", _POSITIONS),
    (r"transformer\.final_image\.product", "A", "final.image", _POSITIONS),
    (r"upscaling\.first", "B", "upscale0", _POSITIONS),
    (r"upscaling\.second", "B", "upscale1", 4 * _POSITIONS),
    (r"transformer\.terms", "C", "tokens.positions", _TOKENS),
    (r"transformer\.token_layers\.(\d+)\.own", "C", r"block\1.self", _TOKENS),
    (r"transformer\.token_layers\.(\d+)\.own_out", "C", r"block\1.self_out", _TOKENS),
    (r"transformer\.token_layers\.(\d+)\.query", "C", r"block\1.query", _TOKENS),
    (r"transformer\.image_layers\.(\d+)\.out_tokens", "C", r"block\1.query_out", _TOKENS),
    (r"transformer\.token_layers\.(\d+)\.mlp\.lin1", "C", r"block\1.mlp_in", _TOKENS),
    (r"transformer\.token_layers\.(\d+)\.mlp\.lin2", "C", r"block\1.mlp_out", _TOKENS),
    (r"transformer\.token_layers\.(\d+)\.product", "C", r"block\1.tokens", _TOKENS),
    (r"transformer\.final_image\.out_tokens", "C", "final.query_out", _TOKENS),
)
_NEVER = re.compile(r"heads(\..*)?|upscaling|transformer")
"""Modules whose own products stay float16: hypernetworks and IoU head, the mask product, attention's own products."""
_REQUIRED = {"A": 5, "B": 2, "C": 15}


@dataclass(frozen=True)
class Product:
    """One matrix product `activation @ weight` that may be quantized."""

    name: str
    """Its node; float32 and float16 graphs of one decoder have the same."""
    tier: str
    """"A": image side; "B": upscaling; "C": tokens."""
    group: str
    """What a recipe's `keep_fp16` calls it: "block0.image", "upscale1"."""
    activation: str
    """The tensor [..., channels] that is quantized; several products may read the same one."""
    weight: str
    """The initializer [channels, outputs]."""
    bias: str | None
    """The initializer [outputs] or [positions, outputs] that the next node adds; None where it adds none."""
    multiply_adds: int
    """For one prompt of two points."""


def find_products(model: onnx.ModelProto, tiers: Sequence[str] = ("A",), keep_fp16: Sequence[str] = ()) -> tuple[Product, ...]:
    """The products of `tiers` in a `--target gpu` graph, float32 or float16, in graph order, without the groups `keep_fp16`.

    Attention's own products, the hypernetworks, the IoU head and the mask product are never among them. Groups of tiers that
    are not asked for may be named in `keep_fp16` too.

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
    _check_origin(model)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    products, strangers = [], []
    for node in model.graph.node:
        if node.op_type != "MatMul" or (module := node.name.rpartition("/")[0]) == "":
            continue
        row = next((row for row in _TABLE if re.fullmatch(row[0], module)), None)
        if row is not None and len(shapes.get(node.input[1], ())) == 2:
            products.append(_product(node, module, row, shapes, readers))
        elif row is not None or not _NEVER.fullmatch(module):
            strangers.append(node.name)
    counts = {tier: sum(product.tier == tier for product in products) for tier in TIERS}
    if strangers or counts != _REQUIRED:
        seen = ", ".join(strangers) or ", ".join(product.name for product in products) or "none"
        raise GraphError(
            f"the graph's products are not those of this version ({counts}, expected {_REQUIRED}; seen: {seen}); "
            "export it again with trt-sam export --target gpu"
        )
    return tuple(products)


def _product(
    node: onnx.NodeProto,
    module: str,
    row: tuple[str, str, str, int],
    shapes: Mapping[str, tuple[int, ...]],
    readers: Mapping[str, Sequence[onnx.NodeProto]],
) -> Product:
    pattern, tier, group, rows = row
    inner, outer = shapes[node.input[1]]
    bias = None
    if len(following := readers.get(node.output[0], ())) == 1 and following[0].op_type == "Add":
        bias = next((name for name in following[0].input if shapes.get(name, ())[-1:] == (outer,)), None)
    name = re.sub(pattern, group, module)
    return Product(node.name, tier, name, node.input[0], node.input[1], bias, rows * inner * outer)


def _check_origin(model: onnx.ModelProto) -> None:
    options = recorded_options({entry.key: entry.value for entry in model.metadata_props}, "the graph")
    if options is None:
        raise GraphError("the graph is no decoder of trt-sam export (it has no trt_sam.options); export one with --target gpu")
    if options.target != "gpu":
        raise GraphError(
            f"the graph is for target {options.target!r}, where nothing can be quantized; export it with --target gpu"
        )
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise GraphError("the graph is quantized already; start from the float32 or float16 graph that it came from")
