"""`choose`: which calibrator's range each group of products takes, and which groups are better left in float16.

What counts is the masks on held-out prompts, not the error of a tensor. The search starts with the calibrator that is best
for all groups alike, and changes it group by group where another is better: it ends no worse than any. Better is what moves
the logits at the masks' edges less (`trials.Score.noise`) and does the masks no harm: on a few dozen prompts the mean IoU
alone is decided by a single unstable mask. Seen on SAM's decoder: by 32 prompts' IoU the scale's strength 0.7 looked better
than 1 by .0018.
Then groups go back to float16, the costliest first, as long as one costs more than TOLERANCE of mean IoU with all the others
quantized; then a small group that makes most of the noise (LOUD); last, a later tier if all that is left of it costs as much
as TOLERANCE. Costs are those within the whole: errors of groups
add up like noise, so the first of them looks dear against float32 and is cheap among the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from calibrators.trials import Score, Trials
from trt_sam.quantize.share import InputMoments, Product, insert_qdq, product_groups

__all__ = ["TIE", "TOLERANCE", "Choice", "GroupChoice", "better", "choose", "uniform_scores"]

TOLERANCE = 0.003
"""Mean mask IoU that a group, or a tier, may cost."""
TIE = 1e-4
"""Qualities this near are equal; the calibrator that comes first in `ranges` wins."""
NOISE_TIE = 0.15
"""Noises this near, relatively, are equal, and then what comes first is taken: the widest range. Clipping that lowered the
noise of 32 prompts by 11 % cost .0003 of mean IoU on 560 others, most of it in small masks and refinements."""
LOUD, LITTLE = 0.5, 0.1
"""A group stays in float16 where the noise falls below LOUD of what it was without it, if it does less than LITTLE of the
quantized multiply-adds: INT8 would save next to nothing there, and costs most of the accuracy."""
_HARM = 0.001
"""What the quality of masks (`Score.quality`) may fall where the noise falls: less than the prompts can tell."""
_SAME_RANGE = 0.005
"""Ranges this near, relatively, are tried once."""

Progress = Callable[[str, int, int], None]
"""Called with "trials", trials done, and the most that may be needed."""


@dataclass(frozen=True)
class GroupChoice:
    """What was decided for one group; its figures are of the search, in which every group had its shift and scale."""

    group: str
    tier: str
    calibrator: str | None
    """None: it stays in float16."""
    cost: float
    """Mean IoU gained by leaving it out of what was quantized when that was last tried."""
    tried: Mapping[str, float]
    """Mean IoU of the whole with each calibrator's range for this group; ranges that hardly differ were tried once."""
    noise: Mapping[str, float | None] = field(default_factory=dict)
    """The noise at the masks' edges, likewise."""


@dataclass(frozen=True)
class Choice:
    """The whole decision."""

    amax: Mapping[str, float]
    """Range by activation, for `insert_qdq`, of the images that were not held out; what is delivered is measured on all."""
    groups: tuple[GroupChoice, ...]
    score: Score
    """Of all chosen groups together."""
    trials: int
    notes: tuple[str, ...]
    """What was left out and why, in words."""
    alpha: float | None = None
    """Strength of the scale, by the best uniform trial."""
    uniform: Mapping[str, Score] = field(default_factory=dict)
    """What all groups together reached with one calibrator: by "ALPHA CALIBRATOR"."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Groups that stay in float16, as `keep_fp16` takes them."""
        return tuple(each.group for each in self.groups if each.calibrator is None)

    def kept(self, products: Sequence[Product]) -> tuple[Product, ...]:
        """Those of `products` that are to be quantized."""
        return tuple(product for product in products if product.group not in self.left_out)

    def to_dict(self) -> dict[str, Any]:
        """The decision as JSON-able data."""
        return {**dataclasses.asdict(self), "left_out": list(self.left_out)}


