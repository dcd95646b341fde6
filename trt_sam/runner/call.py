"""What a call asks for, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from trt_sam.cuda.dlpack import DeviceArray
from trt_sam.runtime.call.decoded import PACKED, Bits, Decoded

__all__ = ["EVERY_OUTPUT", "PACKED", "Call", "Decoded", "DecodedOnDevice", "OpenOptions", "RunnerOptions"]

EVERY_OUTPUT = "every output"
"""Of `masks`: what `run` asks for."""


class RunnerOptions(TypedDict, total=False):
    """The keywords of `DecoderRunner`, explained there."""

    in_flight: int
    image_bytes: int
    graphs: bool
    prompt_buckets: Sequence[int] | None
    point_buckets: Sequence[int] | None
    wait: Literal["auto", "spin", "block"]


class OpenOptions(RunnerOptions, total=False):
    """Those of `DecoderRunner.open`, but for the device."""

    role: str | None
    runtime_cache: bool
    photos: bool


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
    bits: Bits = False
    """Bool masks instead of logits, or PACKED."""
    with_mask: bool = False
    """Whether an earlier mask comes with the prompts."""
    height_width: tuple[int, int] | None = None

    @property
    def num_tokens(self) -> int:
        return self.num_points + {"corners": 2, "point": 1, "": 0}[self.tail]


@dataclass(frozen=True)
class DecodedOnDevice:
    """Results that stay on the GPU, valid until the slot's next use; shapes and dtypes as `Decoded`'s, of all masks."""

    masks: DeviceArray
    iou_predictions: DeviceArray
    low_res_masks: DeviceArray

    def release(self, stream: int) -> None:
        """Say that a consumer's stream has been given all its reads, as `DeviceArray.release`: it may go then."""
        self.masks.release(stream)
