"""The first node whose tensor breaks the limits: the candidate's tensors put into the reference's run, and bisection.

Tensors mislead: a cosine of .998 coexists with lost masks. So the node that is blamed is found by what counts: at a cut through
the graph the candidate's tensors are put into the reference's run, and the masks that come out are held against the limits.
Between a cut that keeps them and one that does not, the node is found by bisection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from trt_sam.accuracy.examples import Example
from trt_sam.gate.answers import answer_of
from trt_sam.gate.graphs import Cut, MatchedTensor, Run, cuts, group_of_node, matched_tensors, runnable, tail
from trt_sam.gate.limits import Limits
from trt_sam.gate.tally import Tally
from trt_sam.gate.verdict import FAIL, judge

__all__ = ["Blame", "blamed_node"]


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


def blamed_node(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    passed_over: Collection[str],
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
        passed_over: the candidate's tensors that mean something else than the reference's (`LayerRow.rescaled`).
        examples: on which the candidate misses a limit.
        limits: what the masks must keep; the number of prompts does not count.
        half: as for `layer_rows`.
        progress: told the number of runs.
    """
    matched = [tensor for tensor in matched_tensors(reference, candidate) if tensor.candidate not in passed_over]
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
    group = group_of_node(reference).get(node.name, "")
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
