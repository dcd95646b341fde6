"""The benchmark harness with sides that cost nothing, in real worker processes. Nothing here judges a time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_sam.bench import side_run as _bench_run
from trt_sam.bench.benchmark import BenchmarkReport, Plan, SideSpec, run_benchmark
from trt_sam.bench.feed import make_feed
from trt_sam.bench.report import markdown, plot_svg
from trt_sam.bench.side_run import Run
from trt_sam.bench.stats import ratio_of_medians, summarize
from trt_sam.contract import check_feed, input_specs
from trt_sam.errors import InputError, MissingDependencyError
from trt_sam.machine.load import clocks, describe_machine

HERE = str(Path(__file__).parent)
TINY = Plan(prompts=(1, 3), seconds=0.05, rounds=3, warmup_s=0.0)


def fake(name: str, factory: str = "FakeSide", **settings: Any) -> SideSpec:
    return SideSpec(name, f"benchmark_sides:{factory}", settings, path=(HERE,))


def run(*sides: SideSpec, plan: Plan = TINY) -> BenchmarkReport:
    return run_benchmark(sides, plan, title="test")


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


def test_markdown_says_how_it_was_measured() -> None:
    text = markdown(run(fake("a"), fake("b")))
    assert "## Between CUDA events, milliseconds\n\nnot measured here: no side" in text
    for part in ("3 rounds", "warm-up", "clocks before, idle", "load_average", "numpy", "Times as fast as a"):
        assert part in text
    assert "- **a**: runtime fake, device none, precision fp32; opened in" in text
    assert "  - a call: nothing but a nap\n" in text
    header = next(line for line in text.splitlines() if line.startswith("| side"))
    rows = [line for line in text.splitlines() if line.startswith("| a ")]
    assert rows
    assert all(row.count("|") == header.count("|") for row in rows[:2])


def test_calls_for_the_best_mask_are_apart() -> None:
    report = run(fake("a"), fake("b", "BestSide"))
    without, has = report.sides
    assert all(result.best_mask is None for result in without.results)
    for result in has.results:
        assert result.best_mask is not None
        assert result.host_to_host is not None
        assert result.best_mask.samples == result.host_to_host.samples
        assert result.best_mask.p50 >= 20  # it sleeps so long
    part = markdown(report).partition("## Best mask only")[2].partition("\n## ")[0]
    assert [line.split("|")[1:3] for line in part.splitlines() if line.startswith("| b")] == [[" b ", " 1 "], [" b ", " 3 "]]
    assert "not measured here for a: " in part


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


def test_the_plot_is_an_svg_with_every_side() -> None:
    pytest.importorskip("matplotlib")
    report = run(fake("first side"), fake("second side"), SideSpec("absent", "", not_here="no GPU"))
    svg = plot_svg(report)
    assert svg.startswith(b"<?xml")
    assert b"first side" in svg
    assert b"second side" in svg
    assert b"absent" not in svg
    assert plot_svg(report) == svg


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(fake("a"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"matplotlib .* pip install -e '\S+\[bench\]'"):
        plot_svg(report)


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


def test_ctrl_c_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {HERE!r})\nfrom test_benchmark import *\nrun(fake('a'), fake('slow', 'SlowSide'))\n"
    )
    env = os.environ | {"TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    # The slow side is in its first call once its folder and the other's first logits are there.
    while not list(tmp_path.glob("trt-sam-bench-*/0/3.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = children(parent.pid)
    assert len(workers) == 2
    parent.send_signal(signal.SIGINT)
    _, error = parent.communicate(timeout=60)
    assert "KeyboardInterrupt" in error
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.iterdir())


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {HERE!r})\n"
        "from test_benchmark import *\n"
        "run(fake('a'), plan=Plan(prompts=(1,), seconds=600, rounds=600))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("trt-sam-bench-*/0/1.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = children(parent.pid)
    parent.kill()
    parent.wait()
    while [pid for pid in workers if running(pid)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
