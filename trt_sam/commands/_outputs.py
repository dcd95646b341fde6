"""Whether reports can be written, asked before the work that they are to report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trt_sam.errors import InputError

__all__ = ["check_output_file", "check_output_folder"]


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


def _check_parents(failure: str, parents: Sequence[Path]) -> None:
    nearest = next(parent for parent in parents if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"{failure}: {nearest} is a file; choose another output path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{failure}: {nearest} is not writable; choose another output path")
