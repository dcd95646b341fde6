"""Explicit quantization of an exported decoder: calibrated ranges become QuantizeLinear/DequantizeLinear pairs in the graph.

In order: `find_products` says what may be quantized; statistics of its activations are collected elsewhere; `precondition`
shifts and scales the activations, exactly; their ranges are calibrated on that graph; `insert_qdq` writes the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trt_sam._precondition import ChannelStats, precondition
from trt_sam._products import Product, find_products, product_groups
from trt_sam._qdq import insert_qdq
from trt_sam.arithmetic import count_graph

if TYPE_CHECKING:
    import onnx

__all__ = [
    "ChannelStats",
    "Product",
    "find_products",
    "insert_qdq",
    "precondition",
    "product_groups",
    "quantization_share",
]


def quantization_share(model: onnx.ModelProto, products: Sequence[Product]) -> float:
    """The share of the graph's multiply-adds, for one prompt of two points, that is in `products`: 0 to 1.

    Raises:
        GraphError: the graph's shapes cannot be inferred.
    """
    dims = {"num_prompts": 1, "num_points": 2}
    return sum(product.multiply_adds for product in products) / count_graph(model, dims).multiply_adds
