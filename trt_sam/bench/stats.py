"""Numbers out of timed calls: percentiles, throughput, and ratios of medians with their spread. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LEAST_FOR_P90", "LEAST_FOR_P99", "Latency", "Ratio", "ratio_of_medians", "summarize"]

LEAST_FOR_P90, LEAST_FOR_P99 = 10, 100
"""Samples below which a percentile would only be the maximum under another name; it is left out."""


@dataclass(frozen=True)
class Latency:
    """The distribution of one call's time, in milliseconds."""

    samples: int
    p50: float
    p90: float | None
    """None with fewer than 10 samples."""
    p99: float | None
    """None with fewer than 100 samples."""
    max: float
    mean: float


@dataclass(frozen=True)
class Ratio:
    """How many times faster a side is than the baseline: the baseline's median over the side's."""

    side: str
    baseline: str
    prompts: int
    ratio: float
    """The median of the rounds' own ratios, each of two medians."""
    low: float
    """Lower quartile of the rounds' own ratios."""
    high: float
    """Upper quartile of the rounds' own ratios."""
    least: float
    most: float
    rounds: int


def summarize(samples: Sequence[float]) -> Latency:
    """Percentiles of times in milliseconds (at least one); p90 and p99 are times that were seen, not interpolated."""
    times = np.asarray(samples, np.float64)

    def percentile(q: float, least: int) -> float | None:
        return float(np.quantile(times, q, method="higher")) if len(times) >= least else None

    return Latency(
        samples=len(times),
        p50=float(np.median(times)),
        p90=percentile(0.9, LEAST_FOR_P90),
        p99=percentile(0.99, LEAST_FOR_P99),
        max=float(times.max()),
        mean=float(times.mean()),
    )


def ratio_of_medians(
    side: str, rounds: Sequence[Sequence[float]], baseline: str, base_rounds: Sequence[Sequence[float]], *, prompts: int
) -> Ratio:
    """Compare two sides that were timed in turn, round by round.

    Args:
        side: its name.
        rounds: its times, by round; at least one, none empty.
        baseline: the name of what it is compared with.
        base_rounds: the baseline's times in the same rounds.
        prompts: per call, for the record.
    """
    # Within a round both sides saw the same state of the machine, so their ratio varies less than either.
    each = [float(np.median(base) / np.median(own)) for own, base in zip(rounds, base_rounds, strict=True)]
    low, high = np.quantile(each, [0.25, 0.75])
    return Ratio(side, baseline, prompts, float(np.median(each)), float(low), float(high), min(each), max(each), len(each))
