"""Pictures as they come in requests: refused before they are decoded where they are too large. numpy and Pillow."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.errors import InputError
from trt_sam.imaging.frame import to_frame
from trt_sam.imaging.photos import decode_image, frame_shape
from trt_sam.serve.faults import Refusal

__all__ = ["picture_of", "picture_too_large", "scaled"]

FORMATS = ("JPEG", "PNG", "WEBP")
Picture = npt.NDArray[np.uint8]


def picture_of(data: bytes, most_pixels: int) -> Picture:
    """Decode a JPEG, PNG or WebP to uint8 [height, width, 3] RGB, upright.

    Raises:
        Refusal: 400 where it is none, or damaged; 413 where it has more pixels.
    """
    if not data:
        raise Refusal(400, "bad_picture", "the request has no body; send the bytes of a JPEG, PNG or WebP")
    image_module = require("PIL.Image", "to read images")
    size: Any = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with image_module.open(io.BytesIO(data), formats=FORMATS) as image:
                size = image.size
    except image_module.DecompressionBombError:
        raise picture_too_large(most_pixels) from None
    except Exception:
        size = None  # what it is comes below, in words
    if size is not None and size[0] * size[1] > most_pixels:
        raise picture_too_large(most_pixels)
    try:
        return decode_image(data, "upload", FORMATS)
    except InputError as error:
        raise Refusal(400, "bad_picture", str(error)) from None


def scaled(rgb: Picture) -> Picture:
    """A picture at the size at which the image encoder sees it: 3 MB at most wait for it, and it need not scale."""
    try:
        height, width = frame_shape(*rgb.shape[:2])
        return np.ascontiguousarray(to_frame(rgb)[0][0, :height, :width])
    except InputError as error:
        raise Refusal(400, "bad_picture", str(error)) from None


def picture_too_large(most_pixels: int) -> Refusal:
    """For a picture of more pixels than that."""
    return Refusal(413, "picture_too_large", f"the picture has more than {most_pixels:,} pixels; scale it down")
