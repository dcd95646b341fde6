"""Photos: reading them as RGB, finding them in a folder, and the size SAM's image encoder sees them at. numpy and Pillow."""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._files import existing_file
from trt_sam._lazy import require
from trt_sam.contract import FRAME_SIZE
from trt_sam.errors import InputError
from trt_sam.progress import SAID_ONCE

__all__ = ["IMAGE_SUFFIXES", "decode_image", "frame_shape", "list_images", "read_image"]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What counts as an image when a folder is given; a file that is named is read whatever it is called."""

_ANIMATED = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
"""Not MPO: what phones add to a JPEG are maps of depth and brightness."""
_DEEP = re.compile(r";(12|16|32)[BLNSF]+$")
"""Pillow's names of more than 8 bits a channel ("RGB;16B"); without the byte order, "BGR;16" is 5 or 6 bits."""
_OURS = re.compile(r"(.+)\.(mask|mask-\d+|masks|overlay)\.png")
"""What `segment` writes beside a photo, by the photo's stem."""
_FAULTS = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, RuntimeError, MemoryError),
    *(ArithmeticError, LookupError, struct.error, zlib.error),
)
"""What Pillow's decoders raise on damaged files."""

_log = logging.getLogger(__name__)


def read_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read an image as uint8 [height, width, 3], RGB, turned as its EXIF orientation says; alpha is dropped, grey is repeated.

    Of several frames the first is taken, which the log says.

    Raises:
        InputError: missing, empty, truncated, no image, more than 8 bits a channel, or too large to be meant.
        MissingDependencyError: Pillow is not installed.
    """
    file = existing_file(path, "image")
    return _upright(file, file, None)


def decode_image(data: bytes, name: str, formats: Sequence[str] | None = None) -> npt.NDArray[np.uint8]:
    """As `read_image`, of the bytes of a file; errors call it `name`.

    Args:
        data: the whole file.
        name: what messages call it.
        formats: Pillow's names of those that are taken; None for all.

    Raises:
        InputError: empty, truncated, no image of these formats, more than 8 bits a channel, or too large to be meant.
        MissingDependencyError: Pillow is not installed.
    """
    return _upright(io.BytesIO(data), name, formats)


def _upright(file: Path | io.BytesIO, name: object, formats: Sequence[str] | None) -> npt.NDArray[np.uint8]:
    image_module = require("PIL.Image", "to read images")
    image_ops = require("PIL.ImageOps", "to read images")
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of its limit, and about odd metadata; neither changes the pixels.
            warnings.simplefilter("ignore")
            with image_module.open(file, formats=formats) as image:
                _refuse_deep(image, name)
                if image.format in _ANIMATED and (frames := getattr(image, "n_frames", 1)) > 1:
                    _log.info("%s holds %d frames; the first is taken", name, frames)
                upright = image_ops.exif_transpose(image)
                return np.array(upright.convert("RGB"), dtype=np.uint8)
    except image_module.DecompressionBombError:
        limit = 2 * image_module.MAX_IMAGE_PIXELS
        raise InputError(f"image {name} is larger than {limit:,} pixels, the most that is read; scale it down") from None
    except image_module.UnidentifiedImageError:
        taken = "JPEG or PNG" if formats is None else " or ".join((", ".join(formats[:-1]), formats[-1]))
        raise InputError(f"{name} is not an image that Pillow can read; give a {taken}") from None
    except _FAULTS as error:
        raise InputError(f"image {name} is damaged or truncated ({error}); get it again") from None


def _refuse_deep(image: Any, name: object) -> None:
    """Raise InputError where Pillow would drop bits without a word: grey clips to white, 16-bit RGB loses its low bytes.

    12-bit data in 16-bit words would come out nearly black, and no file says which of its values is white.
    """
    stored = image.mode
    for tile in getattr(image, "tile", ()):
        raw = tile[3] if isinstance(tile[3], str) else tile[3][0] if tile[3] else ""
        if isinstance(raw, str) and _DEEP.search(raw):
            stored = raw
    if stored.startswith(("I", "F")) or _DEEP.search(stored):
        raise InputError(
            f"image {name} has mode {stored}, must have 8 bits a channel; scale it first, its black to 0 and its white to 255"
        )


def list_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The images that `paths` name: a file is itself, a folder the images directly in it, sorted by name.

    What `segment` wrote beside a photo of the folder (photo.mask.png, photo.overlay.png) is left out, and so is what lies in
    its subfolders; the log says both.

    Raises:
        InputError: a path is missing, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(existing_file(path, "image" if path.suffix else "folder of images"))
            continue
        try:
            entries = sorted(path.iterdir())
        except OSError as error:
            raise InputError(f"folder {path} cannot be read: {error.strerror}") from error
        inside = [p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()]
        stems = {photo.stem for photo in inside}
        ours = [photo for photo in inside if (made := _OURS.fullmatch(photo.name)) and made[1] in stems]
        if ours:
            text = "%s: %d masks and overlays that segment wrote beside their photos are left out"
            _log.info(text, path, len(ours), extra=SAID_ONCE)
            inside = [photo for photo in inside if photo not in ours]
        count = sum(entry.is_dir() and not entry.name.startswith(".") for entry in entries)
        subfolders = f"{count} subfolder{'s' * (count != 1)}"
        if not inside:
            kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
            below = f", and its {subfolders} {'is' if count == 1 else 'are'} not looked into; name one of them" if count else ""
            raise InputError(f"folder {path} holds no image ({kinds}){below or '; name another'}")
        if count:
            _log.info("%s: images of the folder itself are taken, not of its %s", path, subfolders, extra=SAID_ONCE)
        found.extend(inside)
    if not found:
        raise InputError("no photo was given; name files or a folder")
    return found


def frame_shape(height: int, width: int) -> tuple[int, int]:
    """(height, width) of an image scaled until its long side is 1024, rounded as Meta does.

    Raises:
        InputError: the image is so narrow that its short side would vanish.
    """
    scale = FRAME_SIZE / max(height, width)
    scaled = int(height * scale + 0.5), int(width * scale + 0.5)
    if min(scaled) < 1:
        raise InputError(f"image is {width}x{height}: at a long side of {FRAME_SIZE} its short side vanishes; crop it first")
    return scaled
