"""One side of a benchmark under way: its worker, what that has measured so far, and why it could not measure the rest."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from trt_sam.bench.plan import Plan, PromptsResult, SideReport, SideSpec
from trt_sam.bench.process import Worker
from trt_sam.bench.stats import summarize
from trt_sam.errors import InferenceError
from trt_sam.machine.load import clocks

__all__ = ["Run"]

_SETTLE_S = 0.2
"""Of work before the clocks are read: they rise within milliseconds, nvidia-smi averages longer."""
_WORK_S = 0.05


class Run:
    """`folder` is the side's own, and must not be there yet."""

    def __init__(self, spec: SideSpec, plan: Plan, folder: Path) -> None:
        self.spec, self.plan, self.folder = spec, plan, folder
        self.prompts = [n for n in plan.prompts if not spec.only_prompts or n in spec.only_prompts]
        self.not_measured = spec.not_here
        self.failed: dict[int, str] = {}
        self.about: dict[str, str] = {}
        self.open_ms: float | None = None
        self.first: dict[int, dict[str, Any]] = {}
        self.samples: dict[int, list[list[float]]] = {n: [] for n in self.prompts}
        self.device: dict[int, list[float]] = {n: [] for n in self.prompts}
        self.best: dict[int, list[float]] = {n: [] for n in self.prompts}
        self.bits: dict[int, list[list[float]]] = {n: [] for n in self.prompts}
        self.errors: dict[int, float] = {}
        self._worker: Worker | None = None

    def open(self, stack: contextlib.ExitStack) -> None:
        """Start the worker, which `stack` ends, and have it open the side; a failure is kept as the reason."""
        if self.not_measured:
            return
        self.folder.mkdir()
        self._worker = stack.enter_context(Worker(threads=self.plan.threads, scratch=self.folder))
        spec = self.spec
        try:
            answer = self._worker.ask("open", factory=spec.factory, settings=dict(spec.settings), path=list(spec.path))
        except InferenceError as error:
            self.not_measured = str(error)
            return
        self.about, self.open_ms = answer["about"], answer["open_ms"]

    def prepare(self, prompts: int) -> None:
        """First call and warm-up."""
        save = str(self.saved(prompts))
        answer = self._ask("prepare", prompts, prompts=prompts, warmup_s=self.plan.warmup_s, save=save)
        if answer is not None:
            self.first[prompts] = answer

    def measure(self, prompts: int, seconds: float) -> None:
        """One slice of a round."""
        answer = self._ask("measure", prompts, prompts=prompts, seconds=seconds)
        if answer is not None:
            self.samples[prompts].append(answer["samples_ms"])
            self.device[prompts].extend(answer["device_ms"] or [])
            self.best[prompts].extend(answer["best_ms"] or [])
            if answer["bits_ms"]:
                self.bits[prompts].append(answer["bits_ms"])

    def clocks_at_work(self, prompts: int, gpu: str | None) -> dict[str, Any] | None:
        """Read the clocks, those of GPU `gpu` too, while the side makes calls that do not count; None where it fails."""
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(_read_later, gpu)
            while not reading.done():
                if self._ask("work", prompts, prompts=prompts, seconds=_WORK_S) is None:
                    return None
            return {"side": self.spec.name, "prompts": prompts, **reading.result()}

    def works(self, prompts: int) -> bool:
        return prompts in self.samples and not self.not_measured and prompts not in self.failed

    def saved(self, prompts: int) -> Path:
        return self.folder / f"{prompts}.npz"

    def _ask(self, do: str, about: int, **request: Any) -> dict[str, Any] | None:
        assert self._worker is not None
        try:
            return self._worker.ask(do, **request)
        except InferenceError as error:
            # Rounds that were measured before do not count: ratios need the same rounds of all.
            self.failed[about] = str(error)
            self.samples[about], self.device[about], self.best[about], self.bits[about] = [], [], [], []
            return None

    def report(self) -> SideReport:
        return SideReport(
            name=self.spec.name,
            not_measured=self.not_measured,
            about=self.about,
            open_ms=self.open_ms,
            results=() if self.not_measured else tuple(self._result(prompts) for prompts in self.prompts),
        )

    def _result(self, prompts: int) -> PromptsResult:
        if prompts in self.failed:
            return PromptsResult(prompts, not_measured=self.failed[prompts])
        rounds, device, best = self.samples[prompts], self.device[prompts], self.best[prompts]
        every, bits = ([sample for each in of for sample in each] for of in (rounds, self.bits[prompts]))
        return PromptsResult(
            prompts=prompts,
            first_call_ms=self.first[prompts]["first_call_ms"],
            warmup_calls=self.first[prompts]["warmup_calls"],
            host_to_host=summarize(every),
            prompts_per_second=1000 * prompts * len(every) / sum(every),
            best_mask=summarize(best) if best else None,
            best_bits=summarize(bits) if bits else None,
            device=summarize(device) if device else None,
            device_not_measured="" if device else "not measured here: no CUDA events on this side's device",
            round_medians_ms=tuple(float(np.median(each)) for each in rounds),
            logits_error=self.errors.get(prompts),
        )


def _read_later(gpu: str | None) -> dict[str, Any]:
    time.sleep(_SETTLE_S)
    return clocks(gpu)
