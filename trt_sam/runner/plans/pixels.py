"""How the masks of a call are given: logits, bool, or bits. One small class for each, over memory that is allocated once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trt_sam.runner.plans.layout import rows_view
from trt_sam.runner.plans.unpack import Unpacker
from trt_sam.runtime.call.decoded import PACKED, THRESHOLD, Bits

__all__ = ["Pixels", "pixels_for", "shown_in"]

Array = npt.NDArray[Any]


class Pixels(Protocol):
    """Of the arrays `found` by name, in page-locked memory, what the caller gets as masks."""

    wanted: frozenset[str]
    """Outputs that are copied for it, beside the scores."""

    def place(self, found: Mapping[str, Array], scratch: Array) -> tuple[Array, Array | None]:
        """`masks` and `low_res_masks` of the result; `scratch` is memory for what is made on the host."""

    def make(self) -> None:
        """Fill them in, once the copies have run; allocates nothing."""


def pixels_for(bits: Bits, names: frozenset[str], width: int) -> Pixels:
    """For a graph with the outputs `names` and masks of `width` pixels."""
    if bits and "mask_bits" in names:
        return _PackedBits() if bits == PACKED else _UnpackedBits(width)
    logits = names - {"mask_bits", "iou_predictions"}  # bits or logits, never both
    return _Thresholded(logits) if bits else _Logits(logits)


def shown_in(names: frozenset[str]) -> str:
    """The output with the largest masks."""
    return "masks" if "masks" in names else "low_res_masks"


class _Logits:
    def __init__(self, wanted: frozenset[str]) -> None:
        self.wanted = wanted

    def place(self, found: Mapping[str, Array], scratch: Array) -> tuple[Array, Array | None]:
        return found[shown_in(self.wanted)], found["low_res_masks"]

    def make(self) -> None:
        return None


class _Thresholded:
    def __init__(self, wanted: frozenset[str]) -> None:
        self.wanted = wanted

    def place(self, found: Mapping[str, Array], scratch: Array) -> tuple[Array, Array | None]:
        self._logits = found[shown_in(self.wanted)]
        self._inside = rows_view(scratch, 0, self._logits.shape, "bool")
        return self._inside, found["low_res_masks"]

    def make(self) -> None:
        np.greater(self._logits, THRESHOLD, self._inside)


class _PackedBits:
    wanted = frozenset({"mask_bits"})

    def place(self, found: Mapping[str, Array], scratch: Array) -> tuple[Array, Array | None]:
        return found["mask_bits"], None

    def make(self) -> None:
        return None


class _UnpackedBits:
    wanted = frozenset({"mask_bits"})

    def __init__(self, width: int) -> None:
        self._width = width

    def place(self, found: Mapping[str, Array], scratch: Array) -> tuple[Array, Array | None]:
        unpacker = Unpacker(found["mask_bits"], self._width, scratch)
        self._unpack = unpacker.unpack
        return unpacker.pixels, None

    def make(self) -> None:
        self._unpack()
