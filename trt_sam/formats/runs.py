"""`Runs`: a mask as lengths of runs, COCO's uncompressed form; what masks are kept and handed on as. numpy only.

The pixels of a mask are read column by column, each from the top, as COCO does; `counts` are the lengths of the stretches of
equal pixels, the first of which is outside of the mask and may be 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.errors import InputError
from trt_sam.formats.counts_text import compress, decompress

__all__ = ["Runs"]

IntArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Runs:
    """One mask of `size` (height, width); `counts` int64 [n] of at least one, none but the first of which is 0."""

    size: tuple[int, int]
    counts: IntArray

    @classmethod
    def of(cls, mask: Mask, *, top: int = 0, left: int = 0, size: tuple[int, int] | None = None) -> Runs:
        """Encode `mask` bool [height, width], or a window whose first pixel is at (`top`, `left`) of a mask of `size`.

        Pixels outside of the window are outside of the mask. Raises InputError where the window does not fit, or `mask` is not
        bool and two-dimensional.
        """
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise InputError(f"mask is {mask.dtype} {list(mask.shape)}, must be bool [height, width]; compare it with 0 first")
        height, width = mask.shape if size is None else size
        if min(top, left) < 0 or top + mask.shape[0] > height or left + mask.shape[1] > width:
            raise InputError(f"a window of {list(mask.shape)} at ({top}, {left}) does not fit into {height}x{width}")
        # A column outside the mask above and below makes every stretch of a column begin and end inside of the array.
        framed = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
        framed[:, 1:-1] = mask.T
        change = np.diff(framed, axis=1)
        columns, rows = np.nonzero(change)
        edges = (columns.astype(np.int64) + left) * height + rows + top
        # Where one column ends inside and the next begins inside, the stretch goes on: its end and start are the same pixel.
        start, end = edges[0::2], edges[1::2]
        joined = end[:-1] == start[1:]
        start, end = start[np.append(True, ~joined)[: len(start)]], end[np.append(~joined, True)[: len(end)]]
        return cls((height, width), _lengths(np.stack([start, end], axis=1).ravel(), height * width))

    @classmethod
    def from_coco(cls, segmentation: Mapping[str, Any]) -> Runs:
        """Read COCO's RLE, `{"size": [height, width], "counts": ...}`: counts as numbers, or as compressed text or bytes.

        Raises:
            InputError: keys are missing, the text is damaged, or the counts do not fit the size.
        """
        try:
            height, width = (int(side) for side in segmentation["size"])
            counts = segmentation["counts"]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"a COCO RLE must be {{size: [height, width], counts}}, found {str(segmentation)[:80]}") from None
        if min(height, width) < 1:
            raise InputError(f"a COCO RLE has size [{height}, {width}], both must be at least 1")
        if isinstance(counts, str | bytes):
            lengths = decompress(counts)
        else:
            try:
                lengths = np.asarray(counts).astype(np.int64, casting="safe") if len(counts) else np.zeros(0, np.int64)
            except (TypeError, ValueError):
                raise InputError("the counts of a COCO RLE must be whole numbers, or compressed text") from None
        if (lengths < 0).any():
            raise InputError(f"the counts of a COCO RLE hold {lengths.min()}, must be 0 or more")
        if lengths.sum() != height * width:
            raise InputError(
                f"the counts of a COCO RLE add up to {lengths.sum()}, must be those of {height}x{width} = {height * width}"
            )
        edges = np.cumsum(lengths)[:-1]
        # A length of 0 inside joins two runs; edges that stand twice at a pixel cancel each other.
        places, times = np.unique(edges, return_counts=True)
        return cls((height, width), _lengths(places[(times % 2 == 1) & (places < height * width)], height * width))

    @property
    def area(self) -> int:
        """Number of pixels of the mask."""
        return int(self.counts[1::2].sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) of the first and last column and row that hold a pixel, as SAM has it; zeros for an empty mask."""
        if len(self.counts) == 1:
            return 0, 0, 0, 0
        height = self.size[0]
        edges = np.cumsum(self.counts)
        start, last = edges[0::2][: len(self.counts) // 2], edges[1::2] - 1
        left, right = start // height, last // height
        # A run that goes on in the next column touches the bottom of one and the top of the other.
        through = bool((left != right).any())
        top = 0 if through else int((start % height).min())
        bottom = height - 1 if through else int((last % height).max())
        return int(left[0]), top, int(right[-1]), bottom

    def mask(self) -> Mask:
        """The mask as bool [height, width]."""
        height, width = self.size
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.ascontiguousarray(np.repeat(inside, self.counts).reshape(width, height).T)

    def uncompressed(self) -> dict[str, Any]:
        """COCO's RLE with counts as a list of numbers."""
        return {"size": list(self.size), "counts": self.counts.tolist()}

    def compressed(self) -> dict[str, Any]:
        """COCO's RLE with counts as compressed text, as pycocotools and SA-1B have it."""
        return {"size": list(self.size), "counts": compress(self.counts)}


def _lengths(edges: IntArray, pixels: int) -> IntArray:
    """Lengths of the runs between pixel numbers that rise."""
    bounds = np.concatenate([[0], edges, [pixels]] if not len(edges) or edges[-1] < pixels else [[0], edges])
    return np.diff(bounds).astype(np.int64)
