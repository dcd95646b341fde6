"""Masks as `supervision.Detections`, for its annotators, trackers and metrics, and back. Needs supervision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trt_sam._lazy import require
from trt_sam.formats.records import Record, runs_of

__all__ = ["records_of_detections", "to_detections"]


def to_detections(records: Sequence[Record], size: tuple[int, int]) -> Any:
    """The masks of an image of `size` (height, width) as `supervision.Detections`, in their order.

    `xyxy` goes from the first to the last pixel, as in `Detections.from_sam`; `confidence` is the predicted IoU, and
    `data["stability_score"]` the stability score, where all records have them. `mask` is bool [n, height, width], `class_id` 0.

    Raises:
        MissingDependencyError: supervision is not installed.
    """
    supervision = require("supervision", "to make Detections")
    if not records:
        return supervision.Detections.empty()
    runs = [runs_of(record["segmentation"], size) for record in records]
    masks = np.empty((len(runs), *size), np.bool_)
    for row, each in zip(masks, runs, strict=True):
        row[:] = each.mask()

    def of_all(name: str) -> Any:
        return np.array([r[name] for r in records], np.float32) if all(name in r for r in records) else None

    stability = of_all("stability_score")
    return supervision.Detections(
        xyxy=np.array([each.box for each in runs], np.float32),
        mask=masks,
        confidence=of_all("predicted_iou"),
        class_id=np.zeros(len(runs), np.int64),
        data={} if stability is None else {"stability_score": stability},
    )


def records_of_detections(detections: Any) -> list[dict[str, Any]]:
    """Records with `segmentation` bool [height, width], and `predicted_iou` where there is a confidence."""
    if detections.mask is None:
        return []
    confidence = [None] * len(detections) if detections.confidence is None else detections.confidence.tolist()
    return [
        {"segmentation": np.asarray(mask, np.bool_)} | ({} if score is None else {"predicted_iou": score})
        for mask, score in zip(detections.mask, confidence, strict=True)
    ]
