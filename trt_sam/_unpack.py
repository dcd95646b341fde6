"""Packed bits to bool, into memory that is allocated once: numpy's `unpackbits` would allocate its result at every call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Unpacker"]

Array = npt.NDArray[Any]

_EIGHTS: npt.NDArray[np.uint64] = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).view(np.uint64).ravel()
"""For each byte its eight pixels, as the eight bytes of one number."""


class Unpacker:
    """Args: uint8 [..., ceil(width / 8)], read at each call, the first pixel in the highest bit; and `width`."""

    def __init__(self, packed: Array, width: int) -> None:
        self._packed = packed
        self._index = np.empty(packed.shape, np.intp)
        self._eights = np.empty(packed.shape, np.uint64)
        self.pixels: npt.NDArray[np.bool_] = self._eights.view(np.bool_)[..., :width]
        """bool [..., width], written by `unpack`; not contiguous where `width` is no multiple of eight."""

    def unpack(self) -> None:
        """Write `pixels`; allocates nothing."""
        self._index[...] = self._packed
        # Any other mode looks through the indices first and takes a buffer for the result; a byte is always within 256.
        np.take(_EIGHTS, self._index, out=self._eights, mode="clip")
