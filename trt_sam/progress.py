"""How far long work has come: what callers pass in to be told, and the bar that shows it on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

__all__ = ["Progress", "TerminalBar"]

Progress = Callable[[float, str], None]
"""Called with the fraction that is done (0 to 1, never falling) and the innermost phase; may come from any thread."""


class TerminalBar:
    """A progress bar on one line of `stream`; a context manager that clears the line at the end. Call it as a `Progress`."""

    def __init__(self, stream: TextIO, width: int = 30) -> None:
        self._stream = stream
        self._width = width
        self._shown = ""

    def __call__(self, fraction: float, phase: str) -> None:
        full = int(fraction * self._width)
        line = f"[{'#' * full}{'.' * (self._width - full)}] {fraction:4.0%} {phase[:40]:40}"
        if line != self._shown:
            self._shown = line
            self._stream.write("\r" + line)
            self._stream.flush()

    def __enter__(self) -> TerminalBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._stream.write("\r" + " " * len(self._shown) + "\r")
            self._stream.flush()
