"""Records of masks, as mask generators give them: their masks in any form, and the plain data that JSON files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_sam.errors import InputError
from trt_sam.formats.polygons import runs_of_polygons
from trt_sam.formats.runs import Runs

__all__ = ["Photo", "Record", "box_of_pixels", "plain_records", "runs_of"]

Record = Mapping[str, Any]
"""`segmentation`, and what else is known of the mask: `area`, `bbox`, `predicted_iou`, `stability_score`, and so on."""

_MOST_PIXELS = 10**6
"""Of a side: what a damaged file says beyond it takes more memory than there is."""


@dataclass(frozen=True)
class Photo:
    """The image that masks are of."""

    file_name: str
    size: tuple[int, int]
    """(height, width)."""
    image_id: int | str = 1

    def __post_init__(self) -> None:
        if isinstance(self.image_id, bool) or not isinstance(self.image_id, int | str):
            raise InputError(f"the id of image {self.file_name} is {self.image_id!r}, must be a number or a string")
        if not all(1 <= side <= _MOST_PIXELS for side in self.size):
            height, width = self.size
            raise InputError(f"image {self.file_name} is {width}x{height}, both must be 1 to {_MOST_PIXELS}")


def runs_of(segmentation: Any, size: tuple[int, int]) -> Runs:
    """The mask of `size` (height, width) in any of its forms: `Runs`, bool [height, width], COCO's RLE or its polygons.

    Raises:
        InputError: none of these, or of another size.
        MissingDependencyError: for polygons, pycocotools is not installed.
    """
    if isinstance(segmentation, Runs):
        found = segmentation
    elif isinstance(segmentation, Mapping):
        found = Runs.from_coco(segmentation)
    elif isinstance(segmentation, np.ndarray):
        found = Runs.of(segmentation)
    elif isinstance(segmentation, Sequence) and not isinstance(segmentation, str):
        found = runs_of_polygons(segmentation, size)
    else:
        raise InputError(f"a segmentation is {type(segmentation).__name__}, must be a bool array, COCO's RLE or polygons")
    if found.size != tuple(size):
        raise InputError(f"a mask is of {found.size[1]}x{found.size[0]}, its image is {size[1]}x{size[0]}; they must agree")
    return found


def box_of_pixels(runs: Runs) -> list[int]:
    """COCO's bbox [x, y, width, height], in whole pixels: a mask of one pixel is 1 wide and high."""
    if not runs.area:
        return [0, 0, 0, 0]
    x0, y0, x1, y1 = runs.box
    return [x0, y0, x1 - x0 + 1, y1 - y0 + 1]


def plain_records(photo: Photo, records: Sequence[Record]) -> list[dict[str, Any]]:
    """The records as SA-1B's annotations: `id` from 1 on, `segmentation` as compressed RLE, and whatever else they hold."""
    plain = []
    for number, record in enumerate(records, 1):
        runs = runs_of(record["segmentation"], photo.size)
        # The bbox of SAM's records goes from the first pixel to the last: its width is one less than COCO's.
        x0, y0, x1, y1 = runs.box
        known = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": runs.area, **record}
        plain.append({"id": number, **known, "segmentation": runs.compressed()})
    return plain
