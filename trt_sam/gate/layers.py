"""Tensors of two graphs side by side, in graph order: signal to noise, largest error, share clipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from trt_sam.accuracy.examples import Example
from trt_sam.accuracy.metrics import decibels
from trt_sam.gate.graphs import MatchedTensor, Run, check_common, group_of_node, matched_tensors, runnable
from trt_sam.gate.pairs import activation_pairs, without_pairs

__all__ = ["LayerRow", "layer_rows"]

Array = npt.NDArray[Any]
_AT_ONCE = 128
"""Tensors times prompts: one takes up to 4 MiB a prompt, and every part of them a whole run."""
_RESCALED_DB, _GAIN_DB, _OTHER_DB = 25.0, 12.0, 20.0


@dataclass(frozen=True)
class LayerRow:
    """One tensor of both graphs."""

    node: str
    """Its node in the ONNX graphs."""
    operation: str
    module: str
    """Path of the module that made the node."""
    group: str
    """Calibration group of the product, as `keep_fp16` calls it; "" for any other node."""
    tensor: str
    """Name in the candidate."""
    sqnr_db: float
    largest_error: float
    """Largest |difference| over the largest |value|."""
    clipped: float
    """Share of values at the largest quantized one, where the tensor is quantized next; else 0."""
    rescaled: bool = False
    """Whether the candidate holds it shifted and scaled channel by channel, which is exactly undone later: the figures are then
    against the candidate's own tensor where no activation is rounded."""
    index: int = field(default=0, repr=False)


