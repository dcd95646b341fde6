"""Which group of products costs the masks most: each quantized alone, and each left out of the rest.

The two differ, because errors do not add up; a group's rank goes by the mean of both. The list for a recipe's `keep_fp16` is
made by giving groups back to float16 in that order, each step tried on all the others together, until the goal is reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from calibrators.trials import Score, Trials
from trt_sam.quantize.share import InputMoments, Product, insert_qdq, product_groups

__all__ = ["Goal", "GroupSensitivity", "SensitivityReport", "rank_groups"]

Progress = Callable[[str, int, int], None]
"""Called with "trials", trials done, and the most that may be needed."""


@dataclass(frozen=True)
class Goal:
    """What `keep_fp16` is to reach."""

    mean_iou: float = 0.99
    p5_iou: float = 0.97
    clear_flips: float = 0.01
    """Share of prompts."""

    def reached(self, score: Score) -> bool:
        """Whether all three hold."""
        clear = score.clear_flips / score.prompts
        return score.mean_iou >= self.mean_iou and score.p5_iou >= self.p5_iou and clear <= self.clear_flips


@dataclass(frozen=True)
class GroupSensitivity:
    """What one group costs."""

    group: str
    tier: str
    multiply_adds: int
    """Of one prompt of two points."""
    cost: float
    """Mean of the IoU lost by it alone and the IoU gained by leaving it out of the rest."""
    alone: Score
    """Nothing else quantized."""
    left_out: Score | None
    """Everything else quantized; None where there is nothing else."""
    nodes: tuple[str, ...] = ()
    """Of its products in the ONNX graph; the module is what stands before the last slash."""


@dataclass(frozen=True)
class SensitivityReport:
    """The ranking."""

    precision: str
    all_groups: Score
    groups: tuple[GroupSensitivity, ...]
    """The most sensitive first."""
    goal: Goal
    keep_fp16: tuple[str, ...]
    """Groups to leave in float16 for the goal; empty where it is reached without."""
    kept: Score | None
    """With these left out; None where that leaves nothing quantized."""
    goal_reached: bool

    def to_dict(self) -> dict[str, Any]:
        """The ranking as JSON-able data."""
        return dataclasses.asdict(self)


def rank_groups(
    model: onnx.ModelProto,
    products: Sequence[Product],
    amax: Mapping[str, float],
    trials: Trials,
    *,
    moments: Mapping[str, InputMoments] | None = None,
    precision: str = "int8",
    goal: Goal | None = None,
    progress: Progress | None = None,
) -> SensitivityReport:
    """Rank the groups of `products`.

    Args:
        model: the float32 graph, preconditioned if the quantized one will be.
        products: its products that may be quantized.
        amax: the range of every activation of `products`.
        trials: over the same decoder in float32.
        moments: as `insert_qdq` takes them.
        precision: "int8" or "fp8".
        goal: for `keep_fp16`; None takes the defaults of `Goal`.
        progress: told of every trial.

    Raises:
        InferenceError: ONNX Runtime cannot run a trial.
    """
    goal = goal or Goal()
    groups = product_groups(products)
    before, most = trials.runs, 3 * len(groups)

    def score(names: Sequence[str]) -> Score:
        quantized = [product for name in names for product in groups[name]]
        result = trials.score(insert_qdq(model, quantized, amax, precision, moments=moments))
        if progress is not None:
            progress("trials", trials.runs - before, most)
        return result

    whole = score(list(groups))
    rows = []
    for name, members in groups.items():
        others = [other for other in groups if other != name]
        # One group: alone is the whole, and left out is the float32 graph.
        alone = score([name]) if others else whole
        left_out = score(others) if others else None
        gained = (1.0 if left_out is None else left_out.mean_iou) - whole.mean_iou
        cost = ((1.0 - alone.mean_iou) + gained) / 2
        work = sum(product.multiply_adds for product in members)
        rows.append(GroupSensitivity(name, members[0].tier, work, cost, alone, left_out, tuple(each.name for each in members)))
    rows.sort(key=lambda row: (-row.cost, -row.alone.clear_flips, -row.alone.flips))
    keep: list[str] = []
    kept: Score | None = whole
    for row in rows:
        if kept is None or goal.reached(kept):
            break
        keep.append(row.group)
        rest = [name for name in groups if name not in keep]
        # The first step was tried already.
        kept = (row.left_out if len(keep) == 1 else score(rest)) if rest else None
    reached = kept is not None and goal.reached(kept)
    return SensitivityReport(precision, whole, tuple(rows), goal, tuple(keep), kept, reached)
