"""Time several decoders side by side: a process each, in turn in rounds, percentiles and ratios of medians.

Only one side works at a time; the others wait without spinning. What cannot be measured on this machine has its reason in the
report instead of a number.
"""

from __future__ import annotations

import contextlib
import datetime
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trt_sam.accuracy.metrics import relative_error
from trt_sam.bench import feed
from trt_sam.bench.plan import SCHEMA, BenchmarkReport, Plan, PromptsResult, SideReport, SideSpec
from trt_sam.bench.side_run import Run
from trt_sam.bench.stats import Ratio, ratio_of_medians
from trt_sam.errors import InputError
from trt_sam.machine.driver import pci_bus_id
from trt_sam.machine.load import clocks, describe_machine

__all__ = ["SCHEMA", "BenchmarkReport", "Plan", "PromptsResult", "SideReport", "SideSpec", "run_benchmark"]

METHOD = (
    "One process per side. A round times each side in turn for a slice of the time, with every number of prompts; the order "
    "of the sides rotates from round to round. The first call of each shape is apart, without caches of compiled code from "
    "earlier runs; then calls warm up, and each slice begins with a call that is not counted. Percentiles are over the calls "
    "of all rounds; p90 needs 10 calls and p99 100. Throughput is prompts over the sum of the calls' times. A ratio is of two "
    "medians in one round; what is given is the median of the rounds, and their quartiles. Clocks are read while a side works, "
    "in calls that are not counted: one side a round, each in its turn, with the most prompts."
)

ALONE = (
    " Here one side was in memory at a time: each had all its rounds before the next was opened, so that a ratio is of two "
    "rounds with the same number, which were not side by side."
)


def run_benchmark(
    sides: Sequence[SideSpec],
    plan: Plan,
    *,
    title: str,
    baseline: str | None = None,
    device: int | None = 0,
    progress: Callable[[str], None] | None = None,
) -> BenchmarkReport:
    """Measure `sides` (at least one, names all different).

    Args:
        sides: the first that can be measured is what the others' logits are compared with.
        plan: how much to measure.
        title: of the report.
        baseline: the side that ratios are taken to, without which nothing more is measured; None: the first that was.
        device: number of the GPU that is described and whose clocks are read, as CUDA counts here; None where none is used.
        progress: is called with a line now and then.

    Raises:
        InputError: no side could be measured, or not the baseline; the message has every reason.
    """
    say = progress or (lambda line: None)
    gpu = None if device is None else pci_bus_id(device)
    idle = clocks(gpu)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trt-sam-bench-")))
        runs = [Run(spec, plan, folder / str(index)) for index, spec in enumerate(sides)]
        at_work: tuple[Mapping[str, Any], ...] = ()
        for together in [[run] for run in runs] if plan.alone else [runs]:
            with contextlib.ExitStack() as workers:
                for run in together:
                    say(f"opening {run.spec.name}")
                    run.open(workers)
                    _check_baseline(run, baseline)
                at_work += _fill(together, plan, gpu, say, share=len(together) / len(runs))
                for run in together:
                    _check_baseline(run, baseline)
        _compare_logits(runs)
        reports = tuple(run.report() for run in runs)
    measured = [run for run in runs if any(run.samples.values())]
    if not measured:
        reasons = "; ".join(f"{report.name}: {_reasons(report)}" for report in reports)
        raise InputError(f"nothing could be measured ({reasons})")
    base = next((run for run in measured if run.spec.name == baseline), measured[0])
    return BenchmarkReport(
        title=title,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        machine=describe_machine(gpu),
        clocks_idle=idle,
        clocks_at_work=at_work,
        plan=plan,
        calls=feed.WHAT,
        method=METHOD + (ALONE if plan.alone else ""),
        sides=reports,
        ratios=tuple(_ratios(measured, base, plan, lambda run: run.samples)),
        bits_ratios=tuple(_ratios(measured, base, plan, lambda run: run.bits)),
    )


def _check_baseline(run: Run, baseline: str | None) -> None:
    """Raise InputError where the rest would have nothing to be compared with: another baseline is not taken in silence."""
    if run.spec.name == baseline and not any(run.works(prompts) for prompts in run.prompts):
        raise InputError(
            f"{baseline}, which all others are compared with, could not be measured: {_reasons(run.report())}; nothing more is"
        )


def _fill(
    runs: Sequence[Run], plan: Plan, gpu: str | None, say: Callable[[str], None], *, share: float
) -> tuple[Mapping[str, Any], ...]:
    """First calls and warm-up side by side, then the rounds, in this share of the time; gives the clocks of each round."""
    for run in runs:
        for prompts in run.prompts:
            if run.works(prompts):
                say(f"first call of {run.spec.name}, {prompts} prompts")
                run.prepare(prompts)
    pairs = sum(run.works(prompts) for run in runs for prompts in run.prompts)
    at_work = []
    for turn in range(plan.rounds):
        say(f"round {turn + 1} of {plan.rounds}")
        at = turn % len(runs)
        for prompts in plan.prompts:
            for run in (*runs[at:], *runs[:at]):
                if run.works(prompts):
                    run.measure(prompts, share * plan.seconds / plan.rounds / pairs)
        able = [(run, most) for run in runs if (most := max(filter(run.works, run.prompts), default=0))]
        if able:
            run, most = able[turn % len(able)]
            found = run.clocks_at_work(most, gpu)
            at_work += [] if found is None else [{"round": turn + 1, **found}]
    return tuple(at_work)


def _compare_logits(runs: Sequence[Run]) -> None:
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


def _ratios(
    measured: Sequence[Run], base: Run, plan: Plan, times: Callable[[Run], Mapping[int, Sequence[Sequence[float]]]]
) -> list[Ratio]:
    found = []
    for prompts in plan.prompts:
        for run in measured:
            if run is not base and run.works(prompts) and base.works(prompts):
                own, theirs = times(run)[prompts], times(base)[prompts]
                if own and theirs:
                    found.append(ratio_of_medians(run.spec.name, own, base.spec.name, theirs, prompts=prompts))
    return found


def _reasons(report: SideReport) -> str:
    return report.not_measured or "; ".join(dict.fromkeys(result.not_measured for result in report.results))
