"""`RunnerWorker`: the one thread that uses the runner, and what waits for it.

Work waits in lanes, each bounded. The lane that has had the least of the runner's time for its weight comes next, so that long
work never holds clicks up for more than one piece of it, and clicks never keep long work from going on.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from trt_sam.serve.faults import Refusal, busy

__all__ = ["Done", "Lane", "RunnerWorker"]

Result = TypeVar("Result")
_REMEMBERED = 5
"""Pieces of work of a lane whose times are known: a large one among them says nothing of the next, and a lane that gets slower
as others get work must tell soon."""


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A result, and how long it waited and took, in seconds."""

    value: Result
    waited: float
    took: float


@dataclass(frozen=True)
class Lane:
    """Work of one kind."""

    title: str
    """In the plural, for people."""
    weight: float
    """Its share of the runner's time where all lanes have work."""
    most: int
    """Pieces of work that may wait."""
    seconds: float = math.inf
    """How long the last of them may have to wait for the others of its lane, as far as their times tell."""


@dataclass
class _Waiting:
    lane: Lane
    jobs: deque[tuple[Callable[[], Any], Future[Any], float]] = field(default_factory=deque)
    had: float = 0.0
    """Seconds of the runner by weight."""
    guess: float = 0.1
    """Seconds that one takes, until the first is done."""
    pace: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """Seconds from the end of a piece of work to the end of the next that waited for it: with what other lanes had between."""
    ended: float = 0.0
    """When the last was done."""

    def wait(self) -> float:
        """Seconds that those who wait will take."""
        return len(self.jobs) * (statistics.median(self.pace) if self.pace else self.guess)

    def is_full(self) -> bool:
        return len(self.jobs) >= self.lane.most or self.wait() > self.lane.seconds


class RunnerWorker:
    """Runs work on its thread, from `start` until `close`; any thread may submit."""

    def __init__(self, lanes: Mapping[str, Lane]) -> None:
        self._lanes = {name: _Waiting(lane) for name, lane in lanes.items()}
        self._chores: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="trt_sam.serve.runner", daemon=True)

    def start(self) -> None:
        """Begin with what waits."""
        self._thread.start()

    def submit(self, lane: str, work: Callable[[], Result]) -> Future[Done[Result]]:
        """Queue `work`. Cancelling the future takes it out again, unless it has begun.

        Raises:
            Refusal: the lane is full (429), or the worker is being closed (503).
        """
        future: Future[Done[Result]] = Future()
        with self._changed:
            if self._closing:
                raise Refusal(503, "stopping", "the service is being stopped", retry_seconds=5)
            waiting = self._lanes[lane]
            if waiting.is_full():
                # Those whose clients have gone make room.
                waiting.jobs = deque(job for job in waiting.jobs if not job[1].cancelled())
            if waiting.is_full():
                raise busy(waiting.lane.title, waiting.wait())
            if not waiting.jobs:
                # A lane that was idle has no claim on the time that it did not use.
                others = [each.had for each in self._lanes.values() if each.jobs]
                waiting.had = max(waiting.had, min(others, default=waiting.had))
            waiting.jobs.append((work, future, time.perf_counter()))
            self._changed.notify()
        return future

    def later(self, chore: Callable[[], object]) -> None:
        """Run `chore`, which must not raise, before the next work; never refused, and forgotten after `close`."""
        with self._changed:
            self._chores.append(chore)
            self._changed.notify()

    def expect(self, lane: str, seconds: float) -> None:
        """Reckon with work of so many seconds in a lane, until the first of it is done and tells."""
        self._lanes[lane].guess = seconds

    def waiting(self, lane: str) -> int:
        """Pieces of work that wait in a lane."""
        return len(self._lanes[lane].jobs)

    def close(self) -> None:
        """Refuse new work, finish what waits, and end the thread; safe to call again."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._chores and not any(each.jobs for each in self._lanes.values()):
                    if self._closing:
                        return
                    self._changed.wait()
                chores, self._chores = self._chores, deque()
                ready = [each for each in self._lanes.values() if each.jobs]
                chosen = min(ready, key=lambda each: each.had, default=None)
                job = None if chosen is None else chosen.jobs.popleft()
            for chore in chores:
                chore()
            if chosen is not None and job is not None:
                self._run(chosen, *job)

    def _run(self, waiting: _Waiting, work: Callable[[], Any], future: Future[Any], asked: float) -> None:
        if not future.set_running_or_notify_cancel():
            return
        began = time.perf_counter()
        result: Any = None
        failed: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # whoever waits gets it, and this thread goes on
            failed = error
        ended = time.perf_counter()
        took = ended - began
        waiting.had += took / waiting.lane.weight
        waiting.pace.append(ended - max(asked, waiting.ended))
        waiting.ended = ended
        if failed is None:
            future.set_result(Done(result, began - asked, took))
        else:
            future.set_exception(failed)
