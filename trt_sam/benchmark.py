"""Time several decoders side by side: a process each, in turn in rounds, percentiles and ratios of medians.

Only one side works at a time; the others wait without spinning. What cannot be measured on this machine has its reason in the
report instead of a number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trt_sam import _bench_feed as feed
from trt_sam._bench_machine import clocks, describe_machine
from trt_sam._bench_process import Worker
from trt_sam._bench_stats import Latency, Ratio, ratio_of_medians, summarize
from trt_sam.errors import InferenceError, InputError
from trt_sam.metrics import relative_error

__all__ = ["SCHEMA", "BenchmarkReport", "Plan", "PromptsResult", "SideReport", "SideSpec", "run_benchmark"]

SCHEMA = 1

METHOD = (
    "One process per side. A round times each side in turn for a slice of the time, with every number of prompts; the order "
    "of the sides rotates from round to round. The first call of each shape is apart, then calls warm up, and each slice "
    "begins with a call that is not counted. Percentiles are over the calls of all rounds; p90 needs 10 calls and p99 100. "
    "Throughput is prompts over the sum of the calls' times. A ratio is of two medians in one round; what is "
    "given is the median of the rounds, and their quartiles."
)


@dataclass(frozen=True)
class SideSpec:
    """One side, and how its worker opens it."""

    name: str
    factory: str
    """"package.module:function" in the worker; it gets `settings` and returns a `_bench_sides.BenchSide`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able arguments of the factory."""
    path: tuple[str, ...] = ()
    """Folders from which the worker may import besides its own."""
    only_prompts: tuple[int, ...] = ()
    """Numbers of prompts to time it with; empty is all of the plan."""
    not_here: str = ""
    """Why it cannot be measured on this machine; it is then listed with this reason and not started."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    prompts: tuple[int, ...] = (1, 4, 16)
    seconds: float = 60.0
    """Of timed calls, all sides and numbers of prompts together; slow calls exceed it, one per slice is the least."""
    rounds: int = 5
    warmup_s: float = 1.0
    """Per side and number of prompts, at least one call, after the first."""
    threads: int = 1
    """CPU threads of each side."""

    def __post_init__(self) -> None:
        if not self.prompts or any(n < 1 for n in self.prompts) or len(set(self.prompts)) != len(self.prompts):
            raise InputError(f"prompts are {list(self.prompts)}, must be different numbers from 1")
        for name, least in (("seconds", 0.0), ("warmup_s", 0.0)):
            if not getattr(self, name) >= least or getattr(self, name) == float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}, must be a number from 0")
        for name in ("rounds", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, must be at least 1")


@dataclass(frozen=True)
class PromptsResult:
    """One side with one number of prompts. Times are milliseconds."""

    prompts: int
    not_measured: str = ""
    """Why there are no numbers; empty where there are."""
    first_call_ms: float | None = None
    warmup_calls: int = 0
    host_to_host: Latency | None = None
    prompts_per_second: float | None = None
    device: Latency | None = None
    """The inference alone, between CUDA events."""
    device_not_measured: str = ""
    round_medians_ms: tuple[float, ...] = ()
    logits_error: float | None = None
    """Largest difference of logits to the first side's, relative to its largest |logit|; None where that has none."""


@dataclass(frozen=True)
class SideReport:
    """One side."""

    name: str
    not_measured: str
    about: Mapping[str, str]
    open_ms: float | None
    """Import, load and build, before the first call."""
    results: tuple[PromptsResult, ...]


@dataclass(frozen=True)
class BenchmarkReport:
    """Everything that was measured, and how."""

    title: str
    created: str
    machine: Mapping[str, Any]
    clocks_before: Mapping[str, Any]
    clocks_after: Mapping[str, Any]
    plan: Plan
    calls: str
    """What one call is."""
    method: str
    sides: tuple[SideReport, ...]
    ratios: tuple[Ratio, ...]
    """Of every side to the first one that was measured."""
    schema: int = SCHEMA
    notes: tuple[str, ...] = ()
    profiles: tuple[Mapping[str, Any], ...] = ()
    """Where ONNX Runtime's time goes, by number of prompts (`_bench_profile.profile_graph`), where that was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data."""
        return dataclasses.asdict(self)


def run_benchmark(
    sides: Sequence[SideSpec],
    plan: Plan,
    *,
    title: str,
    baseline: str | None = None,
    device: int = 0,
    progress: Callable[[str], None] | None = None,
) -> BenchmarkReport:
    """Measure `sides` (at least one, names all different).

    Args:
        sides: the first that can be measured is what the others' logits are compared with.
        plan: how much to measure.
        title: of the report.
        baseline: the side that ratios are taken to; None is the first that was measured.
        device: the GPU whose clocks are told.
        progress: is called with a line now and then.

    Raises:
        InputError: no side could be measured; the message has every reason.
    """
    say = progress or (lambda line: None)
    before = clocks(device)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trt-sam-bench-")))
        runs = [_Run(spec, plan, folder / str(index)) for index, spec in enumerate(sides)]
        for run in runs:
            say(f"opening {run.spec.name}")
            run.open(stack)
        _fill(runs, plan, say)
        _compare_logits(runs)
        reports = tuple(run.report() for run in runs)
    measured = [run for run in runs if any(run.samples.values())]
    if not measured:
        reasons = "; ".join(f"{report.name}: {_reasons(report)}" for report in reports)
        raise InputError(f"nothing could be measured ({reasons})")
    base = next((run for run in measured if run.spec.name == baseline), measured[0])
    return BenchmarkReport(
        title=title,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=describe_machine(device),
        clocks_before=before,
        clocks_after=clocks(device),
        plan=plan,
        calls=feed.WHAT,
        method=METHOD,
        sides=reports,
        ratios=tuple(_ratios(measured, base, plan)),
    )


class _Run:
    """One side's worker, and what it has measured so far."""

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
        self.errors: dict[int, float] = {}
        self._worker: Worker | None = None

    def open(self, stack: contextlib.ExitStack) -> None:
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
        save = str(self.saved(prompts))
        answer = self._ask("prepare", prompts, prompts=prompts, warmup_s=self.plan.warmup_s, save=save)
        if answer is not None:
            self.first[prompts] = answer

    def measure(self, prompts: int, seconds: float) -> None:
        answer = self._ask("measure", prompts, prompts=prompts, seconds=seconds)
        if answer is not None:
            self.samples[prompts].append(answer["samples_ms"])
            self.device[prompts].extend(answer["device_ms"] or [])

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
            self.samples[about], self.device[about] = [], []
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
        rounds, device = self.samples[prompts], self.device[prompts]
        every = [sample for each in rounds for sample in each]
        return PromptsResult(
            prompts=prompts,
            first_call_ms=self.first[prompts]["first_call_ms"],
            warmup_calls=self.first[prompts]["warmup_calls"],
            host_to_host=summarize(every),
            prompts_per_second=1000 * prompts * len(every) / sum(every),
            device=summarize(device) if device else None,
            device_not_measured="" if device else "not measured here: no CUDA events on this side's device",
            round_medians_ms=tuple(float(np.median(each)) for each in rounds),
            logits_error=self.errors.get(prompts),
        )


def _fill(runs: Sequence[_Run], plan: Plan, say: Callable[[str], None]) -> None:
    """First calls and warm-up side by side, then the rounds."""
    for run in runs:
        for prompts in run.prompts:
            if run.works(prompts):
                say(f"first call of {run.spec.name}, {prompts} prompts")
                run.prepare(prompts)
    pairs = sum(run.works(prompts) for run in runs for prompts in run.prompts)
    for turn in range(plan.rounds):
        say(f"round {turn + 1} of {plan.rounds}")
        at = turn % len(runs)
        for prompts in plan.prompts:
            for run in (*runs[at:], *runs[:at]):
                if run.works(prompts):
                    run.measure(prompts, plan.seconds / plan.rounds / pairs)


def _compare_logits(runs: Sequence[_Run]) -> None:
    """Logits of every side against the first side that has them; three masks are the last three of the four, as in SAM."""
    for prompts in {n for run in runs for n in run.prompts}:
        able = [run for run in runs if run.works(prompts)]
        if not able:
            continue
        with np.load(able[0].saved(prompts), allow_pickle=False) as kept:
            reference = kept["masks"]
        for run in able[1:]:
            with np.load(run.saved(prompts), allow_pickle=False) as kept:
                masks = kept["masks"]
            fewest = min(masks.shape[1], reference.shape[1])
            if fewest == 1 and masks.shape != reference.shape:
                continue  # a graph that selects the best mask: which of the four it is, nobody says
            run.errors[prompts] = relative_error(reference[:, -fewest:], masks[:, -fewest:])


def _ratios(measured: Sequence[_Run], base: _Run, plan: Plan) -> list[Ratio]:
    found = []
    for prompts in plan.prompts:
        for run in measured:
            if run is not base and run.works(prompts) and base.works(prompts):
                found.append(
                    ratio_of_medians(
                        run.spec.name, run.samples[prompts], base.spec.name, base.samples[prompts], prompts=prompts
                    )
                )
    return found


def _reasons(report: SideReport) -> str:
    return report.not_measured or "; ".join(dict.fromkeys(result.not_measured for result in report.results))
