"""The masks of many prompts on one photo, as records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from trt_sam.formats.runs import Runs
from trt_sam.imaging.overlay import Box
from trt_sam.runtime.predictor import Predictor

__all__ = ["PhotoPrompt", "prompted_records"]

_PROMPTS_AT_ONCE = 16
"""Masks at full size exist for so many prompts at a time."""


class PhotoPrompt(Protocol):
    """One prompt, in pixels of the photo."""

    @property
    def points(self) -> Sequence[tuple[float, float]]: ...
    @property
    def labels(self) -> Sequence[int]: ...
    @property
    def box(self) -> Box | None: ...
    @property
    def where(self) -> str:
        """Its place in the file that it is from, for messages."""


def prompted_records(predictor: Predictor, prompts: Sequence[PhotoPrompt]) -> list[dict[str, Any]]:
    """The best mask of each prompt, in their order; prompts with and without a box go in calls of their own."""
    records: list[dict[str, Any]] = [{} for _ in prompts]
    for boxed in (False, True):
        rows = [row for row, prompt in enumerate(prompts) if (prompt.box is not None) == boxed]
        for start in range(0, len(rows), _PROMPTS_AT_ONCE):
            part = rows[start : start + _PROMPTS_AT_ONCE]
            masks, iou, _ = predictor.predict_batch(
                [np.array(prompts[row].points) if prompts[row].points else None for row in part],
                [np.array(prompts[row].labels) if prompts[row].points else None for row in part],
                np.array([prompts[row].box for row in part], np.float64) if boxed else None,
            )
            for row, found, scores in zip(part, masks, iou, strict=True):
                best = int(scores.argmax())
                prompt = prompts[row]
                records[row] = {
                    "segmentation": Runs.of(found[best]),
                    "predicted_iou": float(scores[best]),
                    "prompt": {"points": prompt.points, "labels": prompt.labels, "box": prompt.box},
                }
    return records
