"""What a warm-up makes, and a warm-up among callers who hold slots; over the host-memory driver."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import GRAPHS, clicks, expected, opened, tokens
from trt_sam.errors import ContractError

pytestmark = pytest.mark.hostcuda


def test_warm_up_holds_no_slot_while_it_waits_for_another(host_cuda: HostCuda) -> None:
    with opened(host_cuda, in_flight=2) as (runner, _):
        runner.set_image(toy_embedding(1))
        held = runner.submit(*clicks(1, 1, 1))
        warming = threading.Thread(target=runner.warm_up, daemon=True)
        warming.start()
        time.sleep(0.3)
        # The warm-up waits for the slot of `held`; the other one is free for calls meanwhile.
        runner.submit(*clicks(1, 1, 1), timeout=10).result()
        held.result()
        warming.join(20)
        assert not warming.is_alive()


@pytest.mark.parametrize("name", ["plain", "mask_input"])
def test_each_graph_is_on_the_gpu_before_a_call_needs_it(host_cuda: HostCuda, name: str) -> None:
    with opened(host_cuda, GRAPHS[name], in_flight=2) as (runner, _):
        runner.warm_up()
        # CUDA would upload a graph to the GPU at its first launch.
        assert host_cuda.count("cuGraphUpload") == runner.graphs_held > 0
        assert host_cuda.count("queued") == 0


@pytest.mark.parametrize(("image_size", "run_at"), [(None, (64, 64)), ((20, 30), (20, 30))])
def test_a_graph_that_cannot_be_recorded_is_run(
    host_cuda: HostCuda, image_size: tuple[int, int] | None, run_at: tuple[int, int]
) -> None:
    options = GRAPHS["full_resolution"]
    with opened(host_cuda, options) as (runner, _):
        runner.warm_up([(1, 2), (4, 2)], image_size=image_size)
        assert host_cuda.count("hostcuda_enqueue") == 2
        plan = next(iter(runner._core.calls._plans[runner._core.slots[0]].values()))
        assert plan.call.height_width == run_at
        with pytest.raises(ContractError, match="height"):
            runner.warm_up(image_size=(65, 64))
        runner.set_image(toy_embedding(1))
        given = clicks(1, 1, 1)
        found = runner.decode(*given, masks="all", image_size=(9, 11))
        feed = tokens(toy_embedding(1), *given) | {"orig_im_size": np.array([9, 11])}
        np.testing.assert_array_equal(found.masks, expected(options, feed)["masks"])


def test_an_image_size_is_for_full_resolution_graphs(host_cuda: HostCuda) -> None:
    with opened(host_cuda) as (runner, _), pytest.raises(ContractError, match="takes no image_size"):
        runner.warm_up(image_size=(20, 30))


def test_calls_go_on_between_the_buckets_of_a_warm_up(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda, in_flight=2) as (runner, _):
        runner.set_image(toy_embedding(1))
        runner.warm_up([(1, 2)])
        first = runner._core.slots[0]
        entered, go_on = threading.Event(), threading.Event()
        wait = type(first).wait

        def slow(slot: object) -> None:
            if threading.current_thread() is warming:
                entered.set()
                assert go_on.wait(20)
            wait(slot)  # type: ignore[arg-type]

        monkeypatch.setattr(type(first), "wait", slow)
        warming = threading.Thread(target=runner.warm_up, daemon=True)
        warming.start()
        assert entered.wait(20)
        runner.decode(*given, timeout=10)
        assert warming.is_alive()
        go_on.set()
        warming.join(20)
        assert not warming.is_alive()


def test_warm_up_makes_every_bucket_and_calls_make_no_more(host_cuda: HostCuda) -> None:
    with opened(host_cuda, in_flight=2) as (runner, fake):
        runner.warm_up([(1, 2), (3, 3)])
        assert runner.graphs_held == 2 * (4 + 1)  # (1, 2): alone, and with the copies of best, all, device; (3, 3): alone
        runner.warm_up()
        held, contexts = runner.graphs_held, len(fake.contexts)
        runner.set_image(toy_embedding(1))
        for count, points, masks in itertools.product((1, 2, 3, 4), (1, 2, 5), ("best", "all", "device")):
            runner.decode(*clicks(1, count, points), masks=masks)
        assert (runner.graphs_held, len(fake.contexts)) == (held, contexts)
        with pytest.raises(ContractError, match="num_prompts = 9"):
            runner.warm_up([(9, 1)])


def test_two_warm_ups_at_once_wait_for_no_slot_of_each_other(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(host_cuda, in_flight=2) as (runner, _):
        take, both, first, failed = runner._core.take, threading.Barrier(2), threading.local(), list[Exception]()

        def warm_up() -> None:
            try:
                runner.warm_up()
            except Exception as error:
                failed.append(error)

        def met(lease: Any, timeout: float | None) -> Any:
            slot = take(lease, timeout)
            if not hasattr(first, "seen"):
                first.seen = True
                # Each has its first slot then; where one warm-up runs at a time, they never meet.
                with contextlib.suppress(threading.BrokenBarrierError):
                    both.wait(0.5)
            return slot

        monkeypatch.setattr(runner._core, "take", met)
        threads = [threading.Thread(target=warm_up, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        stuck = [thread.is_alive() for thread in threads]
        for _ in range(2 * any(stuck)):
            runner._core.free.put(None)  # lets them go, so that the runner can be closed
        assert not any(stuck)
        assert not failed, failed
