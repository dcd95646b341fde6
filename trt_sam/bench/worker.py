"""The process in which one side of a benchmark runs: `python -m trt_sam.bench.worker`, one JSON request and answer a line.

It is started by `_bench_process.Worker`, ends when its standard input does, and is idle between requests.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from trt_sam.bench.feed import make_feed
from trt_sam.errors import TrtSamError

_MOST_CALLS = 20_000
"""Of one request: an answer is one line."""
_MOST_OTHER_CALLS = 1000
"""Of a request's calls on the device, and of those for the best mask."""
_KEPT_ROWS = 16
"""Prompts of a call whose logits are written for the comparison between sides."""


def main() -> int:
    """Answer requests until the end of standard input."""
    # Libraries print; the answers have the original standard output to themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = _Worker()
    for line in sys.stdin:
        request = json.loads(line)
        action: Callable[..., dict[str, Any]] = getattr(worker, f"do_{request.pop('do')}")
        _say(answers, _answer(action, request))
    worker.close()
    return 0


class _Worker:
    def __init__(self) -> None:
        self.side: Any = None
        self.prompts = 0

    def do_open(self, factory: str, settings: dict[str, Any], path: list[str]) -> dict[str, Any]:
        sys.path.extend(path)
        module, _, name = factory.partition(":")
        started = time.perf_counter()
        self.side = getattr(importlib.import_module(module), name)(**settings)
        return {"about": self.side.about, "open_ms": _since(started)}

    def do_prepare(self, prompts: int, warmup_s: float, save: str) -> dict[str, Any]:
        """The first call with these shapes, timed, then calls until `warmup_s` have passed."""
        self.side.load(make_feed(prompts))
        self.prompts = prompts
        started = time.perf_counter()
        masks, iou = self.side.call()
        first = _since(started)
        np.savez(Path(save), masks=masks[:_KEPT_ROWS].astype(np.float32), iou=iou[:_KEPT_ROWS])
        del masks, iou
        started, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - started < warmup_s:
            self.side.call()
            calls += 1
        return {"first_call_ms": first, "warmup_calls": calls}

    def do_measure(self, prompts: int, seconds: float) -> dict[str, Any]:
        """Calls until `seconds` have passed, at least one; then as many on the device, and for the best mask, as it can."""
        self._use(prompts)
        self.side.call()  # the other sides had the caches in between
        gc.collect()
        gc.disable()
        try:
            samples: list[float] = []
            began, processor = time.perf_counter(), time.process_time()
            while not samples or (time.perf_counter() - began < seconds and len(samples) < _MOST_CALLS):
                started = time.perf_counter_ns()
                self.side.call()
                samples.append((time.perf_counter_ns() - started) / 1e6)
            processor_ms = (time.process_time() - processor) * 1e3 / len(samples)
            more = min(len(samples), _MOST_OTHER_CALLS)
            device = self.side.device_ms(more)
            best, bits = (_timed(getattr(self.side, name, None), more) for name in ("call_best", "call_bits"))
        finally:
            gc.enable()
        return {"samples_ms": samples, "processor_ms": processor_ms, "device_ms": device, "best_ms": best, "bits_ms": bits}

    def do_work(self, prompts: int, seconds: float) -> dict[str, Any]:
        """Calls that nobody times, until `seconds` have passed: somebody looks at the clocks."""
        self._use(prompts)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            self.side.call()
        return {}

    def do_memory(self) -> dict[str, Any]:
        """The largest resident memory of this process so far."""
        return {"peak_mb": peak_mb()}

    def _use(self, prompts: int) -> None:
        if prompts != self.prompts:
            self.side.load(make_feed(prompts))
            self.prompts = prompts

    def close(self) -> None:
        if self.side is not None:
            self.side.close()


def peak_mb() -> float:
    """The largest resident memory of this process so far; `getrusage` would begin with what its parent had."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def _answer(action: Callable[..., dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    try:
        return action(**request)
    except TrtSamError as error:
        return {"error": " ".join(str(error).split())}
    except Exception as error:  # PyTorch's compiler has a dozen classes of its own
        line = str(error).strip().partition("\n")[0]
        return {"error": f"{type(error).__name__}: {line}"[:300], "traceback": traceback.format_exc()}


def _timed(call: Callable[[], object] | None, count: int) -> list[float] | None:
    """Milliseconds of each of `count` calls, after one that does not count; None where the side has no such calls."""
    if call is None:
        return None
    call()
    samples = []
    for _ in range(count):
        started = time.perf_counter_ns()
        call()
        samples.append((time.perf_counter_ns() - started) / 1e6)
    return samples


def _say(answers: IO[str], answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    sys.exit(main())
