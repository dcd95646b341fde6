"""What a call asks for, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["EVERY_OUTPUT", "PACKED", "Call", "Decoded"]

PACKED = "packed"
"""Of `bits`: as the graph's `mask_bits` are."""
EVERY_OUTPUT = "every output"
"""Of `masks`: what `run` asks for."""


@dataclass(frozen=True)
class Call:
    """What makes calls alike: sizes, and what is asked."""

    num_prompts: int
    num_points: int
    """Points that the caller gives, without what the plan appends."""
    tail: str
    """"corners" of a box, the "not a point" after clicks, or "" where the caller's tokens are all."""
    masks: str
    """"best", "all", "device" or EVERY_OUTPUT."""
    bits: bool | str = False
    """Bool masks instead of logits, or PACKED."""
    with_mask: bool = False
    """Whether an earlier mask comes with the prompts."""
    height_width: tuple[int, int] | None = None

    @property
    def num_tokens(self) -> int:
        return self.num_points + {"corners": 2, "point": 1, "": 0}[self.tail]


@dataclass(frozen=True)
class Decoded:
    """Results of a call: numpy views of page-locked memory, or `DeviceArray`s. Valid until the slot's next use."""

    masks: Any
    """[num_prompts, num_masks, height, width]: logits in the graph's dtype, or bool; the low-resolution ones, 256 x 256, where
    the graph gives no others. Packed bits are uint8 [num_prompts, num_masks, height, ceil(width / 8)]."""
    iou_predictions: Any
    """float32 [num_prompts, num_masks]."""
    low_res_masks: Any
    """Logits [num_prompts, num_masks, 256, 256] in the graph's dtype; None where bits alone were copied from the GPU."""

    def copy(self) -> Decoded:
        """The same in memory of its own."""
        low_res = None if self.low_res_masks is None else self.low_res_masks.copy()
        same = self.masks is self.low_res_masks
        return Decoded(low_res if same else self.masks.copy(), self.iou_predictions.copy(), low_res)