def layer_rows(
    reference: onnx.ModelProto, candidate: onnx.ModelProto, examples: Sequence[Example], *, half: bool
) -> list[LayerRow]:
    """Every matched tensor, in the reference's order, over some examples.

    Calibration holds tensors of a quantized graph shifted and scaled channel by channel, which a later product undoes exactly.
    Such a tensor is held against the candidate's own with no activation rounded, for only these mean the same.

    Args:
        reference: a float32 graph.
        candidate: of the same decoder, form and inputs.
        examples: a few; each call's tensors are held a part at a time.
        half: whether `candidate` is to be emulated in float16.

    Raises:
        InputError: the graphs have hardly a node in common.
    """
    check_common(reference, candidate)
    matched = matched_tensors(reference, candidate)
    pairs = activation_pairs(candidate)
    theirs = list(dict.fromkeys(t.candidate for t in matched))
    first, second = Run(reference, [t.reference for t in matched]), Run(runnable(candidate, half=half), theirs)
    bare = Run(without_pairs(candidate, pairs), theirs) if pairs else None
    limits = _quantized_limits(candidate)
    sums = [_Sums() for _ in matched]
    own, bares = [_Sums() for _ in matched], [_Sums(fit=True) for _ in matched]
    for example in examples:
        at_once = max(1, _AT_ONCE // len(example.kinds))
        for start in range(0, len(matched), at_once):
            part = matched[start : start + at_once]
            left = first(example.feed, [t.reference for t in part])
            names = list(dict.fromkeys(t.candidate for t in part))
            right = second(example.feed, names)
            unrounded = bare(example.feed, names) if bare is not None else {}
            for index, tensor in enumerate(part, start=start):
                seen = right[tensor.candidate]
                sums[index].add(left[tensor.reference], seen, limits.get(tensor.candidate))
                if bare is not None:
                    own[index].add(unrounded[tensor.candidate], seen)
                    bares[index].add(left[tensor.reference], unrounded[tensor.candidate])
    rescaled = _rescaled(matched, bares) if bare is not None else [False] * len(matched)
    groups = group_of_node(reference)
    shown = [mine if of_calibration else total for total, mine, of_calibration in zip(sums, own, rescaled, strict=True)]
    return [
        LayerRow(
            tensor.node,
            tensor.operation,
            tensor.node.rpartition("/")[0],
            groups.get(tensor.node, ""),
            tensor.candidate,
            decibels(seen.signal, seen.noise),
            seen.largest_error,
            total.clipped / max(total.count, 1),
            of_calibration,
            tensor.index,
        )
        for tensor, total, seen, of_calibration in zip(matched, sums, shown, rescaled, strict=True)
    ]


def _rescaled(matched: Sequence[MatchedTensor], bares: Sequence[_Sums]) -> list[bool]:
    """Which tensors calibration holds otherwise, seen where no activation is rounded: there nothing else is far off.

    A tensor that a shift and a scale by channel bring back is one. Where the masks come out right, so is every other that is
    far off: what is wrong and does no harm to what it makes was undone, though the channels are split between heads, say.
    """
    last = next((each for tensor, each in zip(matched, bares, strict=True) if tensor.reference == "low_res_masks"), None)
    right = last is not None and decibels(last.signal, last.noise) >= _RESCALED_DB
    return [each.fits or (right and decibels(each.signal, each.noise) < _OTHER_DB) for each in bares]


class _Sums:
    """Of one tensor over the examples."""

    def __init__(self, *, fit: bool = False) -> None:
        self.signal = self.noise = self.largest_error = 0.0
        self.clipped, self.count = 0, 0
        self._fit = fit
        self._fitted: list[tuple[float, float, bool]] = []

    def add(self, reference: Array, other: Array, limit: float | None = None) -> None:
        if reference.shape != other.shape:
            self.noise = np.inf
            return
        wide, seen = np.asarray(reference, np.float32), np.asarray(other, np.float32)
        difference = seen - wide
        signal, noise = _power(wide), _power(difference)
        noise = noise if np.isfinite(noise) else np.inf
        self.signal, self.noise = self.signal + signal, self.noise + noise
        scale = _largest(wide)
        error = _largest(difference) if np.isfinite(noise) else np.inf
        self.largest_error = max(self.largest_error, error / scale if scale else error)
        self.count += seen.size
        if limit is not None:
            self.clipped += int((np.abs(seen) >= limit).sum())
        if self._fit and np.isfinite(noise) and decibels(signal, noise) < _RESCALED_DB and wide.ndim > 1:
            self._fitted.append(_fit(np.asarray(wide, np.float64), np.asarray(seen, np.float64)))

    @property
    def fits(self) -> bool:
        """Whether a shift and a scale by channel bring it back."""
        if not self._fitted or not np.isfinite(self.noise):
            return False
        fitted = decibels(sum(f[0] for f in self._fitted), sum(f[1] for f in self._fitted))
        plain = decibels(self.signal, self.noise)
        return all(uneven for _, _, uneven in self._fitted) and fitted > max(plain + _GAIN_DB, _RESCALED_DB)


def _power(array: Array) -> float:
    """Sum of squares of float32 [rows, ...], row by row: within 0.001 dB of float64's, at a third of its time."""
    rows = array.reshape(len(array) if array.ndim else 1, -1)
    return sum(float(np.dot(row, row)) for row in rows)


def _largest(array: Array) -> float:
    return max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))


def _fit(reference: Array, other: Array) -> tuple[float, float, bool]:
    """Power of the reference, of what a shift and a scale by channel leave, and whether they are not one scale for all."""
    left, right = (array.reshape(-1, array.shape[-1]) for array in (reference, other))
    means = left.mean(axis=0), right.mean(axis=0)
    centred = right - means[1]
    power = np.square(centred).sum(axis=0)
    scales = np.where(power > 0, (centred * (left - means[0])).sum(axis=0) / np.maximum(power, 1e-30), 0.0)
    rest = left - means[0] - centred * scales
    shifts = means[0] - means[1] * scales
    live = power > 0
    spread = float(np.std(scales[live])) / max(float(np.abs(scales[live]).mean()), 1e-30) if live.any() else 0.0
    uneven = spread > 0.02 or float(np.abs(shifts).max()) > 0.02 * float(np.abs(left).max())
    return float(np.square(left).sum()), float(np.square(rest).sum()), uneven


def _quantized_limits(model: onnx.ModelProto) -> dict[str, float]:
    """By tensor that a QuantizeLinear reads: the |value| from which it is clipped."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    limits = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in stored:
            largest = 448.0 if stored[node.input[2]].data_type == onnx.TensorProto.FLOAT8E4M3FN else 127.0
            limits[node.input[0]] = float(onnx.numpy_helper.to_array(stored[node.input[1]])) * largest
    return limits
