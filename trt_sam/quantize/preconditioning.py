"""Exact per-channel shift and scale of what is quantized, so that one scale per tensor fits all of its channels.

`x W + b = ((x - m) / s) (s W) + (b + m W)` for any m and s > 0: the tensor `(x - m) / s` is quantized instead of x. m is each
channel's middle of range, or its mean; s follows SmoothQuant (Xiao et al. 2023, arXiv 2211.10438, equation 4):
`amax^alpha / max|W|^(1 - alpha)`. With alpha 1 each channel has all 255 levels, as if it were quantized by itself.

Where it can, the change of x moves into what makes x, and costs nothing: into a LayerNorm that only products read, or through
an attention into the product that makes its values, for the weights of a softmax add up to 1; there the channels of a head may
be mixed as well (`mixing`). Elsewhere it is a Sub and a Mul
before Q, which TensorRT fuses with Q (seen with TensorRT-RTX 1.7: no kernel more than Q alone).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from trt_sam.errors import CalibrationError, GraphError
from trt_sam.quantize.channels import ChannelChange, ChannelStats, Vector
from trt_sam.quantize.constants import Constants
from trt_sam.quantize.mixing import mix_channels, unmix_rows
from trt_sam.quantize.products import Product, find_products
from trt_sam.recipe import TIERS

if TYPE_CHECKING:
    import onnx

__all__ = ["Alpha", "Shift", "apply_changes", "channel_changes", "precondition"]

Shift = Literal["middle", "mean"]
Alpha = float | Mapping[str, float] | None
"""How much of the activations' spread moves into the weights, 0 to 1; one number, or one by group of the tensor's first reader;
None for no scale."""

_SPREAD = 100.0
"""A channel's scale stays within this factor of the median: one that never varied would get 0."""

_VALUES = (
    (r"transformer\.image_layers\.(\d+)\.out_image", r"transformer.token_layers.\1.product", 1),
    (r"transformer\.(image_layers\.\d+|final_image)\.out_tokens", r"transformer.\1.product", -1),
    (r"transformer\.token_layers\.0\.own_out", r"transformer.terms", 2),
    (r"transformer\.token_layers\.(\d+)\.own_out", r"transformer.token_layers.\1.own", 2),
)
"""For the output product of an attention: the product that makes its values, and which part of its columns they are."""


_Decide = Callable[[str, Sequence[Product]], ChannelChange | None]
"""The change of what these products read, by the tensor's name as it will be; None for none."""


def precondition(
    model: onnx.ModelProto,
    products: Sequence[Product],
    stats: Mapping[str, ChannelStats],
    *,
    shift: Shift | bool,
    smooth_alpha: Alpha,
    weights_from: onnx.ModelProto | None = None,
) -> tuple[onnx.ModelProto, tuple[Product, ...]]:
    """Return an equal graph with what `products` read shifted and scaled per channel, and the products of that graph.

    Their activations are then called "GROUP input" after the first group that reads the tensor, in float32 and float16 graphs
    alike (the exporter's numbers differ), so ranges seen on one serve the other. With neither shift nor scale that is all.

    Ranges are tight afterwards: what the attentions' outputs hold depends on the kind of prompt, and a kind that was not among
    the feeds may be clipped (seen: no box among them, then boxes reached twice the range, and masks fell from .99 to .89).

    Args:
        model: the graph that the products were found in; it is not changed.
        products: what `find_products` gave.
        stats: by activation tensor, named as in `weights_from` if that is given, else as in `model`.
        shift: what to take off each channel: "middle" of its range, which leaves the smallest range, "mean" (True is the same),
            which leaves small values near 0, where FP8 is fine, or False for nothing.
        smooth_alpha: the strength of the scale.
        weights_from: the float32 graph of a float16 `model`: the constants are folded from its weights and rounded once.

    Raises:
        CalibrationError: `stats` lack an activation, have another number of channels, or are not finite.
        GraphError: the products are not of this graph, or `weights_from` is not a graph of the same decoder.
    """
    work = _Work(model, weights_from)
    return work.finish(products, work.by_statistics(stats, shift=shift, smooth_alpha=smooth_alpha))


