"""Masks as pictures (binary, by number, one a file) and as packed bits in an .npz; numpy and Pillow."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trt_sam._files import existing_file
from trt_sam._lazy import require
from trt_sam.errors import InputError
from trt_sam.formats.runs import Runs

__all__ = ["binary_picture", "index_picture", "load_bits", "packed_bits", "palette", "png_of"]


def binary_picture(masks: Sequence[Runs], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """uint8 [height, width]: 255 where any mask is, else 0."""
    picture = np.zeros(size, np.uint8)
    for runs in masks:
        picture[runs.mask()] = 255
    return picture


def index_picture(masks: Sequence[Runs], size: tuple[int, int]) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """[height, width] of the number of each pixel's mask, from 1 on, 0 where there is none; small masks lie on large ones.

    uint8 up to 255 masks, then uint16. Raises InputError for more than 65,535.
    """
    if len(masks) > np.iinfo(np.uint16).max:
        raise InputError(f"{len(masks)} masks do not fit into a PNG of 16 bits; take another format, such as json or bits")
    picture = np.zeros(size, np.uint8 if len(masks) <= np.iinfo(np.uint8).max else np.uint16)
    for number in sorted(range(len(masks)), key=lambda i: -masks[i].area):
        picture[masks[number].mask()] = number + 1
    return picture


def palette(count: int) -> npt.NDArray[np.uint8]:
    """uint8 [count, 3]: black, then colours of which neighbours differ well; always the same."""
    # Steps of the golden ratio around the circle of hues never come close to the last few.
    hue = np.arange(count) * 0.61803398875 % 1.0
    lightness = 0.72 + 0.28 * (np.arange(count) * 0.75487766625 % 1.0)
    angles = 2 * np.pi * (hue[:, None] + np.array([0, 1 / 3, 2 / 3]))
    colours = (lightness[:, None] * (0.55 + 0.45 * np.cos(angles)) * 255).astype(np.uint8)
    colours[:1] = 0
    return colours


def png_of(picture: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], *, coloured: bool = False) -> bytes:
    """The bytes of a PNG: grey of 8 or 16 bits; with `coloured`, 8 bits are numbers of a palette's colours."""
    image = require("PIL.Image", "to write images").fromarray(picture)
    if coloured and picture.dtype == np.uint8:
        image.putpalette(palette(256).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def packed_bits(masks: Sequence[Runs], size: tuple[int, int]) -> dict[str, npt.NDArray[np.generic]]:
    """`mask_bits` uint8 [n, height, ceil(width / 8)], eight pixels of a row to a byte as `numpy.packbits`; and `size`."""
    bits = np.empty((len(masks), size[0], -(-size[1] // 8)), np.uint8)
    for row, runs in zip(bits, masks, strict=True):
        row[:] = np.packbits(runs.mask(), axis=-1)
    return {"mask_bits": bits, "size": np.array(size, np.int64)}


def load_bits(path: str | os.PathLike[str]) -> npt.NDArray[np.bool_]:
    """The masks bool [n, height, width] of a file of `packed_bits`; raises InputError where it is missing or damaged."""
    path = existing_file(path, "masks")
    try:
        with np.load(path, allow_pickle=False) as file:
            bits, (height, width) = file["mask_bits"], file["size"].tolist()
        masks = np.unpackbits(bits, axis=-1, count=width).astype(np.bool_)
        fits = masks.shape[1:] == (height, width)
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise InputError(f"{path} is not a whole file of packed masks ({error}); write it again") from None
    if not fits:
        raise InputError(f"{path} holds masks of {list(masks.shape[1:])}, its size says [{height}, {width}]; write it again")
    return masks
