"""The benchmark harness with sides that cost nothing, in real worker processes. Nothing here judges a time."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.benchmark_runs import TINY, fake, run
from trt_sam.bench import side_run as _bench_run
from trt_sam.bench.benchmark import Plan, SideSpec
from trt_sam.bench.feed import make_feed
from trt_sam.bench.report import markdown
from trt_sam.bench.side_run import Run
from trt_sam.bench.stats import ratio_of_medians, summarize
from trt_sam.contract import check_feed, input_specs
from trt_sam.errors import InputError
from trt_sam.machine.load import clocks, describe_machine


def test_percentiles_are_times_that_were_seen_and_only_where_there_are_enough() -> None:
    few = summarize([3.0, 1.0, 2.0])
    assert (few.samples, few.p50, few.p90, few.p99, few.max, few.mean) == (3, 2.0, None, None, 3.0, 2.0)
    times = np.random.default_rng(0).permutation(np.arange(1, 101)).astype(float)
    many = summarize(times.tolist())
    assert (many.p50, many.p90, many.p99, many.max) == (50.5, 91.0, 100.0, 100.0)
    assert summarize(times[:99].tolist()).p99 is None


def test_a_ratio_is_the_median_of_the_rounds_and_above_1_where_the_side_is_faster() -> None:
    base, own = [[10.0, 12.0, 11.0], [20.0], [40.0]], [[5.0, 5.5, 6.0], [5.0], [40.0]]
    ratio = ratio_of_medians("own", own, "base", base, prompts=4)
    assert (ratio.ratio, ratio.least, ratio.most, ratio.rounds) == (2.0, 1.0, 4.0, 3)
    assert ratio.low == pytest.approx(1.5)
    assert ratio.high == pytest.approx(3.0)


def test_the_feed_is_valid_and_always_the_same() -> None:
    feed = make_feed(5)
    check_feed(feed, input_specs())
    for name, array in make_feed(5).items():
        np.testing.assert_array_equal(array, feed[name])
    assert (feed["point_labels"] == [1, -1]).all()


def test_the_report_has_every_side_and_number_of_prompts() -> None:
    report = run(fake("a"), fake("b", device=True), fake("c", masks=3))
    assert [side.name for side in report.sides] == ["a", "b", "c"]
    for side in report.sides:
        assert side.about["runtime"] == "fake"
        assert [result.prompts for result in side.results] == [1, 3]
        for result in side.results:
            assert result.host_to_host is not None
            assert result.host_to_host.samples >= TINY.rounds
            assert len(result.round_medians_ms) == TINY.rounds
            assert result.first_call_ms is not None
            assert result.warmup_calls == 1
            assert result.prompts_per_second == pytest.approx(1000 * result.prompts / result.host_to_host.mean)
            assert (result.device is not None) == (side.name == "b")
            assert bool(result.device_not_measured) == (side.name != "b")
            assert result.logits_error == (None if side.name == "a" else 0.0)
    assert {(r.side, r.baseline, r.prompts) for r in report.ratios} == {(s, "a", n) for s in "bc" for n in (1, 3)}
    assert json.loads(json.dumps(report.to_dict()))["schema"] == 2


def test_sides_take_turns_in_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "clocks_at_work", lambda *_: None)  # calls that have their own test
    log = tmp_path / "log"
    plan = Plan(prompts=(2,), seconds=0.0, rounds=4, warmup_s=0.0)
    run(fake("a", offset=1.0, log=str(log)), fake("b", offset=2.0, log=str(log)), plan=plan)
    # First call and one of warm-up for each, then per round one call that is not counted and one that is.
    order = [line.split()[0] for line in log.read_text().splitlines()]
    rounds = ["1.0"] * 2 + ["2.0"] * 2
    assert order == rounds + (rounds + rounds[::-1]) * 2


def test_alone_a_side_has_all_its_rounds_before_the_next_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "clocks_at_work", lambda *_: None)
    log, ended = tmp_path / "log", list[int]()
    plan = Plan(prompts=(2,), seconds=0.0, rounds=3, warmup_s=0.0, alone=True)
    opening = Run.open

    def opened(side: Run, stack: contextlib.ExitStack) -> None:
        opening(side, stack)
        assert side._worker is not None
        ended.append(sum(run._worker is not None and run._worker is not side._worker for run in open_now))
        open_now.append(side)
        stack.callback(open_now.remove, side)

    open_now = list[Run]()
    monkeypatch.setattr(Run, "open", opened)
    report = run(fake("a", offset=1.0, log=str(log)), fake("b", offset=2.0, log=str(log)), plan=plan)
    order = [line.split()[0] for line in log.read_text().splitlines()]
    assert order == ["1.0"] * 8 + ["2.0"] * 8
    assert ended == [0, 0]
    assert [(ratio.side, ratio.rounds) for ratio in report.ratios] == [("b", 3)]
    assert "one side was in memory at a time" in report.method


def test_a_difference_of_logits_is_told_relative_to_the_largest() -> None:
    report = run(fake("a"), fake("b", offset=0.01))
    assert [result.logits_error for result in report.sides[1].results] == pytest.approx([0.0025, 0.0025], rel=1e-4)


def test_what_cannot_be_measured_has_its_reason_and_no_number() -> None:
    report = run(
        fake("good"),
        SideSpec("engine", "", not_here="this machine has no GPU"),
        fake("broken", "open_broken"),
        fake("small", fail_at=3),
        fake("dying", die_after=2),
    )
    good, engine, broken, small, dying = report.sides
    assert not good.not_measured
    assert engine.not_measured == "this machine has no GPU"
    assert broken.not_measured == "RuntimeError: the compiler is missing"
    assert [result.not_measured for result in small.results] == ["", "no more than 2 prompts"]
    assert all("exit code 3" in result.not_measured for result in dying.results)
    assert all(result.host_to_host is None and result.first_call_ms is None for result in dying.results)
    assert {ratio.side for ratio in report.ratios} == {"small"}
    text = markdown(report)
    for reason in ("no GPU", "compiler is missing", "no more than 2 prompts", "exit code 3"):
        assert f"not measured here: {reason}" in text or reason in text


def test_nothing_measured_is_an_error_with_every_reason() -> None:
    with pytest.raises(InputError, match=r"a: no GPU; b: RuntimeError: the compiler is missing"):
        run(SideSpec("a", "", not_here="no GPU"), fake("b", "open_broken"))


@pytest.mark.parametrize("alone", [False, True], ids=["in turn", "alone"])
@pytest.mark.parametrize(
    ("baseline", "reason"),
    [
        (SideSpec("base", "", not_here="no GPU"), "no GPU"),
        (fake("base", "open_broken"), "RuntimeError: the compiler is missing"),
        (fake("base", die_after=1), "exit code 3"),
    ],
    ids=["not here", "not opened", "dying"],
)
def test_without_its_baseline_nothing_is_compared_with_another(
    tmp_path: Path, baseline: SideSpec, reason: str, alone: bool
) -> None:
    log = tmp_path / "log"
    plan = Plan(prompts=(2,), seconds=0.0, rounds=2, warmup_s=0.0, alone=alone)
    with pytest.raises(InputError, match=f"^base, which all others are compared with, could not be measured: .*{reason}"):
        run(baseline, fake("other", log=str(log)), plan=plan, baseline="base")
    if alone:
        assert not log.exists(), "what comes after it is not measured"


def test_clocks_are_read_while_a_side_works_each_in_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, seen = tmp_path / "log", []

    def clocks(gpu: str | None) -> dict[str, Any]:
        before = len(log.read_text())
        time.sleep(0.2)
        seen.append(len(log.read_text()) - before)
        return {"mhz": 1000}

    monkeypatch.setattr(_bench_run, "clocks", clocks)
    report = run(fake("a", log=str(log)), SideSpec("none", "", not_here="no GPU"), fake("b", log=str(log), fail_at=3))
    assert seen
    assert min(seen) > 0  # calls went on while they were read
    assert report.clocks_at_work == (
        {"round": 1, "side": "a", "prompts": 3, "mhz": 1000},
        {"round": 2, "side": "b", "prompts": 1, "mhz": 1000},
        {"round": 3, "side": "a", "prompts": 3, "mhz": 1000},
    )
    assert "clocks in round 2, while b works (prompts: 1): mhz 1000" in markdown(report)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": ()}, "prompts"),
        ({"prompts": (0,)}, "prompts"),
        ({"prompts": (1, 1)}, "prompts"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": float("inf")}, "seconds"),
        ({"warmup_s": -1.0}, "warmup_s"),
        ({"rounds": 0}, "rounds"),
        ({"threads": 0}, "threads"),
    ],
)
def test_an_impossible_plan_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Plan(**settings)


def test_the_machine_is_described_without_a_gpu_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = describe_machine()
    assert machine["processor"]
    assert machine["versions"]["numpy"] == np.__version__
    assert "gpu" not in machine
    assert "gpu" not in clocks("0000:65:00.0")


def test_gpu_clocks_come_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    answer = "1980 MHz, 2619 MHz, 33, 71.5 W, 0x0000000000000001"
    # It knows this GPU by its place on the bus; number 0 may be another for it than for CUDA.
    tool.write_text(f'#!/bin/sh\ncase "$*" in *clocks.sm,*--id=0000:65:00.0*) echo "{answer}";; *) exit 9;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert clocks("0000:65:00.0")["gpu"]["clocks.sm"] == "1980 MHz"
    assert "gpu" not in clocks("0000:01:00.0")
    assert "gpu" not in clocks()
    assert "gpu" not in describe_machine("0000:65:00.0")
