"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trt_sam.errors import InputError, did_you_mean

__all__ = ["atomic_folder", "atomic_path", "existing_file", "sha256_of", "write_atomically"]


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `target`; move it there when the block ends well, remove it when it does not.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    target = Path(target)
    handle = -1
    temporary: Path | None = None
    try:
        if target.is_dir():
            raise InputError(f"cannot write {target}: it is a folder; name a file")
        _make_parent(target)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        _give_name(temporary, target, 0o666)
        temporary = None
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; {_advice(error)}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """As `atomic_path`, for a folder: the block fills it, and it is at `target` once it is whole.

    Raises:
        InputError: `target` holds something already, its folder cannot be written, or the disk is full.
    """
    target = Path(target)
    temporary: Path | None = None
    try:
        _make_parent(target)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        _give_name(temporary, target, 0o777)
        temporary = None
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; {_advice(error)}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _advice(error: OSError) -> str:
    make_room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{make_room}choose another output path"


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(parent for parent in target.parents if parent.exists() and not parent.is_dir())
        raise InputError(f"cannot write {target}: {file} is a file, not a folder; choose another output path") from None


def _give_name(temporary: Path, target: Path, mode: int) -> None:
    """Move it to `target`, with the rights that a file or folder made by other means would have."""
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(mode & ~umask)
    os.replace(temporary, target)


def write_atomically(target: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `target`, whole or not at all; raises InputError as `atomic_path` does."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return `path` if it is a readable, non-empty file; `what` names it in the error ("checkpoint", "image").

    Raises:
        InputError: it is missing, a folder, empty or unreadable.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{what} not found: {path}; {_meant(path)}check the path")
    if not path.is_file():
        raise InputError(f"{what} {path} is not a file; name one")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}") from error
    if empty:
        raise InputError(f"{what} {path} is empty; write or download it again")
    return path


def _meant(path: Path) -> str:
    """A name beside `path` that is much like it, as a question; empty where there is none."""
    try:
        near = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], n=1, cutoff=0.8)
    except OSError:
        return ""
    return did_you_mean(path.with_name(name) for name in near)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        # Not hashlib.file_digest, which Python 3.10 lacks.
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
