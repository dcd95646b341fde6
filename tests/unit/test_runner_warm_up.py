"""A warm-up among callers who hold slots."""

from __future__ import annotations

import threading
import time

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
def test_each_graph_runs_once_before_a_call_needs_it(host_cuda: HostCuda, name: str) -> None:
    with opened(host_cuda, GRAPHS[name], in_flight=2) as (runner, _):
        runner.warm_up()
        # CUDA uploads a graph to the GPU at its first launch.
        assert host_cuda.count("cuGraphLaunch") == runner.graphs_held > 0
        assert host_cuda.count("queued") == 0


@pytest.mark.parametrize(("image_size", "run_at"), [(None, (64, 64)), ((20, 30), (20, 30))])
def test_a_graph_that_cannot_be_recorded_is_run(
    host_cuda: HostCuda, image_size: tuple[int, int] | None, run_at: tuple[int, int]
) -> None:
    options = GRAPHS["full_resolution"]
    with opened(host_cuda, options) as (runner, _):
        runner.warm_up([(1, 2), (4, 2)], image_size=image_size)
        assert host_cuda.count("hostcuda_enqueue") == 2
        plan = next(iter(runner._slots[0].plans.values()))
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
        first = runner._slots[0]
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
