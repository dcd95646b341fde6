"""COCO's text for lengths of runs, written and read as pycocotools does; numpy only.

From the fourth length on the difference to the length two before is kept. A number is cut into pieces of 5 bits, lowest first;
bit 5 of a character says that another piece follows, and 48 is added to make it printable. See `rleToString` in COCO's API.
Reading checks what it reads, which pycocotools's C code leaves to the caller.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trt_sam.errors import InputError

__all__ = ["compress", "decompress"]

IntArray = npt.NDArray[np.int64]

_MOST_PIECES = 7
"""Of a number: enough for 32 bits and a sign."""


def compress(counts: IntArray) -> str:
    """Lengths int64 [n], each below 2^31, as ASCII text."""
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    pieces = np.zeros((len(rest), _MOST_PIECES), np.uint8)
    used = np.zeros(pieces.shape, np.bool_)
    going = np.ones(len(rest), np.bool_)
    for number in range(_MOST_PIECES):
        used[:, number] = going
        piece = rest & 31
        rest >>= 5
        # The sign is bit 4 of the last piece.
        going = going & (rest != np.where(piece & 16, -1, 0))
        pieces[:, number] = piece + np.where(going, 32 + 48, 48)
    return pieces[used].tobytes().decode("ascii")


def decompress(text: str | bytes) -> IntArray:
    """The lengths in such a text, int64 [n].

    Raises:
        InputError: a character that does not occur in such texts, a number that is cut off or too large.
    """
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError:
        raw = b"\0"
    pieces = np.frombuffer(raw, np.uint8).astype(np.int64) - ord("0")
    if ((pieces < 0) | (pieces > 63)).any():
        raise InputError("compressed counts hold a character that COCO's RLE does not have; the text is damaged")
    last = np.nonzero(pieces < 32)[0]
    if len(pieces) and (not len(last) or last[-1] != len(pieces) - 1):
        raise InputError("compressed counts are cut off in the middle of a number; the text is damaged")
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    place = 5 * (np.arange(len(pieces)) - np.repeat(first, last - first + 1))
    if (place >= 5 * _MOST_PIECES).any():
        raise InputError("compressed counts hold a number of more than 32 bits; the text is damaged")
    if not len(pieces):
        return np.zeros(0, np.int64)
    numbers = np.add.reduceat((pieces & 31) << place, first) - np.where(pieces[last] & 16, 1 << (place[last] + 5), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
