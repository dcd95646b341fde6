"""`weights_sha256`: which weights a checkpoint's name or path stands for, without loading them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from trt_sam._cache import known_sha256
from trt_sam.download.catalogue import CATALOGUE, DATA_FOLDER, STANDINS
from trt_sam.download.fetch import fetch

__all__ = ["weights_sha256"]

_READ = (".bin", ".json", ".pt", ".pth", ".safetensors")
"""What a loader may read of a folder."""


def weights_sha256(source: str | os.PathLike[str]) -> str | None:
    """A hash over the bytes of everything that `load_checkpoint(source)` may read; a name of the catalogue is fetched.

    None where that cannot be told from files: a hub id, or a path with nothing there.

    Raises:
        TrtSamError: as `fetch`.
    """
    text = os.fspath(source)
    if text in CATALOGUE:
        fetch(text)
        return CATALOGUE[text].sha256
    path = DATA_FOLDER / "standin" if text in STANDINS else Path(text)
    try:
        if not path.is_dir():
            return known_sha256(path)
        files = sorted(each for each in path.iterdir() if each.suffix in _READ)
        # The stand-ins share their files; the name tells them apart.
        digest = hashlib.sha256((text if text in STANDINS else "").encode())
        for each in files:
            digest.update(f"\n{each.name} {known_sha256(each)}".encode())
    except OSError:
        return None
    return digest.hexdigest()
