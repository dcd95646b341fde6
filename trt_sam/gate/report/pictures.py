"""The worst masks on the photograph: both masks and where they differ, as JPEG in a data URI."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.accuracy.measurement import WorstMask
from trt_sam.contract import FRAME_SIZE, LABEL_BACKGROUND, LABEL_FOREGROUND
from trt_sam.feeds.realistic import picture_part
from trt_sam.imaging.overlay import Box, Click, draw_overlay

__all__ = ["AGREED", "GAINED", "LOST", "data_uri", "panels"]

Picture = npt.NDArray[np.uint8]

AGREED, LOST, GAINED = (120, 120, 120), (214, 40, 57), (29, 120, 220)
"""Colours of pixels that both have, that only the reference has, that only the candidate has."""
_GROWN = 2


def panels(shown: WorstMask) -> tuple[Picture, Picture, Picture]:
    """The photograph with the reference's mask, with the candidate's, and with their difference; each with the prompt.

    uint8 [height, width, 3] each: the picture's part of the 256 x 256 frame, twice as large.
    """
    part = picture_part(shown.image.original_size)
    photo = _grown(shown.image.picture[part])
    masks = [_repeated(mask[part]) for mask in (shown.reference, shown.other)]
    scale = _GROWN * 256 / FRAME_SIZE
    clicks: list[Click] = [
        (float(x) * scale, float(y) * scale, int(label))
        for (x, y), label in zip(shown.coords, shown.labels, strict=True)
        if label in (LABEL_BACKGROUND, LABEL_FOREGROUND)
    ]
    corners = shown.coords[shown.labels > LABEL_FOREGROUND] * scale
    box: Box | None = (*map(float, corners[0]), *map(float, corners[1])) if len(corners) == 2 else None  # type: ignore[assignment]
    first, second = (draw_overlay(photo, mask, clicks, box) for mask in masks)
    grey = np.repeat(photo.mean(axis=2, keepdims=True), 3, axis=2) * 0.6 + 60
    for where, colour in (
        (masks[0] & masks[1], AGREED),
        (masks[0] & ~masks[1], LOST),
        (~masks[0] & masks[1], GAINED),
    ):
        weight = 0.25 if colour == AGREED else 0.85
        grey[where] = (1 - weight) * grey[where] + weight * np.array(colour)
    empty = np.zeros(masks[0].shape, np.bool_)
    difference = draw_overlay(grey.clip(0, 255).astype(np.uint8), empty, clicks, box)
    return first, second, difference


def data_uri(picture: Picture) -> str:
    """A picture for `<img src>`."""
    buffer = io.BytesIO()
    _pil().fromarray(picture).save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _grown(picture: Picture) -> Picture:
    pil = _pil()
    height, width = picture.shape[:2]
    size = (width * _GROWN, height * _GROWN)
    return np.asarray(pil.fromarray(picture).resize(size, pil.Resampling.BICUBIC), np.uint8)


def _repeated(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return mask.repeat(_GROWN, axis=0).repeat(_GROWN, axis=1)


def _pil() -> Any:
    return require("PIL.Image", "to draw masks")
