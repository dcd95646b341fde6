"""What `decode` may be asked for, and what it gives: the same of a runner on a CPU and of one on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from trt_sam.contract import LABEL_ABSENT

__all__ = ["PACKED", "THRESHOLD", "Asked", "Bits", "Decoded", "Masks", "Numbers", "chosen_mask"]

Array = npt.NDArray[Any]

Masks = Literal["best", "all"]
"""Of `masks`: one per prompt, by SAM's rule, or all that the graph gives."""
Bits = bool | Literal["packed"]
"""Of `bits`: logits, bool masks, or eight pixels to a byte."""
Numbers = ArrayLike | None
"""Prompts as callers give them: a numpy array, lists, a tensor of the CPU."""
PACKED: Literal["packed"] = "packed"
THRESHOLD = 0.0
"""A pixel belongs to the mask where its logit is above this, as in SAM."""


class Asked(TypedDict, total=False):
    """What else a call may say; explained at `DecoderRunner.submit`."""

    image: int | Sequence[int] | None
    bits: Bits
    image_size: tuple[int, int] | None
    timeout: float | None


@dataclass(frozen=True)
class Decoded:
    """Results of a call. On a GPU they are views of page-locked memory, valid until the slot's next use, if not copied."""

    masks: Array
    """[num_prompts, num_masks, height, width]: logits in the graph's dtype, or bool; the low-resolution ones, 256 x 256, where
    the graph gives no others. Packed bits are uint8 [num_prompts, num_masks, height, ceil(width / 8)]."""
    iou_predictions: npt.NDArray[np.float32]
    """[num_prompts, num_masks]."""
    low_res_masks: Array | None
    """Logits [num_prompts, num_masks, 256, 256] in the graph's dtype; None where bits were asked of a graph that packs them."""

    def copy(self) -> Decoded:
        """The same in memory of its own."""
        low_res = None if self.low_res_masks is None else self.low_res_masks.copy()
        same = self.masks is self.low_res_masks
        masks = low_res if same and low_res is not None else self.masks.copy()
        return Decoded(masks, self.iou_predictions.copy(), low_res)

    @staticmethod
    def joined(parts: Sequence[Decoded]) -> Decoded:
        """The prompts of all parts, in order; the one part itself where there is no other."""
        if len(parts) == 1:
            return parts[0]
        found = [part.low_res_masks for part in parts if part.low_res_masks is not None]
        low_res = np.concatenate(found) if found else None
        same = parts[0].masks is parts[0].low_res_masks
        masks = low_res if same and low_res is not None else np.concatenate([part.masks for part in parts])
        return Decoded(masks, np.concatenate([part.iou_predictions for part in parts]), low_res)


def chosen_mask(scores: Sequence[float], labels: Sequence[float]) -> int:
    """SAM's rule for one prompt: mask 0 from three tokens on, else the best of the others; absent points do not count.

    On lists, because arrays cost more than the rule. Its twins: `accuracy.metrics.best_masks`, `graph.export.select_best`.
    """
    tokens = len(labels) - labels.count(LABEL_ABSENT)
    return 0 if tokens > 2 else max(range(1, len(scores)), key=scores.__getitem__)