def choose(
    model: onnx.ModelProto,
    products: Sequence[Product],
    ranges: Mapping[str, Mapping[str, float]],
    trials: Trials,
    *,
    uniform: Mapping[str, Score] | None = None,
    moments: Mapping[str, InputMoments] | None = None,
    precision: str = "int8",
    progress: Progress | None = None,
) -> Choice:
    """Choose a calibrator per group.

    Args:
        model: the float32 graph, preconditioned if the quantized one will be.
        products: its products that may be quantized.
        ranges: by calibrator, in order of preference, the range of every activation of `products`.
        trials: over the same decoder in float32, on feeds that the ranges were not made from.
        uniform: what `uniform_scores` gave for these ranges; None to try them here.
        moments: as `insert_qdq` takes them.
        precision: "int8" or "fp8".
        progress: told of every trial.

    At least one group is quantized, whatever it costs.

    Raises:
        InferenceError: ONNX Runtime cannot run a trial.
    """
    return _Search(model, products, ranges, trials, moments or {}, precision, progress).run(uniform)


def uniform_scores(
    quantized: Callable[[Mapping[str, float]], onnx.ModelProto], ranges: Mapping[str, Mapping[str, float]], trials: Trials
) -> dict[str, Score]:
    """What each calibrator's ranges reach when all groups have them; calibrators whose ranges hardly differ share a trial.

    Args:
        quantized: the graph with these ranges.
        ranges: by calibrator, the range of every activation.
        trials: to judge by.
    """
    scores: dict[str, Score] = {}
    for name, amax in ranges.items():
        same = (other for other in scores if all(_near(amax[tensor], ranges[other][tensor]) for tensor in amax))
        twin = next(same, None)
        scores[name] = trials.score(quantized(amax)) if twin is None else scores[twin]
    return scores


def better(score: Score, other: Score) -> bool:
    """Whether `score` is better than `other` by more than a tie: less noise at the masks' edges, and no harm to the masks."""
    if score.noise is None or other.noise is None:
        return score.quality > other.quality + TIE
    no_harm = score.quality >= other.quality - _HARM and score.clear_flips <= other.clear_flips
    return score.noise < other.noise * (1 - NOISE_TIE) and no_harm


