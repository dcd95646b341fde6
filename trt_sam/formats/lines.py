"""A file of JSON lines that grows by whole lines only: one image each, so that a run that was stopped can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trt_sam._json import strict
from trt_sam.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LinesFile", "read_lines"]


class LinesFile:
    """Appends lines to a file, which is made where it is not there; a line that was cut off in an earlier run goes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open `path`.

        Raises:
            InputError: a line in it is not JSON, or the file cannot be written.
        """
        self._path = Path(path)
        self.lines: list[dict[str, Any]] = []
        """What earlier runs wrote."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._opened()
            self._file.seek(0)
            data = self._file.read()
            self._end = data.rfind(b"\n") + 1
            self.lines = list(_parsed(self._path, data[: self._end]))
            self._file.truncate(self._end)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}; choose another output path") from error

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line, whole or not at all.

        Raises:
            InputError: the disk is full, or the file cannot be written any more; what was written before stays readable.
        """
        text = (json.dumps(strict(line), allow_nan=False) + "\n").encode()
        try:
            written = 0
            while written < len(text):
                written += self._file.write(text[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            self._cut()
            raise InputError(
                f"cannot write {self._path} any further: {error.strerror or error}; the lines before are whole, make room and "
                "run the same command again"
            ) from error
        self._end += len(text)

    def close(self) -> None:
        """Close the file; safe to call again."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _cut(self) -> None:
        """Take away what was written of the last line."""
        self._file.truncate(self._end)

    def _opened(self) -> FileIO:
        # Without a buffer, so that nothing of a line that failed is written later.
        return self._path.open("a+b", buffering=0)


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of such a file; a last one that was cut off is left out. Raises InputError where another is not JSON."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the path") from error
    return list(_parsed(path, data[: data.rfind(b"\n") + 1]))


def _parsed(path: Path, data: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(data.splitlines(), 1):
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise InputError(f"{path}: line {number} is not a JSON object; it is no file of this command, name another")
        yield content
