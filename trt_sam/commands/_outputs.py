"""Whether outputs can be written, asked before the work that they are of; and pictures as bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.errors import InputError

__all__ = [
    "check_distinct",
    "check_output_file",
    "check_output_folder",
    "check_picture_suffix",
    "check_reports",
    "picture_bytes",
]


def check_output_file(path: str | os.PathLike[str] | None) -> None:
    """Raise InputError where a file could not be written at the end; None and "-" (stdout) always can."""
    if path is None or str(path) == "-":
        return
    if Path(path).is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file")
    _check_parents(f"cannot write {path}", Path(path).absolute().parents)


def check_output_folder(folder: Path) -> None:
    """Raise InputError where files could not be written into a folder, which need not be there yet."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot write into {folder}: it is a file; name a folder")
    _check_parents(f"cannot write into {folder}", (folder.absolute(), *folder.absolute().parents))


def check_reports(flag: str, folder: Path, names: Sequence[str], *, force: bool) -> None:
    """Raise InputError where `names` could not be written into a folder, or one is there and `force` does not replace it."""
    check_output_folder(folder)
    there = [name for name in names if (folder / name).exists()]
    if there and not force:
        raise InputError(f"{folder / there[0]} exists; give --force to replace it, or another {flag}")


def check_distinct(named: Mapping[str, Path | None]) -> None:
    """Raise InputError where two of the files, by the names of their flags, are the same."""
    seen: dict[Path, str] = {}
    for name, path in named.items():
        if path is not None and (other := seen.setdefault(path.resolve(), name)) != name:
            raise InputError(f"{name} and {other} are both {path}; name another file")


def check_picture_suffix(flag: str, path: Path | None) -> None:
    """Raise InputError unless `picture_bytes` knows the suffix of the picture that `flag` names."""
    if path is not None and path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"{flag} is {path}, must end in .png or .jpg")


def picture_bytes(picture: npt.NDArray[np.uint8], suffix: str) -> bytes:
    """A grey or RGB picture as PNG, or as JPEG for any other suffix than ".png"."""
    image_module = require("PIL.Image", "to write images")
    buffer = io.BytesIO()
    # Of zlib's levels 1 is several times as fast as the default on a photograph, for a few percent of size.
    png = {"format": "PNG", "compress_level": 1 if picture.ndim == 3 else 6}
    settings: dict[str, Any] = png if suffix == ".png" else {"format": "JPEG", "quality": 92, "subsampling": 0}
    image_module.fromarray(picture).save(buffer, **settings)
    return buffer.getvalue()


def _check_parents(failure: str, parents: Sequence[Path]) -> None:
    nearest = next(parent for parent in parents if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"{failure}: {nearest} is a file; choose another output path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{failure}: {nearest} is not writable; choose another output path")