class _Search:
    def __init__(
        self,
        model: onnx.ModelProto,
        products: Sequence[Product],
        ranges: Mapping[str, Mapping[str, float]],
        trials: Trials,
        moments: Mapping[str, InputMoments],
        precision: str,
        progress: Progress | None,
    ) -> None:
        self._model, self._ranges, self._trials, self._precision = model, ranges, trials, precision
        self._moments = moments
        self._groups = product_groups(products)
        self._progress = progress
        tiers = {group[0].tier for group in self._groups.values()}
        self._most = (len(self._groups) + 1) * len(ranges) + len(self._groups) + len(tiers)
        self._before = trials.runs

    def run(self, uniform: Mapping[str, Score] | None) -> Choice:
        uniform = uniform or {cal: self._score(dict.fromkeys(self._groups, cal)) for cal in self._ranges}
        start = self._preferred(uniform)
        chosen, reached = dict.fromkeys(self._groups, start), uniform[start]
        tried: dict[str, dict[str, Score]] = {}
        for name, products in self._groups.items():
            scores = {start: reached}
            for cal in self._distinct(products, start):
                scores[cal] = self._score({**chosen, name: cal})
            best = self._preferred(scores)
            chosen[name], reached = best, scores[best]
            tried[name] = scores
        chosen, reached, costs, notes = self._leave_out(chosen, reached)
        groups = tuple(
            GroupChoice(
                name,
                products[0].tier,
                chosen.get(name),
                costs[name],
                {cal: score.mean_iou for cal, score in tried[name].items()},
                {cal: score.noise for cal, score in tried[name].items()},
            )
            for name, products in self._groups.items()
        )
        return Choice(self._amax(chosen), groups, reached, self._trials.runs - self._before, tuple(notes))

    def _leave_out(self, chosen: dict[str, str], reached: Score) -> tuple[dict[str, str], Score, dict[str, float], list[str]]:
        """(what stays, its score, what each group cost when it was last tried, what was left out, in words)."""
        notes: list[str] = []
        costs: dict[str, float] = {}
        without: dict[str, Score] = {}
        suspects = list(chosen)
        while suspects and len(chosen) > 1:
            without = {name: self._score(_less(chosen, [name])) for name in suspects}
            costs |= {name: score.mean_iou - reached.mean_iou for name, score in without.items()}
            worst = max(without, key=lambda name: costs[name])
            if costs[worst] <= TOLERANCE:
                break
            notes.append(f"{worst} stays in float16: {without[worst]} instead of {reached}")
            chosen, reached = _less(chosen, [worst]), without[worst]
            # Only those that were too dear are tried again; the others were cheap among more noise, and are no suspects.
            suspects = [name for name in suspects if name != worst and costs[name] > TOLERANCE]
        loud = self._loudest(chosen, reached, without)
        if loud is not None:
            notes.append(
                f"{loud} stays in float16: noise {without[loud].noise:.3g} instead of {reached.noise:.3g} for little work"
            )
            chosen, reached = _less(chosen, [loud]), without[loud]
        # The first tier holds most of the work: a later one must earn its place beside it, not the other way round.
        for tier in sorted({group[0].tier for group in self._groups.values()}, reverse=True)[:-1]:
            members = [name for name in chosen if self._groups[name][0].tier == tier]
            if 1 < len(members) < len(chosen):
                rest = _less(chosen, members)
                score = self._score(rest)
                if score.mean_iou - reached.mean_iou > TOLERANCE:
                    notes.append(f"tier {tier} stays in float16: {score} instead of {reached}")
                    chosen, reached = rest, score
        for name in chosen:
            # The only group there is: against float32.
            costs.setdefault(name, 1.0 - reached.mean_iou)
        if 1.0 - reached.mean_iou > TOLERANCE and len(chosen) == 1:
            notes.append(f"{next(iter(chosen))} alone costs more than {TOLERANCE}, and stays quantized as the last group")
        return chosen, reached, costs, notes

    def _loudest(self, chosen: Mapping[str, str], reached: Score, without: Mapping[str, Score]) -> str | None:
        """The small group that makes most of the noise, if one does; `without` are scores without each, by the last trials."""
        work = {name: sum(product.multiply_adds for product in self._groups[name]) for name in chosen}
        noises = {
            name: score.noise
            for name, score in without.items()
            if score.noise is not None and name in chosen and work[name] < LITTLE * sum(work.values())
        }
        quietest = min(noises, key=lambda name: noises[name], default=None)
        if quietest is None or reached.noise is None or len(chosen) < 2 or noises[quietest] >= LOUD * reached.noise:
            return None
        return quietest

    def _distinct(self, products: Sequence[Product], start: str) -> list[str]:
        """The calibrators whose ranges differ for these products, from each other and from that of `start`."""
        kept = [start]
        for cal, amax in self._ranges.items():
            same = (all(_near(amax[p.activation], self._ranges[other][p.activation]) for p in products) for other in kept)
            if not any(same):
                kept.append(cal)
        return kept[1:]

    def _preferred(self, tried: Mapping[str, Score]) -> str:
        """The first, unless a later one is better."""
        chosen, *others = tried
        for cal in others:
            if better(tried[cal], tried[chosen]):
                chosen = cal
        return chosen

    def _amax(self, chosen: Mapping[str, str]) -> dict[str, float]:
        amax: dict[str, float] = {}
        for name, cal in chosen.items():
            for product in self._groups[name]:
                # Where two groups read one tensor, its range is the first one's.
                amax.setdefault(product.activation, self._ranges[cal][product.activation])
        return amax

    def _score(self, chosen: Mapping[str, str]) -> Score:
        products = [product for name in chosen for product in self._groups[name]]
        amax = self._amax(chosen)
        score = self._trials.score(insert_qdq(self._model, products, amax, self._precision, moments=self._moments))
        if self._progress is not None:
            self._progress("trials", self._trials.runs - self._before, self._most)
        return score


def _near(first: float, second: float) -> bool:
    return abs(first / second - 1) <= _SAME_RANGE


def _less(chosen: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: cal for name, cal in chosen.items() if name not in names}
