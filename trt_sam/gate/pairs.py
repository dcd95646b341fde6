"""Pairs of QuantizeLinear and DequantizeLinear on activations: a graph without them, how far they reach, which one did it.

Rounding is everywhere in a quantized graph, and calibration holds tensors shifted and scaled, so that tensors put into another
graph's run say little. A pair can be taken out instead: the same graph, the same weights, one rounding less. What each pair
costs by itself is then a difference of masks and of nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from trt_sam.accuracy.examples import Example
from trt_sam.gate.answers import Answer, answer_of
from trt_sam.gate.graphs import Run, group_of_node
from trt_sam.gate.limits import Limits
from trt_sam.gate.search import Blame
from trt_sam.gate.tally import Figures, Tally
from trt_sam.gate.verdict import FAIL, PASS, Check, judge

__all__ = ["Pair", "activation_pairs", "level_checks", "without_pairs", "worst_pair"]

_LEVELS = 127
"""Of int8, on either side of zero."""


@dataclass(frozen=True)
class Pair:
    """One rounding of activations."""

    tensor: str
    """What is rounded."""
    dequantized: str
    """What it becomes."""
    scale: float
    reader: str
    """The first node that reads it."""
    int8: bool
    """False for FP8."""

    @property
    def name(self) -> str:
        """The calibration group that calibration named the tensor after; else the node that reads it."""
        return self.tensor.removesuffix(" input") if self.tensor.endswith(" input") else self.reader


def activation_pairs(model: onnx.ModelProto) -> list[Pair]:
    """Every pair on a tensor that is computed, with one scale for all of it, in graph order."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        source = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is None or source.op_type != "QuantizeLinear" or source.input[0] in stored or source.input[1] not in stored:
            continue
        scale = numpy_helper.to_array(stored[source.input[1]])
        reader = next((each.name for each in model.graph.node if node.output[0] in each.input), node.name)
        zero = stored.get(source.input[2]) if len(source.input) > 2 else None
        int8 = zero is not None and zero.data_type == TensorProto.INT8
        if scale.size == 1:
            found.append(Pair(source.input[0], node.output[0], float(scale.reshape(())), reader, int8))
    return found


def without_pairs(model: onnx.ModelProto, pairs: Collection[Pair]) -> onnx.ModelProto:
    """A copy in which nothing is rounded or clipped at these pairs; weights stay as they are."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    plain = {pair.dequantized: pair.tensor for pair in pairs}
    for node in bare.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = plain.get(name, name)
    return bare


def level_checks(model: onnx.ModelProto, examples: Sequence[Example], least: int) -> list[Check]:
    """Of each int8 pair the largest level that some calls reach, held against `least`: a scale that is far too large fails."""
    pairs = [pair for pair in activation_pairs(model) if pair.int8]
    run = Run(model, [pair.tensor for pair in pairs])
    largest = np.zeros(len(pairs))
    for example in examples:
        seen = run(example.feed, list(dict.fromkeys(pair.tensor for pair in pairs)))
        values = [float(np.abs(seen[pair.tensor].astype(np.float32)).max()) / pair.scale for pair in pairs]
        largest = np.maximum(largest, np.minimum(np.round(values), _LEVELS))
    checks = []
    for pair, level in zip(pairs, largest.tolist(), strict=True):
        status = PASS if level >= least else FAIL
        detail = f"what {pair.reader} reads; its scale is too large" if status == FAIL else ""
        title = f"largest level of {_LEVELS} that {pair.name} uses"
        checks.append(Check(f"min_levels {pair.name}", title, level, least, True, status, detail=detail))
    return checks


def worst_pair(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    examples: Sequence[Example],
    limits: Limits,
    *,
    progress: Callable[[int], None] | None = None,
) -> Blame | None:
    """The pair that costs most by itself; None where the examples keep the limits, or rounding is not what breaks them.

    Args:
        reference: a float32 graph.
        candidate: quantized, of the same decoder.
        examples: on which the candidate misses a limit.
        limits: what the masks must keep; the number of prompts does not count.
        progress: told the number of runs.
    """
    pairs = activation_pairs(candidate)
    trials = _Trials(reference, examples, dataclasses.replace(limits, min_prompts=1), progress)
    reason = trials.reason(whole := trials.figures(candidate))
    bare = trials.figures(without_pairs(candidate, pairs))
    if not pairs or reason is None or _lost(bare) > _lost(whole) / 2:
        return None
    alone = [_lost(trials.figures(without_pairs(candidate, [p for p in pairs if p is not pair]))) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda number: -alone[number])
    worst = pairs[order[0]]
    rest = trials.reason(trials.figures(without_pairs(candidate, [worst])))
    following = "" if len(pairs) == 1 else f", the next, {pairs[order[1]].name}, {max(0.0, alone[order[1]] - _lost(bare)):.2g}"
    repaired = "without it the limits hold" if rest is None else f"without it there is still: {rest}"
    text = (
        f"{reason}; its rounding alone costs {alone[order[0]] - _lost(bare):.2g} of all masks' IoU{following}, all together "
        f"{_lost(whole) - _lost(bare):.2g}; {repaired}"
    )
    node = next((each for each in reference.graph.node if each.name == worst.reader), None)
    operation = node.op_type if node is not None else ""
    group = group_of_node(reference).get(worst.reader, "")
    return Blame(worst.reader, operation, worst.reader.rpartition("/")[0], group, "", text, trials.runs)


class _Trials:
    """Graphs on the same examples against the same answers."""

    def __init__(
        self,
        reference: onnx.ModelProto,
        examples: Sequence[Example],
        limits: Limits,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._examples, self._limits, self._progress = examples, limits, progress
        self._outputs = [value.name for value in reference.graph.output]
        self._expected = self._answers(reference)
        self.runs = 0

    def figures(self, model: onnx.ModelProto) -> Figures:
        tally = Tally(keep_worst=0)
        for example, expected, seen in zip(self._examples, self._expected, self._answers(model), strict=True):
            tally.add(example, expected, seen)
        self.runs += 1
        if self._progress is not None:
            self._progress(self.runs)
        return tally.figures()

    def reason(self, figures: Figures) -> str | None:
        checks = judge(figures, self._limits).checks
        return next((check.sentence for check in checks if check.status == FAIL), None)

    def _answers(self, model: onnx.ModelProto) -> list[Answer]:
        run = Run(model)
        results = [run(example.feed, self._outputs) for example in self._examples]
        return [answer_of({name: array.astype(np.float32) for name, array in each.items()}) for each in results]


def _lost(figures: Figures) -> float:
    return 1.0 - float(figures.iou_four.mean())
