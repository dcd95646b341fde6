"""How far long work has come: what callers pass in to be told, and what a command says of it.

A command says each stage in a line of the log (`trt_sam.progress`, level INFO), also into a pipe or a file. On a terminal one
bar for all stages stands below the lines.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

__all__ = ["SAID_ONCE", "Progress", "Stages", "counted", "part", "silent", "write_line"]

Progress = Callable[[float, str], None]
"""Called with the fraction that is done (0 to 1, never falling) and the innermost phase; may come from any thread."""

SAID_ONCE = {"said_once": True}
"""`extra` of a record of the log that a command shows once: what is noted of an input that is looked at several times."""

_log = logging.getLogger(__name__)
_SHAPE = "{desc} {percentage:3.0f}%|{bar:30}| {elapsed} so far, about {remaining} left"
_LONGEST = 40
"""Characters of a phase that the bar shows."""
_SILENCE = 30.0
"""Seconds after which work without a bar says again how far it is, or where it tells nothing what it is at."""
_TICK = 1.0
"""Seconds after which the bar's clock moves at the latest, and silence is noticed."""


class Stages:
    """The stages of one command, begun one after the other; a context manager that takes the bar away at its end.

    The bar never falls: a stage has its place by its share of all, and one that is left out is jumped over.
    """

    def __init__(self, shares: Mapping[str, float], *, stream: TextIO | None = None) -> None:
        """Take the stages in their order.

        Args:
            shares: of each stage, about how long it takes compared with the others.
            stream: where a bar is drawn if it is a terminal and tqdm is installed; None for sys.stderr.
        """
        self._shares = dict(shares)
        self._stream = stream
        self._lock = threading.Lock()
        self._before, self._share = 0.0, 0.0
        self._phase = ""
        self._doing = ""
        self._spoken = self._begun = time.monotonic()
        self._best = 0.0
        self._bar: Any = None
        self._ended = threading.Event()

    def begin(self, stage: str, line: str, *, phases: bool = False) -> Progress:
        """Say `line`, and give who is to be told how far this stage is.

        Args:
            stage: one of `shares`.
            line: what is done now, for people.
            phases: whether each phase that the work names gets a line, in place of one for the stage.
        """
        names = list(self._shares)
        total = sum(self._shares.values())
        with self._lock:
            self._before = sum(self._shares[name] for name in names[: names.index(stage)]) / total
            self._share = self._shares[stage] / total
            self._phase = ""
            self._doing, self._begun = line, time.monotonic()
        if not phases:
            self._say(line)
        self._show(0.0, line)

        def tell(fraction: float, phase: str) -> None:
            self._doing = f"{line}: {phase}" if phase else line
            if phases and phase != self._phase:
                self._phase, self._begun = phase, time.monotonic()
                self._say(self._doing)
            elif self._bar is None and time.monotonic() - self._spoken > _SILENCE:
                self._say(f"{line}: {phase}, {fraction:.0%}")
            self._show(min(max(fraction, 0.0), 1.0), phase or line)

        return tell

    def later(self, stage: str, line: str) -> Progress:
        """As `begin`, but the stage begins when the work first tells how far it is."""
        begun: list[Progress] = []

        def tell(fraction: float, phase: str) -> None:
            if not begun:
                begun.append(self.begin(stage, line))
            begun[0](fraction, phase)

        return tell

    def __enter__(self) -> Stages:
        stream = self._stream or sys.stderr
        if stream.isatty() and importlib.util.find_spec("tqdm") is not None:
            # smoothing=0: what is left is judged by all that was done, not by the last step.
            self._bar = importlib.import_module("tqdm").tqdm(
                total=1.0, bar_format=_SHAPE, file=stream, leave=False, smoothing=0, dynamic_ncols=True
            )
        threading.Thread(target=self._tick, name="trt_sam.progress", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        with self._lock:
            bar, self._bar = self._bar, None
            if bar is not None:
                bar.close()
        if kind is None:
            _log.info("done")

    def _say(self, line: str) -> None:
        self._spoken = time.monotonic()
        _log.info("%s", line)

    def _show(self, fraction: float, phase: str) -> None:
        with self._lock:
            self._best = max(self._best, self._before + self._share * fraction)
            if self._bar is None:
                return
            self._bar.set_description_str(phase[:_LONGEST], refresh=False)
            self._bar.update(self._best - self._bar.n)

    def _tick(self) -> None:
        while not self._ended.wait(_TICK):
            with self._lock, contextlib.suppress(OSError, ValueError):  # a terminal that has gone
                if self._bar is not None:
                    self._bar.refresh()
                elif self._doing and not self._ended.is_set() and time.monotonic() - self._spoken > _SILENCE:
                    self._say(f"{self._doing}, {time.monotonic() - self._begun:.0f} s so far")


def counted(progress: Progress) -> Callable[[str, int, int], None]:
    """`progress` for work that tells the phase, what of it is done, and how much it is in all."""
    return lambda phase, done, total: progress(min(1.0, done / max(total, 1)), phase)


def part(progress: Progress, place: int, count: int, name: str) -> Progress:
    """`progress` for one of `count` pieces of work, whose `name` stands before its phases; `place` counts from 0."""
    return lambda fraction, phase: progress((place + fraction) / count, f"{name}, {phase}")


def silent(fraction: float, phase: str) -> None:
    """A `Progress` that tells nobody."""


def write_line(line: str, stream: TextIO) -> None:
    """Write a line to `stream`, above a bar that stands there."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is None or not stream.isatty():
        stream.write(line + "\n")
        stream.flush()
    else:
        tqdm.tqdm.write(line, file=stream)
