"""`fetch`: a checkpoint of the catalogue as a verified file in the cache."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trt_sam._cache import CACHE_VARIABLE, cache_folder, known_sha256, remember_sha256
from trt_sam._files import sha256_of
from trt_sam._lazy import require
from trt_sam.download.catalogue import CATALOGUE, KnownCheckpoint, Source, nearest_names
from trt_sam.download.http import SourceError
from trt_sam.errors import CheckpointError, InputError, did_you_mean

__all__ = ["NoSourceError", "cached_path", "fetch"]

_log = logging.getLogger(__name__)


class NoSourceError(CheckpointError):
    """No source of a checkpoint answered: this machine is offline, or they all are."""


def cached_path(name: str) -> Path:
    """Where the checkpoint `name` lies, or would lie, in the cache.

    Raises:
        CheckpointError: the catalogue has no such name.
    """
    return cache_folder() / "checkpoints" / _known(name).file_name


def fetch(name: str, *, check: bool = False) -> Path:
    """The checkpoint `name` of the catalogue as a file in the cache, downloaded where it is not there.

    Its hash is checked before it gets its name, and again whenever the file has changed since (or with `check`). Processes
    that want the same file wait for the one that fetches it.

    Raises:
        NoSourceError: none of its sources answered.
        CheckpointError: the catalogue has no such name, or what the sources gave is not the file.
        InputError: the cache folder cannot be written, or the disk is full.
        MissingDependencyError: it has to be downloaded, and the extra "download" is not installed.
    """
    known, path = _known(name), cached_path(name)
    try:
        if path.is_file() and _verified(path, known, read=check):
            return path
        pooch = require("pooch", f"to download {name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path, known):
            if not (path.is_file() and _verified(path, known)):
                _download(known, path, pooch)
    except OSError as error:
        raise _unwritable(error, known, path) from error
    return path


@contextlib.contextmanager
def _alone(path: Path, known: KnownCheckpoint) -> Iterator[None]:
    """Hold the lock of `path`; says so once where another process has it."""
    filelock = require("filelock", f"to download {known.name}")
    lock = filelock.FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _log.info("another process is downloading %s; waiting for it", known.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _known(name: str) -> KnownCheckpoint:
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = nearest_names(name)
    meant = did_you_mean(near)
    raise CheckpointError(f"no checkpoint is called {name!r}; {meant}names are {', '.join(CATALOGUE)}")


def _download(known: KnownCheckpoint, path: Path, pooch: Any) -> None:
    partial, part = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.part")
    free = shutil.disk_usage(path.parent).free
    if free + (part.stat().st_size if part.is_file() else 0) < known.size:
        raise OSError(errno.ENOSPC, f"{free:,} bytes are free, and {known.name} has {known.size:,}")
    # What a killed process left of this file; the lock says that nobody is at it. `part` stays: a source may go on with it.
    shutil.rmtree(partial, ignore_errors=True)
    failures: list[tuple[Source, SourceError]] = []
    try:
        for source in known.sources:
            try:
                _from_source(source, known, partial, part, pooch)
            except SourceError as error:
                _log.info("%s: %s", source.title, error)
                failures.append((source, error))
                continue
            got = partial / path.name
            umask = os.umask(0)
            os.umask(umask)
            got.chmod(0o666 & ~umask)
            os.replace(got, path)
            part.unlink(missing_ok=True)
            remember_sha256(path, known.sha256)
            _log.info("%s is in %s, hash verified", known.name, path)
            return
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    reasons = "; ".join(f"{source.title}: {error}" for source, error in failures)
    kind = CheckpointError if any(error.answered for _, error in failures) else NoSourceError
    raise kind(
        f"cannot download {known.name} ({reasons}); get {known.file_name} ({known.size:,} bytes, SHA-256 {known.sha256}) "
        f"elsewhere and put it at {path}, or use --checkpoint standin"
    )


def _from_source(source: Source, known: KnownCheckpoint, folder: Path, part: Path, pooch: Any) -> None:
    from trt_sam.download.sources import copy_from

    pooch.get_logger().setLevel(logging.WARNING)  # ours says it in other words
    _log.info("downloading %s (%.0f MB, %s) from %s", known.name, known.size / 1e6, known.licence, source.title)
    written, continued = 0, False

    def download(_url: str, target: str, _pooch: object) -> None:
        nonlocal written, continued
        written, continued = copy_from(source, known, target, part)

    for last in (False, True):
        try:
            pooch.retrieve(source.title, f"sha256:{known.sha256}", fname=known.file_name, path=folder, downloader=download)
            return
        except ValueError as error:  # pooch's answer to a wrong hash; it has deleted the file
            got = str(error).partition("but got ")[2].partition(".")[0]
            if not got:
                raise
            if last or not continued:
                raise SourceError(
                    f"gave {written:,} bytes with SHA-256 {got}, deleted: it must be {known.size:,} with {known.sha256}",
                    answered=True,
                ) from error
            _log.info("the parts of %s do not fit together; downloading it from the beginning", known.name)


def _verified(path: Path, known: KnownCheckpoint, *, read: bool = False) -> bool:
    """Check the hash of a file that is there, with `read` even if it has not changed; one that is something else is deleted."""
    got = sha256_of(path) if read else known_sha256(path)
    if got == known.sha256:
        if read:
            remember_sha256(path, got)
        return True
    _log.warning("%s has SHA-256 %s, must be %s; deleted", path, got, known.sha256)
    path.unlink()
    return False


def _unwritable(error: OSError, known: KnownCheckpoint, path: Path) -> InputError:
    reason = error.strerror or str(error)
    return InputError(
        f"cannot keep {known.name} in {path.parent}: {reason}; name another folder with --cache or {CACHE_VARIABLE}"
    )