def channel_changes(
    model: onnx.ModelProto,
    products: Sequence[Product],
    stats: Mapping[str, ChannelStats],
    *,
    shift: Shift | bool,
    smooth_alpha: Alpha,
) -> dict[str, ChannelChange]:
    """What `precondition` with these arguments does to each tensor, by the name that it gives the tensor; see there."""
    work = _Work(model, None)
    work.finish(products, work.by_statistics(stats, shift=shift, smooth_alpha=smooth_alpha))
    return work.done


def apply_changes(
    model: onnx.ModelProto,
    products: Sequence[Product],
    changes: Mapping[str, ChannelChange],
    *,
    weights_from: onnx.ModelProto | None = None,
) -> tuple[onnx.ModelProto, tuple[Product, ...]]:
    """As `precondition`, with changes that are known; a tensor that has none is renamed and stays as it is.

    Raises:
        CalibrationError: a change has another number of channels than its tensor.
        GraphError: as `precondition`.
    """
    return _Work(model, weights_from).finish(products, lambda name, _: changes.get(name))


class _Work:
    """The graph in work: constants in float64 until the end."""

    def __init__(self, model: onnx.ModelProto, weights_from: onnx.ModelProto | None) -> None:
        self.constants = Constants(model, weights_from)
        self.known = find_products(model, TIERS)
        self.reference = {p.name: p for p in find_products(weights_from, TIERS)} if weights_from is not None else None
        self.done: dict[str, ChannelChange] = {}
        """What was done to each tensor, by its new name."""

    def finish(self, products: Sequence[Product], decide: _Decide) -> tuple[onnx.ModelProto, tuple[Product, ...]]:
        """Change what the products read as `decide` says; the new graph and its products."""
        changed: dict[str, Product] = {}
        # Last products first: what moves into an earlier product is in its weight before that product is looked at.
        for readers in reversed(self.by_activation(products)):
            changed.update(self.change(readers, decide))
        return self.constants.finish(), tuple(changed[product.name] for product in products)

    def by_statistics(self, stats: Mapping[str, ChannelStats], *, shift: Shift | bool, smooth_alpha: Alpha) -> _Decide:
        """Each channel's middle or mean as the shift, SmoothQuant's scale; nothing where neither is wanted."""

        def decide(name: str, readers: Sequence[Product]) -> ChannelChange | None:
            alpha = smooth_alpha.get(_group(name)) if isinstance(smooth_alpha, Mapping) else smooth_alpha
            if not shift and alpha is None:
                return None
            mean, amax, mix = self._stats(readers[0], stats, shift=shift)
            return ChannelChange(mean, np.ones_like(mean) if alpha is None else self._scale(readers, amax, alpha, mix), mix)

        return decide

    def by_activation(self, products: Sequence[Product]) -> list[list[Product]]:
        """The products that read the same tensor together, in graph order."""
        for product in products:
            if product not in self.known:
                raise GraphError(f"product {product.name} is not that of this graph; find the products of the graph itself")
        readers: dict[str, list[Product]] = {}
        for product in self.known:
            if product in products:
                readers.setdefault(product.activation, []).append(product)
        return list(readers.values())

    def change(self, readers: Sequence[Product], decide: _Decide) -> dict[str, Product]:
        """Shift and scale what `readers` read; the products as they are afterwards, by name."""
        old = readers[0].activation
        new = f"{next(product.group for product in self.known if product.activation == old)} input"
        change = decide(new, readers)
        if change is not None:
            if old == new:
                raise GraphError(f"{old!r} is shifted and scaled already; start from the graph as it was exported")
            channels = self.constants.weight(readers[0].name).shape[0]
            if len(change.shift) != channels:
                raise CalibrationError(f"{new!r} has {channels} channels, and its shift and scale are of {len(change.shift)}")
            self._apply(readers, new, change)
            self.done[new] = change
        else:
            self.constants.rename(old, new)
        return {p.name: self._renamed(p, new) for p in readers}

    def _renamed(self, product: Product, activation: str) -> Product:
        weight, bias = self.constants.names(product.name)
        return dataclasses.replace(product, activation=activation, weight=weight, bias=bias)

    def _stats(
        self, product: Product, stats: Mapping[str, ChannelStats], *, shift: Shift | bool
    ) -> tuple[Vector, Vector, Vector | None]:
        """What is taken off [channels], the largest |x| of each channel afterwards, and how they were mixed."""
        key = product.activation if self.reference is None else self.reference[product.name].activation
        if key not in stats:
            raise CalibrationError(f"no statistics for {key!r}, which {product.name} reads; collect them for these products")
        seen = stats[key]
        mean, low, high = (np.asarray(array, np.float64) for array in (seen.mean, seen.amin, seen.amax))
        channels = self.constants.weight(product.name).shape[0]
        if not mean.shape == low.shape == high.shape == (channels,) or not np.isfinite([mean, low, high]).all():
            raise CalibrationError(
                f"the statistics of {key!r} must be three finite arrays of {channels} channels; their shapes are "
                f"{mean.shape}, {low.shape}, {high.shape}"
            )
        if not shift:
            mean = np.zeros_like(mean)
        elif shift == "middle":
            mean = (low + high) / 2
        return mean, np.maximum(high - mean, mean - low), seen.mix

    def _scale(self, readers: Sequence[Product], amax: Vector, alpha: float, mix: Vector | None) -> Vector:
        """SmoothQuant's scale, median 1: a common factor changes nothing but where float16's range is spent."""
        found = [unmix_rows(self.constants.weight(product.name), mix) for product in readers]
        weights = np.max([np.abs(weight).max(axis=1) for weight in found], axis=0)
        alive = (amax > 0) & (weights > 0)
        scale = np.ones_like(amax)
        if alive.any():
            scale[alive] = amax[alive] ** alpha / weights[alive] ** (1 - alpha)
            scale[alive] /= np.median(scale[alive])
        return np.clip(scale, 1 / _SPREAD, _SPREAD)

    def _apply(self, readers: Sequence[Product], new: str, change: ChannelChange) -> None:
        """Make the changed tensor `new` out of what the products read, and let them read it."""
        constants, old = self.constants, readers[0].activation
        norm = constants.norm_before(old)
        consumers = constants.products_after(old)
        values = next((row for row in _VALUES if re.fullmatch(row[0], _module(readers[0]))), None)
        if change.mix is not None and values is None:
            raise GraphError(f"the channels of {new!r} cannot be mixed: it is not the output of an attention")
        if norm is not None and consumers is not None:
            gain, bias = constants.get(norm, 1), constants.get(norm, 2)
            constants.set(norm, 1, gain / change.scale)
            constants.set(norm, 2, (bias - change.shift) / change.scale)
            self._absorb(consumers, change)
            constants.rename(old, new)
        elif values is not None:
            source = re.sub(values[0], values[1], _module(readers[0])) + "/MatMul"
            self._change_columns(source, values[2], change)
            self._absorb([product.name for product in readers], change)
            constants.rename(old, new)
        else:
            self._absorb([product.name for product in readers], change)
            constants.insert_before([product.name for product in readers], old, new, change.shift, 1 / change.scale)

    def _change_columns(self, source: str, part: int, change: ChannelChange) -> None:
        """Let the product `source` give changed values in one part of its columns."""
        width = len(change.shift)
        weight = self.constants.weight(source)
        start = part * width if part >= 0 else weight.shape[1] - width
        columns = slice(start, start + width)
        weight[:, columns] = mix_channels(weight[:, columns], change.mix) / change.scale
        self.constants.set(source, 1, weight)
        bias = np.array(self.constants.bias(source))
        bias[..., columns] = (mix_channels(bias[..., columns], change.mix) - change.shift) / change.scale
        self.constants.set_bias(source, bias)

    def _absorb(self, products: Sequence[str], change: ChannelChange) -> None:
        """The inverse in weight and bias of the products that read the changed tensor."""
        for name in products:
            weight = unmix_rows(self.constants.weight(name), change.mix)
            if change.shift.any():
                self.constants.set_bias(name, self.constants.bias(name) + change.shift @ weight)
            self.constants.set(name, 1, weight * change.scale[:, None])


def _group(activation: str) -> str:
    return activation.removesuffix(" input")


def _module(product: Product) -> str:
    return product.name.rpartition("/")[0]
