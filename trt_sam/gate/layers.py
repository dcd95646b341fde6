"""Which node did it: tensors side by side in graph order, and the first node whose tensor costs the masks.

Tensors mislead: a cosine of .998 coexists with lost masks. So the node that is blamed is found by what counts: at a cut through
the graph the candidate's tensors are put into the reference's run, and the masks that come out are held against the limits.
Between a cut that keeps them and one that does not, the node is found by bisection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from trt_sam.accuracy.examples import Example
from trt_sam.accuracy.metrics import decibels
from trt_sam.errors import GraphError, InputError
from trt_sam.gate.answers import answer_of
from trt_sam.gate.graphs import Cut, MatchedTensor, Run, cuts, matched_tensors, runnable, tail
from trt_sam.gate.limits import Limits
from trt_sam.gate.tally import Tally
from trt_sam.gate.verdict import FAIL, judge
from trt_sam.quantize.products import find_products, product_groups
from trt_sam.recipe import TIERS

__all__ = ["Blame", "LayerRow", "blamed_node", "layer_rows", "nodes_of_groups"]

Array = npt.NDArray[Any]
_AT_ONCE = 192
"""Tensors times prompts: one takes up to 4 MiB a prompt, and every part of them a whole run."""
_RESCALED_DB, _GAIN_DB = 25.0, 12.0


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
    """Whether the candidate holds it shifted and scaled channel by channel, exactly undone later: not comparable as it is."""
    index: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Blame:
    """The first node at which the limits break."""

    node: str
    operation: str
    module: str
    group: str
    after: str
    """The last node whose tensor, put into the reference, keeps the limits; "" where there is none."""
    reason: str
    """The first limit that breaks."""
    runs: int
    """Of the reference's tail that it took."""

    @property
    def sentence(self) -> str:
        """For the verdict."""
        group = f", calibration group {self.group}" if self.group else ""
        return f"first node to blame: {self.node} ({self.operation}, module {self.module or 'none'}{group}): {self.reason}"


