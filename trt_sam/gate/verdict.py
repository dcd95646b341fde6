"""The verdict on a candidate: every limit with the figure, its interval and what follows. numpy only.

pass      every figure keeps its limit, and so does the worse end of the 95 % interval of the means and percentiles
fail      a figure misses its limit
too few   every figure keeps its limit, but there are fewer prompts than asked for, or an interval reaches beyond a limit
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.accuracy.bootstrap import mean_interval, percentile_interval
from trt_sam.accuracy.metrics import decibels
from trt_sam.gate.limits import LARGE_MASK, Limits
from trt_sam.gate.tally import Figures

__all__ = ["FAIL", "PASS", "TOO_FEW", "Check", "Verdict", "judge"]

Array = npt.NDArray[Any]

PASS, FAIL, TOO_FEW = "pass", "fail", "too few prompts to tell"

_OWN_MASKS = 5e-3
"""Bringing masks up is exact but for the last places of float16, whatever the decoder's own precision is."""
_FEW_IMAGES = 5
"""With fewer images they cannot be resampled: intervals are then those of prompts, and too narrow for other images."""


@dataclass(frozen=True)
class Check:
    """One limit."""

    name: str
    """Of `Limits`, or "finite OUTPUT", "tolerance OUTPUT", "own masks", "min_levels GROUP", "precision", "prompts"."""
    title: str
    value: float
    limit: float
    higher_is_better: bool
    status: str
    """PASS, FAIL or TOO_FEW."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval; None where there is none."""
    detail: str = ""
    said: str = ""
    """The whole sentence, where figure and limit are no numbers that mean something to people."""

    @property
    def sentence(self) -> str:
        """For people: the figure, its interval, the limit."""
        if self.said:
            return self.said
        sign = "at least" if self.higher_is_better else "at most"
        ends = "" if self.low is None or self.high is None else f" (95 %: {self.low:.4g} to {self.high:.4g})"
        value = f"{self.value}" if isinstance(self.value, int) else f"{self.value:.4g}"
        return f"{self.title} {value}{ends}, must be {sign} {self.limit:g}" + (f"; {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class Verdict:
    """PASS, FAIL or TOO_FEW, and why."""

    status: str
    checks: tuple[Check, ...]
    intervals_by: str
    """"images" or "prompts": what was resampled."""

    @property
    def passed(self) -> bool:
        return self.status == PASS

    @property
    def advice(self) -> str:
        """What to do where there were too few prompts to tell; else empty."""
        if self.status != TOO_FEW:
            return ""
        more = "judge it by more prompts (--prompts N; golden data are made with golden --prompts N)"
        # Where an interval is too wide, asking for fewer makes it no narrower.
        return more + ", or ask for fewer (--min-prompts N)" * (self.missed[-1].name == self.missed[0].name == "min_prompts")

    @property
    def missed(self) -> tuple[Check, ...]:
        """What stands in the way of passing."""
        return tuple(check for check in self.checks if check.status != PASS)


def judge(figures: Figures, limits: Limits, *, masks_mean_something: bool = True, own: Sequence[Check] = ()) -> Verdict:
    """Judge a candidate's figures.

    Args:
        figures: of `Tally`.
        limits: to be kept.
        masks_mean_something: False on random embeddings: masks then take no part.
        own: checks of the candidate itself, made by the caller: its arithmetic, its ranges.
    """
    clusters = figures.images if len(figures.names) >= _FEW_IMAGES else np.arange(len(figures.images))
    checks = [*own, *_output_checks(figures, limits)]
    if masks_mean_something:
        checks += _mask_checks(figures, limits, clusters)
    count = len(figures.iou)
    enough = PASS if count >= limits.min_prompts else TOO_FEW
    checks.append(Check("min_prompts", "prompts", count, limits.min_prompts, True, enough))
    states = {check.status for check in checks}
    status = FAIL if FAIL in states else TOO_FEW if TOO_FEW in states else PASS
    return Verdict(status, tuple(checks), "images" if len(figures.names) >= _FEW_IMAGES else "prompts")


def _output_checks(figures: Figures, limits: Limits) -> Iterator[Check]:
    for name, seen in figures.outputs.items():
        if seen.not_finite:
            detail = f"the first at {seen.first_not_finite}"
            yield Check(
                f"finite {name}", f"{name}: values that are NaN or infinite", seen.not_finite, 0, False, FAIL, detail=detail
            )
        if name in limits.tolerances:
            limit = limits.tolerances[name]
            status = PASS if seen.error <= limit else FAIL
            what = "share of pixels that are not those of its own masks" if name == "mask_bits" else "largest relative error"
            yield Check(f"tolerance {name}", f"{name}: {what}", seen.error, limit, False, status)
    if "masks" in figures.outputs:
        error = figures.outputs["masks"].from_own
        title = "masks: largest relative error against its own low_res_masks, brought up"
        yield Check("own masks", title, error, _OWN_MASKS, False, PASS if error <= _OWN_MASKS else FAIL)
    logits = figures.outputs["low_res_masks"]
    value = decibels(logits.signal, logits.noise)
    yield Check(
        "min_sqnr_db", "SQNR of the logits, dB", value, limits.min_sqnr_db, True, PASS if value >= limits.min_sqnr_db else FAIL
    )


def _mask_checks(figures: Figures, limits: Limits, clusters: Array) -> Iterator[Check]:
    four = figures.iou_four.mean(axis=1)
    groups = (
        ("", "selected mask", figures.iou, figures.iou, figures.area, limits.min_mean_iou, limits.min_p5_iou),
        ("_four", "all masks", four, figures.iou_four, figures.area_four, limits.min_mean_iou_four, limits.min_p5_iou_four),
    )
    for suffix, what, by_prompt, each, area, mean_limit, p5_limit in groups:
        mean, ends = float(by_prompt.mean()), mean_interval(by_prompt, clusters)
        yield _estimated(f"min_mean_iou{suffix}", f"mean IoU, {what}", mean, ends, mean_limit)
        if suffix:
            value = float(np.percentile(each, 5))
            yield Check(
                "min_p5_iou_four", f"5th percentile of IoU, {what}", value, p5_limit, True, PASS if value >= p5_limit else FAIL
            )
            continue
        p5, ends = float(np.percentile(by_prompt, 5)), percentile_interval(by_prompt, clusters, 5)
        yield _estimated("min_p5_iou", f"5th percentile of IoU, {what}", p5, ends, p5_limit)
        large = each[(area >= LARGE_MASK) & ~figures.unstable]
        least = float(large.min()) if len(large) else 1.0
        title = f"least IoU of a mask of {LARGE_MASK} pixels or more, {what}"
        status = PASS if least >= limits.min_iou else FAIL
        yield Check("min_iou", title, least, limits.min_iou, True, status, detail=_left_out(each[figures.unstable]))
    share = figures.clear_flips / len(figures.flip_cost)
    detail = f"{figures.clear_flips} of {len(figures.flip_cost)} prompts; {int(figures.flip.sum())} flips in all"
    status = PASS if share <= limits.max_clear_flips else FAIL
    low, high = _share_interval(figures.clear_flips, len(figures.flip_cost))
    title = "clear flips, share of prompts"
    yield Check("max_clear_flips", title, share, limits.max_clear_flips, False, status, low, high, detail)


def _left_out(ious: Array) -> str:
    if not len(ious):
        return ""
    return f"{len(ious)} left out, which the reference in FP16 changes too (here {', '.join(f'{iou:.4f}' for iou in ious)})"


def _estimated(name: str, title: str, value: float, ends: tuple[float, float], limit: float) -> Check:
    low, high = ends
    status = FAIL if value < limit else TOO_FEW if low < limit else PASS
    return Check(name, title, value, limit, True, status, low, high)


def _share_interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share. Source: Wilson, JASA 22 (1927)."""
    z, share = 1.96, count / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)
