"""The runner's promises where only a GPU can show them: recordings, memory, threads, streams of others, forks.

Run with `make test-gpu`; skipped with the reason where there is no GPU.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.gpu import clicks, embedding, needs_gpu, needs_torch_cuda, open_runner
from trt_sam.errors import InferenceError, TrtSamError

pytestmark = needs_gpu

SLOW_CYCLES = 500_000_000
"""Of `torch.cuda._sleep`: a quarter of a second at 2 GHz."""


def test_graph_or_no_graph_bit_for_bit(fp16: Path) -> None:
    with open_runner(fp16) as with_graphs, open_runner(fp16, graphs=False) as without:
        for each in (with_graphs, without):
            each.set_image(embedding(0))
        for count, points in ((1, 1), (2, 3), (5, 2), (16, 7)):
            given = clicks(count, count, points)
            first, second = (each.decode(*given, masks="all", copy=True) for each in (with_graphs, without))
            for _ in range(3):
                again = with_graphs.decode(*given, masks="all")
                np.testing.assert_array_equal(again.masks, first.masks)
            np.testing.assert_array_equal(first.masks, second.masks)
            np.testing.assert_array_equal(first.iou_predictions, second.iou_predictions)
        if not with_graphs.graphs_held:
            pytest.skip("TensorRT-RTX recorded by its own strategy: no graph of ours was compared")


def test_a_hundred_thousand_calls_without_memory_growth(runner: Any) -> None:
    import resource

    given = [clicks(seed, 1 + seed % 3, 1 + seed % 2) for seed in range(6)]
    runner.warm_up()
    for turn in range(2000):
        runner.decode(*given[turn % 6])
    device = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for turn in range(100_000):
        runner.decode(*given[turn % 6], masks="best" if turn % 7 else "all")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host < 20 * 1024, "kilobytes"
    if device is not None:
        assert device - torch.cuda.mem_get_info()[0] < 2 << 20


def test_eight_threads_get_their_own_results(runner: Any) -> None:
    given = [clicks(seed, 1 + seed % 4, 2) for seed in range(8)]
    images = [runner.add_image(embedding(seed)) for seed in range(8)]
    wanted = [runner.decode(*given[i], image=images[i], copy=True) for i in range(8)]
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for _ in range(200):
                found = runner.decode(*given[number], image=images[number], copy=True)
                if not np.array_equal(found.masks, wanted[number].masks):
                    wrong.append(number)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]


@needs_torch_cuda
def test_torch_tensors_go_in_and_come_out_without_the_host(runner: Any) -> None:
    given = clicks(1, 3, 2)
    wanted = runner.decode(*given, masks="all", copy=True)
    source = torch.from_numpy(embedding(0)).cuda() * 1.0  # work of torch's own stream, still under way
    runner.set_image(source)
    source.zero_()
    found = runner.decode(*given, masks="all", copy=True)
    np.testing.assert_array_equal(found.masks, wanted.masks)
    call = runner.submit(*given, masks="device")
    masks = torch.from_dlpack(call.device_arrays.masks)
    np.testing.assert_array_equal((masks + 0).cpu().numpy(), wanted.masks)
    call.result()
    for bad, words in (
        (source.half(), "float16 on the GPU, must be float32"),
        (source.permute(0, 1, 3, 2), "not contiguous"),
        (source[:, :, :32], "has shape"),
    ):
        with pytest.raises(TrtSamError, match=words):
            runner.set_image(bad)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs that torch can use")
def test_an_embedding_on_another_gpu_is_refused(runner: Any) -> None:
    with pytest.raises(TrtSamError, match="is on GPU 1, the runner on GPU 0"):
        runner.set_image(torch.zeros(1, 256, 64, 64, device="cuda:1"))


def test_out_of_memory_is_said_and_a_new_runner_works(fp16: Path) -> None:
    from trt_sam.cuda.device import Device

    with Device() as device:
        if device.driver.Device(0).get_attribute(device.driver.device_attribute.INTEGRATED):
            pytest.skip("the GPU has no memory of its own: the machine would run out of it, not the GPU")
        size = 1 << 30
        while size >= 1 << 20:
            try:
                device.buffer(size)
            except InferenceError:
                size //= 2
        with pytest.raises(TrtSamError, match=r"out of memory|could not load|cannot run"):
            open_runner(fp16)
    with open_runner(fp16) as runner:
        runner.set_image(embedding(0))
        assert np.isfinite(runner.decode(*clicks(1, 1, 1)).masks).all()


@needs_torch_cuda
def test_the_next_call_waits_for_torch_to_read_the_last_masks(runner: Any) -> None:
    first, second = clicks(1, 3, 2), clicks(2, 3, 2)
    wanted = runner.decode(*first, masks="all", copy=True).masks
    slots = 2 * len(runner._core.slots)
    side = torch.cuda.Stream()
    for _ in range(5):
        with torch.cuda.stream(side):
            masks = torch.from_dlpack(runner.decode(*first, masks="device").masks)
            torch.cuda._sleep(SLOW_CYCLES // 10)
            kept = masks.clone()  # long after the calls below were queued, were it not for the wait
        for _ in range(slots):
            runner.submit(*second, masks="device").result()
        side.synchronize()
        np.testing.assert_array_equal(kept.cpu().numpy(), wanted)


@needs_torch_cuda
def test_an_image_whose_producer_still_works_holds_up_neither_the_host_nor_other_calls(runner: Any) -> None:
    given, image = clicks(1, 1, 1), runner.image_id
    runner.warm_up()  # also the memory of images: allocating would have this thread wait for the sleep
    wanted = {seed: _masks_of(runner, seed, given) for seed in (0, 1)}
    host, late = torch.from_numpy(embedding(1)).pin_memory(), torch.empty(1, 256, 64, 64, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(4 * SLOW_CYCLES)
        late.copy_(host, non_blocking=True)
        coming = runner.submit_image(late)
        late.zero_()  # after the runner's copy, by its promise
    assert not coming.done()
    found = runner.decode(*given, image=image, copy=True).masks
    assert not coming.done()
    np.testing.assert_array_equal(found, wanted[0])
    np.testing.assert_array_equal(runner.decode(*given, image=coming.number, copy=True).masks, wanted[1])
    assert coming.done()


def _masks_of(runner: Any, seed: int, given: tuple[Any, Any]) -> Any:
    return runner.decode(*given, image=runner.add_image(embedding(seed)), copy=True).masks


@needs_torch_cuda
def test_a_recording_outlives_a_wait_for_the_whole_gpu_on_another_thread(fp16: Path) -> None:
    stop, refused = threading.Event(), list[Exception]()

    def synchronize() -> None:
        while not stop.wait(0.02):
            try:
                torch.cuda.synchronize()
            except Exception as error:  # what CUDA answers during a capture, see docs/production.md
                refused.append(error)

    thread = threading.Thread(target=synchronize)
    thread.start()
    try:
        for _ in range(3):
            with open_runner(fp16) as runner:
                runner.warm_up()
                runner.set_image(embedding(0))
                assert np.isfinite(runner.decode(*clicks(1, 1, 1)).masks).all()
    finally:
        stop.set()
        thread.join()


def test_a_warm_up_leaves_nothing_for_the_first_calls(fp16: Path) -> None:
    with open_runner(fp16) as runner:
        runner.set_image(embedding(0))
        runner.warm_up()
        held = runner.graphs_held
        for count, points in ((1, 1), (2, 2), (16, 7)):
            first, again = [], []
            for turn in range(21):
                start = time.perf_counter()
                runner.decode(*clicks(1, count, points), masks="all")
                (again if turn else first).append(time.perf_counter() - start)
            # A first use of TensorRT compiles or allocates for tens of milliseconds.
            assert first[0] < 20 * float(np.median(again)) + 1e-3
        assert runner.graphs_held == held


def test_a_forked_process_is_told_and_its_parent_goes_on(runner: Any) -> None:
    given = clicks(1, 1, 1)
    wanted = runner.decode(*given, copy=True).masks
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            runner.decode(*given)
        except InferenceError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert "start worker processes by spawn" in pipe.read()
    os.waitpid(child, 0)
    np.testing.assert_array_equal(runner.decode(*given).masks, wanted)


def test_a_pool_gives_each_call_its_image(fp16: Path) -> None:
    from trt_sam.runner.pool import RunnerPool

    given = [clicks(seed, 1 + seed % 3, 2) for seed in range(12)]
    with open_runner(fp16) as alone:
        wanted = []
        for seed, each in enumerate(given):
            alone.set_image(embedding(seed))
            wanted.append(alone.decode(*each, copy=True).masks)
    with RunnerPool.open(fp16, 3, max_waiting=2) as pool:
        found = pool.map((embedding(seed), *each) for seed, each in enumerate(given))
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(ours.masks, theirs)
