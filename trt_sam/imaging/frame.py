"""A photo in the frame that the image encoder sees: scaled until its long side is 1024, in the upper left corner."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.contract import FRAME_SIZE
from trt_sam.errors import InputError
from trt_sam.imaging.photos import frame_shape

__all__ = ["scaled", "to_frame"]


def to_frame(rgb: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Scale a photo as Meta does, with Pillow's bilinear filter on the 8-bit image.

    Args:
        rgb: uint8 [height, width, 3], RGB, of any size.

    Returns:
        The two inputs of an `encode` graph: `image` uint8 [1, 1024, 1024, 3], zero where the photo does not reach, and
        `image_size` int32 [2], the (height, width) that it has there.

    Raises:
        InputError: `rgb` is not uint8 [height, width, 3], or too narrow to be scaled.
        MissingDependencyError: Pillow is not installed.
    """
    picture = scaled(rgb)
    height, width, _ = picture.shape
    frame = np.zeros((1, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8)
    frame[0, :height, :width] = picture
    return frame, np.array((height, width), dtype=np.int32)


def scaled(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Scale a photo as `to_frame` does: uint8 [height, width, 3] whose long side is 1024. Raises as `to_frame`."""
    image_module = require("PIL.Image", "to resize images")
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise InputError(f"image is {rgb.dtype} {list(rgb.shape)}, must be uint8 [height, width, 3], RGB")
    height, width = frame_shape(*rgb.shape[:2])
    return np.asarray(image_module.fromarray(rgb).resize((width, height), image_module.Resampling.BILINEAR))
