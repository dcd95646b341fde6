"""QuantizeLinear/DequantizeLinear pairs around the chosen products of a decoder's or an image encoder's graph.

The activation passes a Q and a DQ with one scale; products that read one tensor share the pair, and with it one quantized
tensor in memory. The weight is stored quantized, column by column, and passes a DQ; its columns' scales are split in two: one
power of two for all columns in the DQ, the rest in a Mul after the product:

    y = (DQ(Q(x)) @ DQ(q)) * columns + bias    with    weight = q * power * columns

That is per-channel quantization of the weight, said so that nothing overflows. Said the usual way, with a vector of float16
scales in the DQ, TensorRT-RTX 1.7 writes the bare integer sums to a float16 tensor, which ends at 65504, and multiplies
them with products of two float16 scales that are subnormal (read off its layer list and the constants in its engines). With one
scale per operand the sums are scaled in float32 before they are written, and the Mul joins the kernel that adds the bias.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.errors import CalibrationError, GraphError, RecipeError
from trt_sam.graph.metadata import encoder_entry, encoder_precision, options_entry, recorded_options
from trt_sam.quantize.constants import replace_nodes
from trt_sam.quantize.formats import FORMATS, NumberFormat
from trt_sam.quantize.products import Product
from trt_sam.quantize.rounding import InputMoments, round_second_order

if TYPE_CHECKING:
    import onnx

__all__ = ["insert_qdq"]

Array = npt.NDArray[Any]
_FLOAT16_ROOM = 60000.0
"""What a product's sums may reach in float16 in the worst case, all products at their largest and of one sign."""


def insert_qdq(
    model: onnx.ModelProto,
    products: Sequence[Product],
    amax: Mapping[str, float],
    precision: str,
    *,
    moments: Mapping[str, InputMoments] | None = None,
) -> onnx.ModelProto:
    """Return `model` with `products` quantized; `model` itself is not changed.

    Symmetric; weights per output channel by their own largest |w|, activations per tensor. A float16 graph's scales are
    float16, and its metadata then say `precision`; a float32 graph (for trying out) keeps its own.

    Args:
        model: a graph that `products` were found in, or that `precondition` gave with them.
        products: of `find_products` or `precondition`.
        amax: by activation tensor, the |value| that becomes the largest quantized one (127 or 448); beyond it is clipped.
        precision: "int8", or "fp8" (E4M3).
        moments: by activation tensor: weights that read it are rounded by them (`rounding.round_second_order`), and their
            bias makes good for what the rounding does to the mean; all others are rounded to the nearest.

    Raises:
        CalibrationError: `amax` lacks an activation, or a value is not a positive finite number.
        RecipeError: another precision.
        GraphError: the products are not of this graph, or a weight is not finite.
    """
    onnx = require("onnx", "to quantize a graph")
    if precision not in FORMATS:
        raise RecipeError(f"precision is {precision!r}, must be one of {', '.join(FORMATS)}")
    for activation in dict.fromkeys(product.activation for product in products):
        if activation not in amax:
            raise CalibrationError(f"no range for {activation!r}; calibrate the graph with these products")
        if not (math.isfinite(amax[activation]) and amax[activation] > 0):
            raise CalibrationError(f"the range of {activation!r} is {amax[activation]}, must be a positive number")
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    writer = _Writer(quantized.graph, FORMATS[precision], moments or {})
    by_name = {product.name: product for product in products}
    nodes: list[Any] = []
    for node in quantized.graph.node:
        product = by_name.pop(node.name, None)
        nodes += [node] if product is None else writer.quantized(node, product, amax[product.activation])
    if by_name:
        raise GraphError(f"the graph has no products {', '.join(by_name)}; find the products of the graph itself")
    replace_nodes(quantized.graph, nodes)
    _declare(quantized, precision)
    onnx.checker.check_model(quantized)
    return quantized


