"""What TensorRT calls back while it builds: a logger that keeps what matters, and a progress monitor that can stop it.

The classes derive from the bindings' own, so they are made on demand. TensorRT prints and then ignores an exception that
leaves a callback, so none may: they are kept, the build is stopped, and the builder raises them again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from trt_sam.progress import Progress

__all__ = ["in_words", "make_logger", "make_monitor"]

_NOISE = (
    "cudaError 35",
    "CUDA driver version is insufficient",
    "Error reading CUDA GPU properties",
    "has Int64 binding",  # said of every int64 input, which is what the contract wants
    "unused or used only at compile-time",  # said of orig_im_size where a profile fixes it
)
_SOURCE = re.compile(r"\s*\bIn [\w:~<>]+ at \S+?:\d+\)?|\[\w+\.\w+:\d+: \w+\] ")
_API = re.compile(
    r"^(?:[\w:]+: )?(?:\[[^\]]*\] )?(?:Error Code \d+: )?(?:API Usage Error|Internal Error|Myelin|Cuda Runtime)? ?\(?"
)


_loggers: list[Any] = []
"""All that were made: TensorRT keeps a pointer to the first logger of the process, and does not keep it alive."""


def in_words(message: str) -> str:
    """A TensorRT message as one line without source files, error numbers and lines that say nothing to the user."""
    lines = [line for line in message.split("\n") if line.strip() and not any(noise in line for noise in _NOISE)]
    kept = [_API.sub("", _SOURCE.sub("", line)).strip().rstrip(".") for line in lines if not line.startswith("Invalid Node - ")]
    return "; ".join(part for part in kept if part)


def make_logger(trt: ModuleType) -> Any:
    """An `ILogger` with `errors` and `warnings` (lists of str, in words) and `layer_list` (str, "" until it was logged)."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.layer_list = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._keep(self.errors, message)
            elif severity == trt.ILogger.WARNING:
                self._keep(self.warnings, message)
            elif message.startswith("Layers:\n"):
                self.layer_list = message

        def _keep(self, where: list[str], message: str) -> None:
            if words := in_words(message):
                where.append(words)

    logger = Logger()
    _loggers.append(logger)
    return logger


def make_monitor(trt: ModuleType, progress: Progress | None, stop: threading.Event) -> Any:
    """An `IProgressMonitor` that ends the build once `stop` is set; `failure` holds what `progress` raised, or None."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self._fractions = _Fractions()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._guard(self._fractions.start, phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self._guard(self._fractions.finish, phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._guard(self._fractions.step, phase_name, step)
            return not stop.is_set()

        def _guard(self, note: Callable[..., float], phase: str, *rest: Any) -> None:
            try:
                fraction = note(phase, *rest)
                if progress is not None and not stop.is_set():
                    progress(fraction, phase)
            except BaseException as error:
                self.failure = self.failure or error
                stop.set()

    return Monitor()


class _Fractions:
    """How much of nested phases is done: a phase counts its steps, and its open child counts as part of the current one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str | None, int, int]] = {}
        self._best = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> float:
        return self._set(phase, (parent, max(steps, 1), 0))

    def step(self, phase: str, step: int) -> float:
        parent, steps, _ = self._open[phase]
        return self._set(phase, (parent, steps, min(step + 1, steps)))

    def finish(self, phase: str) -> float:
        return self._set(phase, None)

    def _set(self, phase: str, state: tuple[str | None, int, int] | None) -> float:
        with self._lock:
            if state is None:
                parent = self._open.pop(phase)[0]
                self._best = 1.0 if parent is None else self._best
            else:
                self._open[phase] = state
            roots = [name for name, (parent, _, _) in self._open.items() if parent is None]
            self._best = max([self._best, *(self._fraction(name) for name in roots)])
            return self._best

    def _fraction(self, phase: str) -> float:
        _, steps, done = self._open[phase]
        children = [self._fraction(name) for name, (parent, _, _) in self._open.items() if parent == phase]
        return min(1.0, (done + min(1.0, sum(children))) / steps)
