"""Explicit quantization of an exported decoder or image encoder: calibrated ranges become Q/DQ pairs in the graph.

In order: `find_products` says what may be quantized; statistics of its activations are collected elsewhere; `precondition`
shifts and scales the activations, exactly; their ranges are calibrated on that graph; `insert_qdq` writes the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trt_sam.graph.arithmetic import count_graph
from trt_sam.quantize.channels import ChannelChange, ChannelStats
from trt_sam.quantize.constants import replace_nodes
from trt_sam.quantize.preconditioning import (
    Alpha,
    Shift,
    apply_changes,
    channel_changes,
    precondition,
)
from trt_sam.quantize.products import Product, find_products, product_groups
from trt_sam.quantize.qdq import insert_qdq
from trt_sam.quantize.rounding import InputMoments

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Alpha",
    "ChannelChange",
    "ChannelStats",
    "InputMoments",
    "Product",
    "Shift",
    "apply_changes",
    "channel_changes",
    "find_products",
    "insert_qdq",
    "precondition",
    "product_groups",
    "quantization_share",
]


def quantization_share(model: onnx.ModelProto, products: Sequence[Product]) -> float:
    """The share of the graph's multiply-adds that is in `products`, 0 to 1: a decoder's for one prompt of two points.

    Resizing masks to the image is not counted: its size is not known.

    Raises:
        GraphError: the graph's shapes cannot be inferred.
    """
    decoder = _without_appended(model)
    open_dims = {dim.dim_param for value in decoder.graph.input for dim in value.type.tensor_type.shape.dim}
    dims = {name: size for name, size in (("num_prompts", 1), ("num_points", 2)) if name in open_dims}
    return sum(product.multiply_adds for product in products) / count_graph(decoder, dims).multiply_adds


def _without_appended(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without what `full_resolution` and `mask_bits` appended to it."""
    decoder = type(model).FromString(model.SerializeToString())
    graph = decoder.graph
    for values, dropped in ((graph.output, "masks"), (graph.output, "mask_bits"), (graph.input, "orig_im_size")):
        for index in reversed(range(len(values))):
            if values[index].name == dropped:
                del values[index]
    nodes = [node for node in graph.node if not node.name.startswith(("full_resolution/", "mask_bits/"))]
    replace_nodes(graph, nodes)
    return decoder