class _Writer:
    """Adds to a graph what its products need; the nodes are returned, in order, for the caller to place."""

    def __init__(self, graph: onnx.GraphProto, form: NumberFormat, moments: Mapping[str, InputMoments]) -> None:
        self._onnx = require("onnx", "to quantize a graph")
        self._graph, self._form, self._moments = graph, form, moments
        self._kind = getattr(self._onnx.TensorProto, form.onnx_type)
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._pairs: set[str] = set()
        self._zero = self._add_quantized("zero point", np.zeros(()))

    def quantized(self, node: onnx.NodeProto, product: Product, amax: float) -> list[onnx.NodeProto]:
        """The nodes in place of a product's own."""
        if list(node.input) != [product.activation, product.weight] or product.weight not in self._stored:
            raise GraphError(f"product {product.name} is not that of this graph; find the products of the graph itself")
        weight = self._onnx.numpy_helper.to_array(self._stored[product.weight])
        if not np.isfinite(weight).all():
            raise GraphError(f"the weight of {product.name} is not finite; export the graph from another checkpoint")
        moments, corrected = self._moments.get(product.activation), self._bias_of_its_own(product)
        second = None if moments is None else moments.covariance if corrected else moments.about_zero
        stored, power, columns = _split(weight, amax, self._form, second)
        if moments is not None and corrected is not None:
            lost = weight.astype(np.float64) - stored * (float(power) * columns.astype(np.float64))
            self._correct(corrected, moments.mean @ lost)
        name, result = product.name, node.output[0]
        quantized = self._add_quantized(f"{name} quantized", stored)
        scale, gains = self._add(f"{name} power", power), self._add(f"{name} columns", columns)
        make = self._onnx.helper.make_node
        return [
            *self._activation_pair(product, amax, weight.dtype),
            make("DequantizeLinear", [quantized, scale, self._zero], [f"{name} weight"], name=f"{name} weight/Dequantize"),
            make("MatMul", [f"{product.activation} dequantized", f"{name} weight"], [f"{name} sums"], name=name),
            make("Mul", [f"{name} sums", gains], [result], name=f"{name} columns/Mul"),
        ]

    def _bias_of_its_own(self, product: Product) -> onnx.TensorProto | None:
        """The initializer that is added to this product and to nothing else."""
        readers = sum(name == product.bias for node in self._graph.node for name in node.input)
        return self._stored.get(product.bias) if product.bias is not None and readers == 1 else None

    def _correct(self, bias: onnx.TensorProto, difference: Array) -> None:
        values = self._onnx.numpy_helper.to_array(bias)
        changed = (values + difference).astype(values.dtype)
        bias.CopyFrom(self._onnx.numpy_helper.from_array(changed, bias.name))

    def _activation_pair(self, product: Product, amax: float, dtype: npt.DTypeLike) -> list[onnx.NodeProto]:
        name = product.activation
        if name in self._pairs:
            return []
        self._pairs.add(name)
        constants = [self._add(f"{name} scale", _positive(np.array(amax / self._form.largest), dtype)), self._zero]
        make = self._onnx.helper.make_node
        return [
            make("QuantizeLinear", [name, *constants], [f"{name} quantized"], name=f"{product.name}/Quantize"),
            make(
                "DequantizeLinear",
                [f"{name} quantized", *constants],
                [f"{name} dequantized"],
                name=f"{product.name}/Dequantize",
            ),
        ]

    def _add(self, name: str, array: Array) -> str:
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def _add_quantized(self, name: str, levels: Array) -> str:
        array = levels.astype(np.float32).astype(self._onnx.helper.tensor_dtype_to_np_dtype(self._kind))
        self._graph.initializer.append(self._onnx.helper.make_tensor(name, self._kind, levels.shape, array.tobytes(), raw=True))
        return name


def _split(weight: Array, amax: float, form: NumberFormat, moments: Array | None) -> tuple[Array, Array, Array]:
    """Levels, power [] and columns [outputs] of a weight [channels, outputs], so that their product is about the weight."""
    worst = amax * form.largest * weight.shape[0]
    exponent = min(form.power, math.floor(math.log2(_FLOAT16_ROOM / worst)))
    power = np.array(2.0**exponent, weight.dtype)
    largest = np.abs(weight.astype(np.float64)).max(axis=0)
    columns = np.where(largest == 0, np.ones((), weight.dtype), _positive(largest / form.largest / 2.0**exponent, weight.dtype))
    # By the scales as they were rounded, so that their rounding costs range and no accuracy.
    levels = np.clip(weight / (columns.astype(np.float64) * float(power)), -form.largest, form.largest)
    if moments is None:
        return form.nearest(levels), power, columns
    return round_second_order(levels, moments, form.noise(np.diag(moments), amax), form.nearest), power, columns


def _positive(values: Array, dtype: npt.DTypeLike) -> Array:
    """Values as `dtype`, at least its smallest number: TensorRT refuses a scale of 0, which float16 may underflow to."""
    return np.maximum(values.astype(dtype), np.finfo(np.dtype(dtype)).smallest_subnormal)


def _declare(model: onnx.ModelProto, precision: str) -> None:
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    options = recorded_options(metadata, "the graph")
    if options is not None and options.precision == "fp16":
        metadata |= options_entry(dataclasses.replace(options, precision=precision))
    elif options is None and encoder_precision(metadata) == "fp16":
        metadata |= encoder_entry(precision)
    else:
        return
    require("onnx", "to quantize").helper.set_model_props(model, metadata)
