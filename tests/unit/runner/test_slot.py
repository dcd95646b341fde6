"""The runner's own interface over the host-memory driver: decode, submit, buckets, graphs, images, threads, slots."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.ort_engine import runs_of
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import GRAPHS, MASK, PLAIN, check_decoded, clicks, engine_of, expected, make, opened, tokens
from trt_sam.cuda.device import Device
from trt_sam.errors import ContractError, InferenceError
from trt_sam.runner.call import Decoded
from trt_sam.runner.decoder_runner import DecoderRunner

pytestmark = pytest.mark.hostcuda

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("name", ["plain", "fp16", "best_mask"])
@pytest.mark.parametrize("masks", ["best", "all"])
@pytest.mark.parametrize("bits", [False, True])
def test_decode_gives_what_the_graph_gives(host_cuda: HostCuda, name: str, masks: str, bits: bool) -> None:
    options = GRAPHS[name]
    boxes = np.array([[1, 2, 300, 400], [5, 6, 70, 80], [0, 0, 9, 9.5]], np.float32)
    with opened(host_cuda, options) as (runner, _):
        runner.set_image(toy_embedding(3))
        for seed, count, points in ((1, 1, 1), (2, 3, 2), (3, 4, 5), (4, 2, 1), (1, 1, 1)):
            given = clicks(seed, count, points)
            found = runner.decode(*given, masks=masks, bits=bits)
            check_decoded(found, tokens(toy_embedding(3), *given), best=masks == "best", options=options)
        given = clicks(7, 3, 2)
        found = runner.decode(*given, boxes=boxes, masks=masks, bits=bits)
        check_decoded(found, tokens(toy_embedding(3), *given, boxes), best=masks == "best", options=options)
        found = runner.decode(boxes=boxes[0], masks=masks, bits=bits)
        check_decoded(found, tokens(toy_embedding(3), None, None, boxes[:1]), best=masks == "best", options=options)
        del found


def test_full_resolution_masks_of_any_size_and_only_the_rows_that_were_asked(host_cuda: HostCuda) -> None:
    options = GRAPHS["full_resolution"]
    with opened(host_cuda, options) as (runner, _):
        runner.set_image(toy_embedding(3))
        for seed, count, size in ((1, 1, (20, 30)), (2, 3, (64, 5)), (3, 4, (7, 7)), (1, 1, (20, 30))):
            given = clicks(seed, count, 2)
            feed = {**tokens(toy_embedding(3), *given), "orig_im_size": np.array(size, np.int64)}
            for masks in ("all", "best"):
                check_decoded(runner.decode(*given, image_size=size, masks=masks), feed, best=masks == "best", options=options)
        assert runner.graphs_held == 0  # a recording would keep the first call's size
        with pytest.raises(ContractError, match="say image_size"):
            runner.decode(*given)
        runner.warm_up()


def test_between_buckets_calls_are_filled_up_and_no_bit_changes(host_cuda: HostCuda) -> None:
    asked = {"prompt_buckets": [4], "point_buckets": [6]}
    with (
        opened(host_cuda) as (runner, _),
        opened(host_cuda, **asked) as (padded, fake),
        opened(host_cuda, graphs=False) as (plain, _),
    ):
        for each in (runner, padded, plain):
            each.set_image(toy_embedding(2))
        for count in (4, 1, 3, 2):
            for points in (5, 1, 3):
                given = clicks(count * 10 + points, count, points)
                results = [each.decode(*given, masks="all", copy=True) for each in (runner, padded, plain)]
                check_decoded(results[0], tokens(toy_embedding(2), *given), best=False)
                for other in results[1:]:
                    np.testing.assert_array_equal(other.masks, results[0].masks)
                    np.testing.assert_array_equal(other.iou_predictions, results[0].iou_predictions)
        assert {tuple(context.shapes["point_labels"]) for context in fake.contexts} == {(2, 3), (4, 6)}
        assert padded.graphs_held == 4  # of two buckets: with the copies of their own size, and alone for the sizes between
        assert plain.graphs_held == 0


def test_a_call_waits_once_and_copies_only_what_was_asked(host_cuda: HostCuda) -> None:
    wanted = {
        ("best_mask", "best"): [256 + 3 * 2 * 256 * 256],
        ("fp16", "all"): [256 + 3 * 4 * 2 * 256 * 256],
        ("fp16", "best"): [3 * 4 * 4, *[2 * 256 * 256] * 3],
        ("fp16", "device"): [],
    }
    for (name, masks), sizes in wanted.items():
        with opened(host_cuda, GRAPHS[name]) as (runner, _):
            runner.set_image(toy_embedding(1))
            given = clicks(1, 3, 2)
            runner.decode(*given, masks=masks)
            start = len(host_cuda.log)
            runner.decode(*given, masks=masks)
            log = [line.split() for line in host_cuda.log[start:]]
            assert [int(line[-1]) for line in log if line[:2] == ["run", "DtoH"]] == sizes
            assert [int(line[-1]) for line in log if line[:2] == ["run", "HtoD"]] == [256 + 4 * 4 * 4 if name else 0]
            assert sum(line[0] == "cuStreamSynchronize" for line in log) == (2 if masks == "best" and name == "fp16" else 1)
            assert sum(line[0] == "cuGraphLaunch" for line in log) == 1


def test_calls_overlap_as_far_as_there_are_slots(host_cuda: HostCuda) -> None:
    with opened(host_cuda, in_flight=3) as (runner, fake):
        runner.set_image(toy_embedding(4))
        given = [clicks(seed, 1 + seed % 3, 2) for seed in range(4)]
        runner.warm_up([(1, 3), (2, 3), (4, 3)])
        before = runs_of(fake)
        calls = [runner.submit(*each, masks="all") for each in given[:3]]
        assert runs_of(fake) == before  # queued, all three
        assert not calls[2].done()
        for timeout in (0, 0.01):
            with pytest.raises(InferenceError, match="all 3 slots are in use"):
                runner.submit(*given[3], timeout=timeout)
        for call, each in reversed(list(zip(calls, given, strict=False))):
            check_decoded(call.result(), tokens(toy_embedding(4), *each), best=False)
        assert calls[0].result() is calls[0].result()
        check_decoded(runner.decode(*given[3]), tokens(toy_embedding(4), *given[3]))
        polls = 0
        late = runner.submit(*given[0])
        while not late.done():
            polls += 1
        assert polls > 1
        check_decoded(late.result(), tokens(toy_embedding(4), *given[0]))


def test_a_submission_that_is_dropped_gives_its_slot_back(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 2)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(4))
        for _ in range(3):
            runner.submit(*clicks(9, 4, 2))
        with runner.submit(*clicks(8, 3, 2)):
            pass
        check_decoded(runner.decode(*given, timeout=0), tokens(toy_embedding(4), *given))


def test_waiting_for_a_slot_ends_when_one_is_free_or_the_runner_is_closed(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 2)
    runner, _ = make(host_cuda)
    runner.set_image(toy_embedding(4))
    held = runner.submit(*given)
    found: list[object] = []

    def work() -> None:
        try:
            found.append(runner.decode(*given, copy=True))
        except InferenceError as error:
            found.append(str(error))

    threads = [threading.Thread(target=work)]
    threads[0].start()
    held.result()
    threads[0].join(10)
    held = runner.submit(*given)
    threads += [threading.Thread(target=work) for _ in range(2)]
    for thread in threads[1:]:
        thread.start()
    runner.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert isinstance(found[0], Decoded)
    assert found[1:] == ["the runner is closed; open a new one"] * 2
    with pytest.raises(InferenceError, match="closed while this call was under way"):
        held.result()


@pytest.mark.parametrize("in_flight", [1, 3])
def test_many_threads_each_with_its_image(host_cuda: HostCuda, in_flight: int) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            image = runner.add_image(toy_embedding(seed))
            for turn in range(6):
                given = clicks(seed * 10 + turn, 1 + (seed + turn) % 4, 1 + turn % 5)
                check_decoded(runner.decode(*given, image=image, copy=True), tokens(toy_embedding(seed), *given))
        except BaseException as error:
            wrong.append(error)

    with opened(host_cuda, in_flight=in_flight) as (runner, _):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong, wrong


@pytest.mark.parametrize("in_flight", [1, 2])
def test_decode_many_takes_any_number_of_prompts(host_cuda: HostCuda, in_flight: int) -> None:
    given = clicks(3, 11, 2)
    boxes = np.arange(44, dtype=np.float32).reshape(11, 4)
    with opened(host_cuda, in_flight=in_flight) as (runner, _):
        runner.set_image(toy_embedding(2))
        with pytest.raises(ContractError, match="use decode_many"):
            runner.decode(*given)
        check_decoded(runner.decode_many(*given), tokens(toy_embedding(2), *given))
        check_decoded(runner.decode_many(*given, boxes=boxes, masks="all"), tokens(toy_embedding(2), *given, boxes), best=False)
        check_decoded(runner.decode_many(boxes=boxes, bits=True), tokens(toy_embedding(2), None, None, boxes))
        check_decoded(runner.decode_many(given[0][0], given[1][0]), tokens(toy_embedding(2), given[0][:1], given[1][:1]))


def with_both(cuda: HostCuda) -> DecoderRunner:
    engines = [engine_of(cuda, PLAIN)[0], engine_of(cuda, MASK)[0]]
    return DecoderRunner(engines, Device())


def test_a_second_click_refines_the_first_mask_with_the_graph_that_takes_one(host_cuda: HostCuda) -> None:
    given = clicks(1, 3, 2)
    with with_both(host_cuda) as runner:
        runner.set_image(toy_embedding(2))
        first = runner.decode(*given, copy=True)
        check_decoded(first, tokens(toy_embedding(2), *given))
        feed = {**tokens(toy_embedding(2), *given), "mask_input": first.low_res_masks, "has_mask_input": np.ones(3, np.float32)}
        for _ in range(2):
            check_decoded(runner.decode(*given, mask_input=first.low_res_masks), feed, options=MASK)
            check_decoded(runner.decode(*given), tokens(toy_embedding(2), *given))
        # The same through `run`: a mask that is not to be used takes the other graph.
        for flags in ([1, 0, 1], [0, 0, 0]):
            feed["has_mask_input"] = np.array(flags, np.float32)
            found = runner.run(feed)
            for name, array in expected(MASK, feed).items():
                np.testing.assert_array_equal(found[name], array)
        with pytest.raises(ContractError, match="mask_input holds NaN"):
            runner.decode(*given, mask_input=first.low_res_masks * np.nan)
    with opened(host_cuda, MASK) as (alone, _):
        alone.set_image(toy_embedding(2))
        check_decoded(alone.decode(*given), tokens(toy_embedding(2), *given))
    with opened(host_cuda) as (none, _):
        none.set_image(toy_embedding(2))
        with pytest.raises(ContractError, match="takes no mask_input"):
            none.decode(*given, mask_input=first.low_res_masks)


def test_a_kind_of_call_may_be_forgotten_before_it_is_queued(host_cuda: HostCuda) -> None:
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        prompts = runner._core.calls.prompts(*clicks(1, 1, 1), None, None, "all", bits=False, image_size=None)
        runner._core.calls._known.clear()  # as another thread's call does when the table is full
        assert runner._submit(prompts, runner.image_id, None).result().masks.shape[0] == 1


def test_a_wait_blocks_where_that_is_asked(host_cuda: HostCuda) -> None:
    given = clicks(1, 2, 2)
    with opened(host_cuda, wait="block") as (runner, _):
        # CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING
        assert sum(line == "cuEventCreate 3" for line in host_cuda.log) == 1
        runner.set_image(toy_embedding(4))
        for masks in ("all", "best"):
            runner.decode(*given, masks=masks)
            start = len(host_cuda.log)
            check_decoded(
                runner.decode(*given, masks=masks), tokens(toy_embedding(4), *given), best=masks == "best", options=PLAIN
            )
            log = [line.split()[0] for line in host_cuda.log[start:]]
            assert "cuStreamSynchronize" not in log
            assert log.count("cuEventSynchronize") == (2 if masks == "best" else 1)
    with pytest.raises(ContractError, match="wait is 'sleep', must be one of auto, spin, block"):
        make(host_cuda, wait="sleep")
    with opened(host_cuda, wait="spin"):
        assert host_cuda.log.count("cuDevicePrimaryCtxSetFlags 1") == 1  # CU_CTX_SCHED_SPIN
    host_cuda.fail("cuDevicePrimaryCtxSetFlags")
    with pytest.raises(InferenceError, match="choosing how to wait"):
        make(host_cuda, wait="spin")
    assert not host_cuda.held
