"""What a decoder answered to some prompts, whole or as golden data keep it: masks in bits, logits at every n-th pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Answer", "answer_of", "reduced"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Answer:
    """To [num_prompts] prompts, k masks each: 4, or the selected one."""

    scores: Array = field(repr=False)
    """`iou_predictions`, float32 [num_prompts, k]."""
    inside: npt.NDArray[np.bool_] = field(repr=False)
    """Where the logits are above 0, bool [num_prompts, k, 256, 256]."""
    logits: Array = field(repr=False)
    """`low_res_masks` at rows and columns `step // 2`, `step // 2 + step`, ..., [num_prompts, k, side, side] with
    256 / step as side, float32."""
    step: int = 1
    masks: Array | None = field(repr=False, default=None)
    """At the photo's size, from a graph with full resolution."""
    bits: npt.NDArray[np.uint8] | None = field(repr=False, default=None)
    """`mask_bits`, from a graph that gives them; they are held against the side's own masks."""

    @property
    def outputs(self) -> dict[str, Array]:
        """Every output with real numbers that is there, by its name in the contract."""
        found = {"low_res_masks": self.logits, "iou_predictions": self.scores}
        return found if self.masks is None else {"masks": self.masks, **found}


def answer_of(outputs: Mapping[str, Array]) -> Answer:
    """The answer in a runner's outputs (`interface.Runner.run`)."""
    logits = outputs["low_res_masks"]
    return Answer(outputs["iou_predictions"], logits > 0, logits, masks=outputs.get("masks"), bits=outputs.get("mask_bits"))


def reduced(answer: Answer, step: int) -> Answer:
    """A whole answer with the logits of every `step`-th pixel alone (1: itself); `step` divides 256."""
    if step == 1:
        return answer
    start = step // 2
    return Answer(answer.scores, answer.inside, answer.logits[..., start::step, start::step], step)
