"""The folder for what can be fetched or computed again: checkpoints, embeddings, exported graphs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from trt_sam._lazy import require

__all__ = ["CACHE_VARIABLE", "cache_folder", "cache_set_to"]

CACHE_VARIABLE = "TRT_SAM_CACHE"


def cache_folder() -> Path:
    """The folder that `TRT_SAM_CACHE` names, else the platform's own for caches (`~/.cache/trt_sam` on Linux); absolute.

    It may not exist yet.

    Raises:
        MissingDependencyError: the variable is not set and platformdirs is not installed.
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser().absolute()
    platformdirs = require("platformdirs", f"to find the cache folder (or set {CACHE_VARIABLE})")
    return Path(platformdirs.user_cache_path("trt_sam", appauthor=False))


@contextlib.contextmanager
def cache_set_to(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Make `folder` the cache inside the block, for child processes too; None changes nothing."""
    if folder is None:
        yield
        return
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(Path(folder).expanduser().absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE_VARIABLE]
        else:
            os.environ[CACHE_VARIABLE] = before
