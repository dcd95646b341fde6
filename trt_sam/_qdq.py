"""QuantizeLinear/DequantizeLinear pairs around the chosen products of a decoder graph.

The form that TensorRT-RTX compiles to INT8 kernels and that TensorRT 10 and 11 read: the activation passes a Q and a DQ with one
scale, the weight is stored quantized and passes a DQ with one scale per output; scales have the type of the graph, so that the
product's result has it too. Products that read one tensor share one Q/DQ pair, and with it one INT8 tensor in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam._constants import replace_nodes
from trt_sam._lazy import require
from trt_sam._products import Product
from trt_sam.errors import CalibrationError, GraphError, RecipeError

if TYPE_CHECKING:
    import onnx

__all__ = ["insert_qdq", "weight_scales"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Format:
    onnx_type: str
    largest: float


_FORMATS = {"int8": _Format("INT8", 127.0), "fp8": _Format("FLOAT8E4M3FN", 448.0)}


def insert_qdq(
    model: onnx.ModelProto, products: Sequence[Product], amax: Mapping[str, float], precision: str
) -> onnx.ModelProto:
    """Return `model` with `products` quantized; `model` itself is not changed.

    Symmetric; weights per output channel with their own largest |w|, activations per tensor. A float16 graph's scales are
    float16, and its `trt_sam.options` then say `precision`; a float32 graph (for trying out) keeps its own.

    Args:
        model: a graph that `products` were found in, or that `precondition` gave with them.
        products: of `find_products` or `precondition`.
        amax: by activation tensor, the |value| that becomes the largest quantized one (127 or 448); beyond it is clipped.
        precision: "int8", or "fp8" (E4M3).

    Raises:
        CalibrationError: `amax` lacks an activation, or a value is not a positive finite number.
        RecipeError: another precision.
        GraphError: the products are not of this graph, or a weight is not finite.
    """
    onnx = require("onnx", "to quantize a graph")
    if precision not in _FORMATS:
        raise RecipeError(f"precision is {precision!r}, must be one of {', '.join(_FORMATS)}")
    form = _FORMATS[precision]
    for activation in dict.fromkeys(product.activation for product in products):
        if activation not in amax:
            raise CalibrationError(f"no range for {activation!r}; calibrate the graph with these products")
        if not (math.isfinite(amax[activation]) and amax[activation] > 0):
            raise CalibrationError(f"the range of {activation!r} is {amax[activation]}, must be a positive number")
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    by_name = {product.name: product for product in products}
    nodes, pairs = [], {}
    for node in graph.node:
        product = by_name.pop(node.name, None)
        if product is None:
            nodes.append(node)
            continue
        if list(node.input) != [product.activation, product.weight] or product.weight not in weights:
            raise GraphError(f"product {product.name} is not that of this graph; find the products of the graph itself")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(weights[product.weight].data_type)
        if product.activation not in pairs:
            pairs[product.activation] = f"{product.activation} dequantized"
            scale = _rounded_scales(np.array(amax[product.activation]), form, dtype)
            nodes.extend(_activation_pair(product, scale, form, graph))
        nodes.append(_weight_dequantizer(product, weights[product.weight], form, graph))
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        changed.input[:] = [pairs[product.activation], f"{product.weight} dequantized"]
        nodes.append(changed)
    if by_name:
        raise GraphError(f"the graph has no products {', '.join(by_name)}; find the products of the graph itself")
    replace_nodes(graph, nodes)
    _declare(quantized, precision)
    onnx.checker.check_model(quantized)
    return quantized


def weight_scales(weight: Array, precision: str, dtype: npt.DTypeLike = np.float64) -> Array:
    """The scale [outputs] of each column of weight [channels, outputs], as rounded to `dtype`; 1 for a column of zeros."""
    return _rounded_scales(np.abs(weight.astype(np.float64)).max(axis=0), _FORMATS[precision], dtype)


def _rounded_scales(amax: Array, form: _Format, dtype: npt.DTypeLike) -> Array:
    """amax / largest in `dtype`; never 0, which TensorRT refuses, so a float16 underflow takes the smallest number instead."""
    scales = np.asarray(amax / form.largest).astype(dtype)
    scales = np.maximum(scales, np.finfo(np.dtype(dtype)).smallest_subnormal)
    return np.where(amax == 0, np.ones_like(scales), scales)


def _activation_pair(product: Product, scale: Array, form: _Format, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    onnx = require("onnx", "to quantize a graph")
    name = product.activation
    zero = _zero_point(form, graph)
    graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name} scale"))
    constants = [f"{name} scale", zero]
    return [
        onnx.helper.make_node("QuantizeLinear", [name, *constants], [f"{name} quantized"], name=f"{product.name}/Quantize"),
        onnx.helper.make_node(
            "DequantizeLinear", [f"{name} quantized", *constants], [f"{name} dequantized"], name=f"{product.name}/Dequantize"
        ),
    ]


def _weight_dequantizer(product: Product, tensor: onnx.TensorProto, form: _Format, graph: onnx.GraphProto) -> onnx.NodeProto:
    onnx = require("onnx", "to quantize a graph")
    weight = onnx.numpy_helper.to_array(tensor)
    if not np.isfinite(weight).all():
        raise GraphError(f"the weight of {product.name} is not finite; export the graph from another checkpoint")
    name = product.weight
    scales = _rounded_scales(np.abs(weight.astype(np.float64)).max(axis=0), form, weight.dtype)
    # By the scale as it was rounded, so its rounding costs range and no accuracy.
    levels = weight.astype(np.float64) / scales.astype(np.float64)
    levels = np.clip(levels, -form.largest, form.largest)
    kind = getattr(onnx.TensorProto, form.onnx_type)
    stored = np.rint(levels) if form.onnx_type == "INT8" else levels.astype(np.float32)
    stored = stored.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    zeros = np.zeros(weight.shape[1], stored.dtype)
    graph.initializer.extend(
        onnx.helper.make_tensor(f"{name} {what}", kind, array.shape, array.tobytes(), raw=True)
        for what, array in (("quantized", stored), ("zero points", zeros))
    )
    graph.initializer.append(onnx.numpy_helper.from_array(scales, f"{name} scales"))
    inputs = [f"{name} quantized", f"{name} scales", f"{name} zero points"]
    return onnx.helper.make_node(
        "DequantizeLinear", inputs, [f"{name} dequantized"], name=f"{product.name}/DequantizeWeight", axis=1
    )


def _zero_point(form: _Format, graph: onnx.GraphProto) -> str:
    onnx = require("onnx", "to quantize a graph")
    name = f"{form.onnx_type} zero point"
    if all(tensor.name != name for tensor in graph.initializer):
        kind = getattr(onnx.TensorProto, form.onnx_type)
        graph.initializer.append(onnx.helper.make_tensor(name, kind, [], b"\0", raw=True))
    return name


def _declare(model: onnx.ModelProto, precision: str) -> None:
    for entry in model.metadata_props:
        if entry.key == "trt_sam.options" and (options := json.loads(entry.value))["precision"] == "fp16":
            entry.value = json.dumps({**options, "precision": precision})
