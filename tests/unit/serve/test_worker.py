"""The runner's thread: bounded, fair, and finished at the end."""

from __future__ import annotations

import contextlib
import threading
import time
from types import SimpleNamespace

import pytest

from trt_sam.serve.faults import Refusal
from trt_sam.serve.worker import Lane, RunnerWorker

LANES = {"short": Lane("prompts", 4, 3), "long": Lane("parts", 1, 100)}


def test_a_full_lane_refuses_and_a_cancelled_place_is_free() -> None:
    worker = RunnerWorker(LANES)
    waiting = [worker.submit("short", lambda: 1) for _ in range(3)]
    with pytest.raises(Refusal) as refused:
        worker.submit("short", lambda: 1)
    assert (refused.value.status, refused.value.code) == (429, "busy")
    assert refused.value.retry_seconds is not None
    assert refused.value.retry_seconds >= 1
    waiting[0].cancel()
    last = worker.submit("short", lambda: 2)
    worker.start()
    assert last.result(5).value == 2
    worker.close()


def test_one_long_piece_of_work_does_not_send_others_away_for_long() -> None:
    worker, began, gate = RunnerWorker(LANES), threading.Event(), threading.Event()
    worker.start()
    for seconds in (0.0, 0.0, 0.0, 1.0):
        worker.submit("short", lambda seconds=seconds: time.sleep(seconds)).result(5)  # type: ignore[misc]
    worker.submit("long", lambda: began.set() or gate.wait(5))
    assert began.wait(5)
    for _ in range(3):
        worker.submit("short", lambda: 1)
    with pytest.raises(Refusal) as refused:
        worker.submit("short", lambda: 1)
    assert refused.value.retry_seconds == 1
    gate.set()
    worker.close()


def test_a_lane_whose_work_would_come_too_late_refuses_more_but_never_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]  # a real one makes 0.04 s more than 0.05 on a busy machine
    monkeypatch.setattr("trt_sam.serve.worker.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def take(seconds: float) -> None:
        clock[0] += seconds

    worker, began, gate = RunnerWorker({"slow": Lane("pictures", 1, 8, 0.05)}), threading.Event(), threading.Event()
    worker.start()
    for _ in range(3):
        worker.submit("slow", lambda: take(0.04)).result(5)
    worker.submit("slow", lambda: began.set() or gate.wait(5))
    assert began.wait(5)
    waiting = [worker.submit("slow", lambda: 1) for _ in range(2)]
    with pytest.raises(Refusal) as refused:
        worker.submit("slow", lambda: 1)
    assert refused.value.status == 429
    waiting[0].cancel()
    worker.submit("slow", lambda: 1)
    gate.set()
    worker.close()


def test_what_waits_for_other_lanes_too_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, most = 0.0, 2.0
    monkeypatch.setattr("trt_sam.serve.worker.time", SimpleNamespace(perf_counter=lambda: now))

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    lanes = {"slow": Lane("pictures", 1, 100, most), "short": Lane("prompts", 3, 1000), "gate": Lane("gates", 1, 1)}
    worker, began, gate = RunnerWorker(lanes), threading.Event(), threading.Event()
    before = [worker.submit("slow", lambda: work(0.1)) for _ in range(10)]
    before += [worker.submit("short", lambda: work(0.01)) for _ in range(400)]
    worker.start()  # three times as much goes to the others, by their weights
    for future in before:
        future.result(5)
    worker.submit("gate", lambda: began.set() or gate.wait(5))
    assert began.wait(5)
    for _ in range(900):
        worker.submit("short", lambda: work(0.01))
    taken = []
    with contextlib.suppress(Refusal):
        while True:
            taken.append(worker.submit("slow", lambda: work(0.1)))
    gate.set()
    waited = [future.result(5).waited for future in taken]
    assert 0.5 * most < max(waited) < 1.5 * most
    worker.close()


def test_what_is_expected_counts_until_the_first_is_done() -> None:
    worker = RunnerWorker({"slow": Lane("pictures", 1, 100, 2.0)})
    worker.expect("slow", 1.5)
    waiting = [worker.submit("slow", lambda: 1) for _ in range(2)]
    with pytest.raises(Refusal) as refused:
        worker.submit("slow", lambda: 1)
    assert refused.value.retry_seconds == 4
    worker.start()
    for future in waiting:
        future.result(5)
    for future in [worker.submit("slow", lambda: 1) for _ in range(10)]:
        future.result(5)
    worker.close()


def test_long_work_and_short_share_the_thread() -> None:
    worker, order = RunnerWorker({"short": Lane("prompts", 4, 100), "long": Lane("parts", 1, 100)}), list[str]()

    def work(name: str) -> None:
        time.sleep(0.004)
        order.append(name)

    for _ in range(40):
        worker.submit("long", lambda: work("long"))
        worker.submit("short", lambda: work("short"))
    worker.start()
    worker.close()
    assert len(order) == 80
    # While both wait, four of five pieces are short ones; in neither lane does work stand still.
    assert 24 <= order[:40].count("short") <= 38


def test_a_failure_is_the_callers_and_the_thread_goes_on() -> None:
    worker = RunnerWorker(LANES)
    worker.start()
    failing = worker.submit("short", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(5)
    done = worker.submit("short", threading.get_ident).result(5)
    assert done.value != threading.get_ident()
    assert done.took >= 0
    worker.close()


def test_close_finishes_what_waits_and_refuses_the_rest() -> None:
    worker, gate = RunnerWorker(LANES), threading.Event()
    worker.start()
    futures = [worker.submit("long", lambda: gate.wait(5)) for _ in range(5)]
    closing = threading.Thread(target=worker.close)
    closing.start()
    time.sleep(0.05)
    with pytest.raises(Refusal) as refused:
        worker.submit("short", lambda: 1)
    assert refused.value.status == 503
    gate.set()
    closing.join(5)
    assert all(future.result(0).value for future in futures)
    worker.close()
