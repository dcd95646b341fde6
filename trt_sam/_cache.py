"""The folder for what can be fetched or computed again: checkpoints, embeddings, exported graphs; and hashes of large files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from trt_sam._files import sha256_of, write_atomically
from trt_sam._lazy import require
from trt_sam.errors import InputError, MissingDependencyError

__all__ = ["CACHE_VARIABLE", "cache_folder", "cache_set_to", "known_sha256", "remember_sha256"]

CACHE_VARIABLE = "TRT_SAM_CACHE"

_log = logging.getLogger(__name__)


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


def known_sha256(path: Path) -> str:
    """The SHA-256 of a file, read once for each state of it (path, size and time of change): ViT-H's 2.5 GB take seconds.

    Where no cache folder can be found it is read each time.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        stamp = json.loads(_stamp_path(path).read_text(encoding="utf-8"))
        if stamp["state"] == _state(path):
            return str(stamp["sha256"])
    except MissingDependencyError:
        return sha256_of(path)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        pass
    sha256 = sha256_of(path)
    remember_sha256(path, sha256)
    return sha256


def remember_sha256(path: Path, sha256: str) -> None:
    """Let `known_sha256` give `sha256` until the file changes. A cache that cannot be written forgets it."""
    try:
        write_atomically(_stamp_path(path), json.dumps({"path": str(path), "state": _state(path), "sha256": sha256}))
    except InputError as error:
        _log.debug("%s", error)


def _stamp_path(path: Path) -> Path:
    return cache_folder() / "hashes" / f"{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]}.json"


def _state(path: Path) -> list[int]:
    """What changes when the file does."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


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
