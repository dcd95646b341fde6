"""Packed bits to bool, into memory that is allocated once: numpy's `unpackbits` would allocate its result at every call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SCRATCH_PER_BYTE", "Unpacker"]

Array = npt.NDArray[Any]

_EIGHTS: npt.NDArray[np.uint64] = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).view(np.uint64).ravel()
"""For each byte its eight pixels, as the eight bytes of one number."""


SCRATCH_PER_BYTE = 16
"""Bytes that spreading a byte takes: its eight pixels, and its number as numpy indexes."""


class Unpacker:
    """Spreads packed bits into memory of the caller's.

    Args:
        packed: uint8 [..., ceil(width / 8)], read at each call, the first pixel in the highest bit.
        width: pixels of a row.
        scratch: uint8, contiguous, `SCRATCH_PER_BYTE` times as many bytes as `packed` at least; what is in it is lost.
    """

    def __init__(self, packed: Array, width: int, scratch: Array) -> None:
        half = packed.size * SCRATCH_PER_BYTE // 2
        self._packed = packed
        self._eights = scratch[:half].view(np.uint64).reshape(packed.shape)
        self._index = scratch[half : 2 * half].view(np.intp).reshape(packed.shape)
        self.pixels: npt.NDArray[np.bool_] = self._eights.view(np.bool_)[..., :width]
        """bool [..., width] in `scratch`, written by `unpack`; not contiguous where `width` is no multiple of eight."""

    def unpack(self) -> None:
        """Write `pixels`; allocates nothing."""
        self._index[...] = self._packed
        # Any other mode looks through the indices first and takes a buffer for the result; a byte is always within 256.
        np.take(_EIGHTS, self._index, out=self._eights, mode="clip")
