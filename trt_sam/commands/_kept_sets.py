"""The sets in the cache: held by who uses them, and removed when another version of the package left them there unused.

A set is held by a shared `flock` on its folder, which ends with the process, however that ends. Removing takes the lock for
itself, so that nobody finds half a set: who holds one has all its files, and who comes too late finds none and writes it again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from trt_sam.errors import ManifestError
from trt_sam.runtime.set_graphs import is_set

try:
    import fcntl
except ImportError:  # Windows: nothing is held there, and so nothing is removed
    fcntl = None  # type: ignore[assignment]

__all__ = ["GRAPHS_SUFFIX", "UNUSED_DAYS", "hold", "hold_whole", "remove_unused"]

UNUSED_DAYS = 30
"""After which a set of another version goes."""
GRAPHS_SUFFIX = ".graphs"
"""Ends the name of a folder of graphs that engines are built from; only a process that was killed leaves one behind."""
_REMOVED = ".removed-"
"""Begins the name of a set that is being removed."""
_OURS = re.compile(rf"({re.escape(_REMOVED)})?([0-9a-f]{{16}}-)?[0-9a-f]{{32}}((\.[a-z0-9_]+)?{re.escape(GRAPHS_SUFFIX)})?")
"""Names that `ClickCache.set_folder` gives, and gave before they began with the version; nothing else is removed."""

_log = logging.getLogger(__name__)
_held: dict[tuple[int, int], int] = {}
"""Open handles by device and inode of their folders."""


def hold(folder: Path) -> bool:
    """Keep the set in `folder` from being removed until this process ends, and mark it as used now.

    Returns:
        Whether there is a set. A file system without locks, or one that cannot be written, does not change that.
    """
    while True:
        handle = _locked(folder)
        # Only now can it no longer go; it may have gone before, and have been written again.
        same = handle is None or _is_at(folder, handle)
        found = same and is_set(folder)
        if handle is not None and not (found and _held.setdefault(_inode(handle), handle) == handle):
            os.close(handle)
        if found:
            try:
                os.utime(folder)
            except OSError as error:
                _log.debug("%s: %s", folder, error)
        if same:
            return found


def hold_whole(folder: Path) -> bool:
    """As `hold`; a set with a file that is missing or not as it was written counts as none, and can be written again."""
    if not is_set(folder) or not hold(folder):
        return False
    from trt_sam.engine.manifest import open_manifest

    try:
        open_manifest(folder)
    except ManifestError as error:
        _log.warning("a set in the cache was damaged; it is made again: %s", str(error).partition(";")[0])
        _release(folder)
        return False
    return True


def remove_unused(sets: Path, current: str) -> list[Path]:
    """Remove the sets in the folder `sets` that nobody has used for `UNUSED_DAYS` and nobody holds.

    Args:
        sets: the folder; processes may remove, write and hold sets in it at the same time.
        current: how the names of this version's sets begin; these stay, but for graphs that a build left behind.

    Returns:
        What was removed, by this call. What cannot be removed stays, without an error.
    """
    removed = []
    oldest = time.time() - UNUSED_DAYS * 86400
    for folder in _folders(sets):
        if folder.name.startswith(current) and not folder.name.endswith(GRAPHS_SUFFIX):
            continue
        try:
            if (folder.stat().st_mtime < oldest or folder.name.startswith(_REMOVED)) and _remove(folder, oldest):
                removed.append(folder)
        except OSError as error:  # another process removes it at the same time, or it is not ours to remove
            _log.debug("%s: %s", folder, error)
    return removed


def _release(folder: Path) -> None:
    """End `hold`: whoever writes the set needs it alone."""
    with contextlib.suppress(OSError):
        status = folder.stat()
        handle = _held.pop((status.st_dev, status.st_ino), None)
        if handle is not None:
            os.close(handle)


def _locked(folder: Path) -> int | None:
    """A handle of `folder` with a shared lock, once nobody removes or writes it; None where it cannot be had."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
    except OSError as error:
        _log.debug("%s: %s", folder, error)
        os.close(handle)
        return None
    return handle


def _inode(handle: int) -> tuple[int, int]:
    status = os.fstat(handle)
    return status.st_dev, status.st_ino


def _remove(folder: Path, oldest: float) -> bool:
    """Remove `folder`, unless somebody holds it or has used it since `oldest`; whether it was removed."""
    with _alone(folder) as alone:
        left = folder.name.startswith(_REMOVED)
        if not alone or not (left or folder.stat().st_mtime < oldest):
            return False
        # Under another name it is no set of the cache any more, before its first file goes.
        going = folder if left else folder.with_name(f"{_REMOVED}{folder.name}")
        if not left:
            os.rename(folder, going)
        shutil.rmtree(going)
        return True


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Hold `folder` against everybody; False where somebody else holds it, it has been removed, or there are no locks."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield _is_at(folder, handle)
    finally:
        os.close(handle)


def _is_at(folder: Path, handle: int) -> bool:
    """Whether the open folder still has its name."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(handle))
    except OSError:
        return False


def _folders(sets: Path) -> list[Path]:
    try:
        return [path for path in sets.iterdir() if _OURS.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]
    except OSError:
        return []
