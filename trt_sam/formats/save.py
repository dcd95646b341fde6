"""Files of masks in every format, chosen by name or by the suffix of the file."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trt_sam._files import atomic_folder, write_atomically
from trt_sam._json import strict
from trt_sam.errors import InputError
from trt_sam.formats.coco import coco_data, sa1b_data
from trt_sam.formats.labelme import labelme_data
from trt_sam.formats.pictures import binary_picture, index_picture, packed_bits, png_of
from trt_sam.formats.records import Photo, Record, plain_records, runs_of

__all__ = ["FOLDER", "FORMATS", "check_new_folder", "encoded", "format_of", "save_masks", "suffix_of"]

FOLDER = "each"
FORMATS = {
    "json": "a list of annotations as SA-1B has them, masks as COCO RLE",
    "sa1b": "a file of SA-1B: image, and annotations with COCO RLE",
    "coco": "COCO's instances, masks as RLE",
    "coco-polygons": "COCO's instances, masks as polygons",
    "labelme": "labelme's polygons",
    "index": "a PNG of the number of each pixel's mask, small masks on top",
    "binary": "a PNG of 255 where any mask is",
    "bits": "an .npz with eight pixels to a byte",
    FOLDER: "a folder with a PNG for each mask",
}
"""Names of the formats, and what they are."""
_BY_SUFFIX = {".json": "json", ".png": "index", ".npz": "bits", "": FOLDER}
_SUFFIXES = {"index": ".png", "binary": ".png", "bits": ".npz", FOLDER: ""}
"""Of those that are not JSON."""


def format_of(path: str | os.PathLike[str], name: str | None = None, *, single: bool = False) -> str:
    """The format for a file: the one that is named, else the one of its suffix; `single` masks in a .png are binary.

    Raises:
        InputError: an unknown name, or a suffix that tells nothing or something else than the name.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if name is None:
        if suffix not in _BY_SUFFIX:
            raise InputError(
                f"the output is {path}, must end in .png, .json or .npz, or in nothing for a folder with a PNG for each mask"
            )
        found = _BY_SUFFIX[suffix]
        return "binary" if single and found == "index" else found
    if name not in FORMATS:
        raise InputError(f"the format is {name!r}, must be one of {', '.join(FORMATS)}")
    needed = suffix_of(name)
    if suffix != needed:
        raise InputError(f"the output is {path}, must {f'end in {needed}' if needed else 'have no suffix'} for format {name}")
    return name


def suffix_of(name: str) -> str:
    """The suffix of a format's files, "" for a folder."""
    return _SUFFIXES.get(name, ".json")


def check_new_folder(folder: Path) -> None:
    """Raise InputError where the folder of format "each" is there already, but for an empty one."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"cannot write {folder}: it is there and not an empty folder; name another")


def save_masks(
    path: str | os.PathLike[str], photo: Photo, records: Sequence[Record], name: str | None = None, *, single: bool = False
) -> str:
    """Write the masks of a photo, whole or not at all; returns the format (see `format_of`).

    Raises:
        InputError: an impossible format, a mask of another size than the photo's, or the file cannot be written.
    """
    chosen = format_of(path, name, single=single)
    if chosen == FOLDER:
        _save_each(Path(path), photo, records)
    else:
        write_atomically(path, encoded(photo, records, chosen))
    return chosen


def encoded(photo: Photo, records: Sequence[Record], name: str) -> bytes:
    """The bytes of a file in a format that is one file.

    Raises:
        InputError: a mask of another size than the photo's, or more masks than the format takes.
    """
    data: Any
    if name in ("index", "binary", "bits"):
        runs = [runs_of(record["segmentation"], photo.size) for record in records]
        if name == "index":
            return png_of(index_picture(runs, photo.size), coloured=True)
        if name == "binary":
            return png_of(binary_picture(runs, photo.size))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **packed_bits(runs, photo.size))  # type: ignore[arg-type]
        return buffer.getvalue()
    if name == "labelme":
        data = labelme_data(photo, records)
    elif name == "sa1b":
        data = sa1b_data(photo, records)
    elif name.startswith("coco"):
        data = coco_data([(photo, records)], polygons=name == "coco-polygons")
    else:
        data = plain_records(photo, records)
    return (json.dumps(strict(data), allow_nan=False) + "\n").encode()


def _save_each(folder: Path, photo: Photo, records: Sequence[Record]) -> None:
    """0001.png and so on in a new folder, which is there once all are."""
    check_new_folder(folder)
    with atomic_folder(folder) as temporary:
        for number, record in enumerate(records, 1):
            mask = binary_picture([runs_of(record["segmentation"], photo.size)], photo.size)
            (temporary / f"{number:04}.png").write_bytes(png_of(mask))
