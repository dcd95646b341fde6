"""`Summary`: what is said of a variant over some prompts, from the columns that `accuracy.measure` fills. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.accuracy.bootstrap import mean_interval, percentile_interval
from trt_sam.accuracy.metrics import decibels

__all__ = ["CLEAR_MARGIN", "Columns", "Summary", "known_mean", "summarize"]

Array = npt.NDArray[Any]
Columns = Mapping[str, Array]
"""Figures of one variant by name, [num_prompts] each."""

CLEAR_MARGIN = 0.01
"""A flip is clear where FP32 scores the mask that the variant selects lower than its own choice by more than this."""


@dataclass(frozen=True)
class Summary:
    """Figures over some prompts."""

    prompts: int
    iou_mean: float
    """Of the mask that FP32 selects, against the variant's mask of the same index."""
    iou_mean_interval: tuple[float, float]
    """95 % of it, over images (`bootstrap`)."""
    iou_p5: float
    """5th percentile, between neighbours linearly."""
    iou_p5_interval: tuple[float, float]
    iou_p1: float
    iou_min: float
    share_under_095: float
    boundary_mean: float
    """Boundary IoU of the same two masks (`metrics.boundary_iou`, band 2 % of the diagonal)."""
    boundary_p5: float
    full_mean: float
    """As `iou_mean`, of the masks at the photo's size."""
    full_boundary_mean: float
    all_masks_mean: float
    """Mean IoU of all four masks, each with its own index."""
    selected_mean: float
    """Mean IoU of what each side selects by its own scores."""
    flips: int
    """Prompts for which the variant selects another mask."""
    clear_flips: int
    """Of these, the ones beyond CLEAR_MARGIN."""
    kendall_tau: float
    """Mean over prompts, of the four IoU scores."""
    sqnr_db: float
    """Signal to noise of all logits of all four masks."""
    truth_selected: float | None
    """Mean IoU with the exact mask of what the variant selects; None where it is not known."""
    truth_oracle: float | None
    """Mean IoU with the exact mask of the best of the variant's four."""


def summarize(columns: Columns, rows: npt.NDArray[np.bool_] | None = None) -> Summary:
    """Sum up a variant's columns of a `Measurement` over `rows` (bool [num_prompts], at least one; None: all)."""
    kept = {name: array if rows is None else array[rows] for name, array in columns.items()}
    iou, boundary, images = kept["iou"], kept["boundary"], kept["image"]
    return Summary(
        prompts=len(iou),
        iou_mean=float(iou.mean()),
        iou_mean_interval=mean_interval(iou, images),
        iou_p5=float(np.percentile(iou, 5)),
        iou_p5_interval=percentile_interval(iou, images, 5),
        iou_p1=float(np.percentile(iou, 1)),
        iou_min=float(iou.min()),
        share_under_095=float((iou < 0.95).mean()),
        boundary_mean=float(boundary.mean()),
        boundary_p5=float(np.percentile(boundary, 5)),
        full_mean=float(kept["full"].mean()),
        full_boundary_mean=float(kept["full_boundary"].mean()),
        all_masks_mean=float(kept["all_masks"].mean()),
        selected_mean=float(kept["selected"].mean()),
        flips=int(kept["flip"].sum()),
        clear_flips=int((kept["flip_cost"] > CLEAR_MARGIN).sum()),
        kendall_tau=float(kept["kendall_tau"].mean()),
        sqnr_db=decibels(float(kept["signal"].sum()), float(kept["noise"].sum())),
        truth_selected=known_mean(kept["truth_selected"]),
        truth_oracle=known_mean(kept["truth_oracle"]),
    )


def known_mean(values: Array) -> float | None:
    """The mean of what is not NaN; None where nothing is known."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