def nodes_of_groups(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """The products' nodes by calibration group; empty for a graph that cannot be quantized (target cpu, other exporters)."""
    try:
        groups = product_groups(find_products(model, TIERS))
    except GraphError:
        return {}
    return {name: tuple(product.name for product in products) for name, products in groups.items()}


def layer_rows(
    reference: onnx.ModelProto, candidate: onnx.ModelProto, examples: Sequence[Example], *, half: bool
) -> list[LayerRow]:
    """Every matched tensor, in the reference's order, over some examples.

    Args:
        reference: a float32 graph.
        candidate: of the same decoder, form and inputs.
        examples: a few; each call's tensors are held a part at a time.
        half: whether `candidate` is to be emulated in float16.

    Raises:
        InputError: the graphs have hardly a node in common.
    """
    matched = matched_tensors(reference, candidate)
    _check_common(reference, candidate, matched)
    other = runnable(candidate, half=half)
    first = Run(reference, [t.reference for t in matched])
    second = Run(other, [t.candidate for t in matched])
    limits = _quantized_limits(candidate)
    sums = [_Sums() for _ in matched]
    for example in examples:
        at_once = max(1, _AT_ONCE // len(example.kinds))
        for start in range(0, len(matched), at_once):
            part = matched[start : start + at_once]
            left = first(example.feed, [t.reference for t in part])
            right = second(example.feed, list(dict.fromkeys(t.candidate for t in part)))
            for tensor, total in zip(part, sums[start:], strict=False):
                total.add(left[tensor.reference], right[tensor.candidate], limits.get(tensor.candidate))
    groups = _group_of_node(reference)
    rows = []
    for tensor, total in zip(matched, sums, strict=True):
        sqnr, rescaled = total.sqnr()
        module = tensor.node.rpartition("/")[0]
        rows.append(
            LayerRow(
                tensor.node,
                tensor.operation,
                module,
                groups.get(tensor.node, ""),
                tensor.candidate,
                sqnr,
                total.largest_error,
                total.clipped / max(total.count, 1),
                rescaled,
                tensor.index,
            )
        )
    return rows


def blamed_node(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    rows: Sequence[LayerRow],
    examples: Sequence[Example],
    limits: Limits,
    *,
    half: bool,
    progress: Callable[[int], None] | None = None,
) -> Blame | None:
    """The first node whose tensor breaks the limits; None where the examples keep them to the end.

    Args:
        reference: as for `layer_rows`.
        candidate: likewise.
        rows: of `layer_rows`; rescaled tensors are passed over.
        examples: on which the candidate misses a limit.
        limits: what the masks must keep; the number of prompts does not count.
        half: as for `layer_rows`.
        progress: told the number of runs.
    """
    rescaled = {row.tensor for row in rows if row.rescaled}
    matched = [tensor for tensor in matched_tensors(reference, candidate) if tensor.candidate not in rescaled]
    places = list(cuts(reference, matched))
    search = _Search(reference, runnable(candidate, half=half), matched, places, examples, limits, progress)
    if not places or (reason := search.reason(len(places) - 1)) is None:
        return None
    low, high = -1, len(places) - 1
    while high - low > 1:
        middle = (low + high) // 2
        found = search.reason(middle)
        if found is None:
            low = middle
        else:
            high, reason = middle, found
    nodes = list(reference.graph.node)
    node = nodes[places[high].index - 1]
    before = nodes[places[low].index - 1].name if low >= 0 else ""
    group = _group_of_node(reference).get(node.name, "")
    return Blame(node.name, node.op_type, node.name.rpartition("/")[0], group, before, reason, search.runs)


class _Search:
    def __init__(
        self,
        reference: onnx.ModelProto,
        candidate: onnx.ModelProto,
        matched: Sequence[MatchedTensor],
        places: Sequence[Cut],
        examples: Sequence[Example],
        limits: Limits,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._reference, self._places, self._progress = reference, places, progress
        self._examples, self._limits = examples, dataclasses.replace(limits, min_prompts=1)
        self._outputs = [value.name for value in reference.graph.output]
        kept = [name for place in places for name in place.kept]
        self._own = Run(reference, list(dict.fromkeys(kept)))
        self._theirs = Run(candidate, [tensor.candidate for tensor in matched])
        self._expected = [answer_of(self._own(example.feed, self._outputs)) for example in examples]
        self.runs = 0

    def reason(self, place: int) -> str | None:
        """What breaks with the candidate's tensors put in at this cut; None where everything holds."""
        cut = self._places[place]
        run, outputs = Run(tail(self._reference, cut)), set(self._outputs)
        tally = Tally(keep_worst=0)
        for example, expected in zip(self._examples, self._expected, strict=True):
            theirs = self._theirs(example.feed, list(dict.fromkeys(cut.taken.values())))
            own = self._own(example.feed, list(cut.kept)) if cut.kept else {}
            put = {name: np.asarray(theirs[other], np.float32) for name, other in cut.taken.items()} | own
            given = {f"{name} given" if name in outputs else name: array for name, array in put.items()}
            tally.add(example, expected, answer_of(run({**example.feed, **given}, self._outputs)))
        self.runs += 1
        if self._progress is not None:
            self._progress(self.runs)
        verdict = judge(tally.figures(), self._limits)
        return next((check.sentence for check in verdict.checks if check.status == FAIL), None)


class _Sums:
    """Of one tensor over the examples."""

    def __init__(self) -> None:
        self.signal = self.noise = self.largest_error = 0.0
        self.clipped, self.count = 0, 0
        self._fitted: list[tuple[float, float, bool]] = []

    def add(self, reference: Array, other: Array, limit: float | None) -> None:
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
        if np.isfinite(noise) and decibels(signal, noise) < _RESCALED_DB and wide.ndim > 1:
            self._fitted.append(_fit(np.asarray(wide, np.float64), np.asarray(seen, np.float64)))

    def sqnr(self) -> tuple[float, bool]:
        """(decibel, whether it was shifted and scaled by channel): the latter of what is left after undoing that."""
        plain = decibels(self.signal, self.noise)
        if not self._fitted or not np.isfinite(self.noise):
            return plain, False
        signal, noise = sum(f[0] for f in self._fitted), sum(f[1] for f in self._fitted)
        fitted = decibels(signal, noise)
        if all(uneven for _, _, uneven in self._fitted) and fitted > max(plain + _GAIN_DB, _RESCALED_DB):
            return fitted, True
        return plain, False


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


def _group_of_node(model: onnx.ModelProto) -> dict[str, str]:
    """The calibration group of every node in a product's module, and of what adds its bias, which may lie outside."""
    products = {name: group for group, names in nodes_of_groups(model).items() for name in names}
    modules = {name.rpartition("/")[0]: group for name, group in products.items()}
    sums = {name: products[node.name] for node in model.graph.node if node.name in products for name in node.output}
    groups = {}
    for node in model.graph.node:
        added = next((sums[name] for name in node.input if name in sums), "") if node.op_type == "Add" else ""
        groups[node.name] = modules.get(node.name.rpartition("/")[0], added)
    return groups


def _check_common(reference: onnx.ModelProto, candidate: onnx.ModelProto, matched: Sequence[MatchedTensor]) -> None:
    names = {tensor.node for tensor in matched}
    if len(names) < len(reference.graph.node) // 3:
        raise InputError(
            f"the graphs have {len(names)} of {len(reference.graph.node)} nodes in common: other forms of the decoder, or "
            "another exporter; compare layers of graphs with one --target and the same options"
        )
