"""RunnerPool, two runners on one context, and TensorRT-RTX's ways, over the host-memory driver."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.ort_engine import CudaGraphStrategy, FakeRtx, KernelStrategy, OrtEngine
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import PLAIN, clicks, engine_of, expected, make, opened, tokens
from trt_sam.cuda.device import Device
from trt_sam.errors import ContractError, InferenceError, InputError
from trt_sam.runner.call import Decoded
from trt_sam.runner.decoder_runner import DecoderRunner
from trt_sam.runner.pool import RunnerPool

pytestmark = pytest.mark.hostcuda


def check(found: Decoded, seed: int, given: tuple[np.ndarray, np.ndarray]) -> None:
    wanted = expected(PLAIN, tokens(toy_embedding(seed), *given))
    np.testing.assert_array_equal(found.low_res_masks, wanted["low_res_masks"])
    np.testing.assert_array_equal(found.iou_predictions, wanted["iou_predictions"])


def test_a_pool_gives_each_call_its_image(host_cuda: HostCuda) -> None:
    calls = [(seed, clicks(seed, 1 + seed % 6, 2)) for seed in range(1, 13)]
    with RunnerPool(lambda number: make(host_cuda)[0], 3) as pool:
        results = pool.map(((toy_embedding(seed), *given) for seed, given in calls), masks="all")
        for found, (seed, given) in zip(results, calls, strict=True):
            check(found, seed, given)
        with pytest.raises(ContractError, match="there is no prompt"):
            pool.submit(toy_embedding(1)).result()
    pool.close()
    with pytest.raises(InferenceError, match="pool is closed"):
        pool.submit(toy_embedding(1), *clicks(1, 1, 1))
    with pytest.raises(InputError, match="0 runners"):
        RunnerPool(lambda number: make(host_cuda)[0], 0)
    with pytest.raises(InputError, match="max_waiting is -1, must be 0 or more, or None"):
        RunnerPool(lambda number: make(host_cuda)[0], 1, max_waiting=-1)


def test_a_pool_lets_so_many_calls_wait_and_no_more(host_cuda: HostCuda) -> None:
    given, started, go_on = clicks(1, 1, 1), threading.Event(), threading.Event()

    def open_one(number: int) -> DecoderRunner:
        started.set()
        assert go_on.wait(20)
        return make(host_cuda)[0]

    with RunnerPool(open_one, 1, max_waiting=2) as pool:
        futures = [pool.submit(toy_embedding(seed), *given, masks="all") for seed in (1, 2, 3)]
        assert started.wait(20)
        for timeout in (0, 0.05):
            with pytest.raises(InferenceError, match="3 calls are under way or waiting"):
                pool.submit(toy_embedding(4), *given, timeout=timeout)
        # A call that is taken back makes room.
        assert futures.pop().cancel()
        futures.append(pool.submit(toy_embedding(3), *given, timeout=0, masks="all"))
        go_on.set()
        for seed, future in zip((1, 2, 3), futures, strict=True):
            check(future.result(20), seed, given)
        # All room is there again, and `map` takes no more calls than that ahead of the results.
        taken: list[int] = []

        def calls() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for seed in range(1, 9):
                taken.append(seed)
                yield toy_embedding(seed), *given

        results = pool.map(calls(), masks="all")
        check(next(results), 1, given)
        assert len(taken) == 4
        for seed, found in enumerate(results, 2):
            check(found, seed, given)
        assert len(taken) == 8


def test_a_pool_replaces_a_runner_that_was_lost(host_cuda: HostCuda) -> None:
    made: list[int] = []

    def open_one(number: int) -> DecoderRunner:
        made.append(number)
        return make(host_cuda)[0]

    given = clicks(1, 2, 2)
    with RunnerPool(open_one, 1) as pool:
        check(pool.submit(toy_embedding(1), *given, masks="all").result(), 1, given)
        host_cuda.fail_next_work()
        with pytest.raises(InferenceError, match="runner is closed, open a new one"):
            pool.submit(toy_embedding(1), *given).result()
        host_cuda.reset()  # as a new process would find the GPU
        check(pool.submit(toy_embedding(2), *given, masks="all").result(), 2, given)
        assert made == [0, 0]


def test_the_calls_of_a_gpu_share_one_engine(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    opened_on: list[tuple[int, int]] = []
    engines: list[OrtEngine] = []

    def open_one(cls: type, folder: str, *, device: int, **options: int) -> DecoderRunner:
        opened_on.append((device, options["in_flight"]))
        runner, fake = make(host_cuda, **options)
        engines.append(fake)
        return runner

    monkeypatch.setattr(DecoderRunner, "open", classmethod(open_one))
    calls = [(seed, clicks(seed, 2, 2)) for seed in range(1, 13)]
    with RunnerPool.open("set", 4) as pool:
        results = pool.map(((toy_embedding(seed), *given) for seed, given in calls), masks="all")
        for found, (seed, given) in zip(results, calls, strict=True):
            check(found, seed, given)
        assert opened_on == [(0, 4)]
        host_cuda.fail_next_work()
        with pytest.raises(InferenceError, match="runner is closed"):
            pool.submit(toy_embedding(1), *clicks(1, 2, 2)).result()
        host_cuda.reset()  # as a new process would find the GPU
        futures = [pool.submit(toy_embedding(seed), *given, masks="all") for seed, given in calls]
        for future, (seed, given) in zip(futures, calls, strict=True):
            check(future.result(), seed, given)
        assert opened_on == [(0, 4)] * 2, "one new runner for all threads"
    assert all(len(fake.contexts) <= 4 for fake in engines)
    opened_on.clear()
    with RunnerPool.open("set", 3, devices=(0, 1)) as pool:
        for future in [pool.submit(toy_embedding(seed), *given) for seed, given in calls]:
            future.result()
    assert sorted(opened_on) == [(0, 2), (1, 2)]
    with pytest.raises(InputError, match="1 threads leave some of 2 runners"):
        RunnerPool(lambda number: make(host_cuda)[0], 2, threads=1)


def test_two_runners_share_a_context_and_closing_one_leaves_the_other(host_cuda: HostCuda) -> None:
    given = clicks(1, 2, 2)
    with opened(host_cuda) as (first, _):
        second, _ = make(host_cuda)
        first.set_image(toy_embedding(1))
        second.set_image(toy_embedding(2))
        late = second.submit(*given, masks="all")
        check(first.decode(*given, masks="all"), 1, given)
        check(late.result(copy=True), 2, given)
        second.close()
        check(first.decode(*given, masks="all"), 1, given)


def rtx(cuda: HostCuda, cache: Path | None = None, *, capturable: bool = True) -> tuple[DecoderRunner, OrtEngine]:
    engine, fake = engine_of(cuda, PLAIN, FakeRtx, runtime_cache=cache)
    fake.capturable = capturable
    return DecoderRunner(engine, Device()), fake


@pytest.mark.parametrize("capturable", [True, False])
def test_rtx_records_by_our_graph_or_by_its_own_never_both(host_cuda: HostCuda, capturable: bool) -> None:
    given = clicks(1, 2, 2)
    runner, fake = rtx(host_cuda, capturable=capturable)
    with runner:
        runner.set_image(toy_embedding(3))
        for _ in range(3):
            check(runner.decode(*given, masks="all"), 3, given)
        used = [context for context in fake.contexts if context.runs]
        assert len(used) == 1
        assert used[0].config is not None
        assert used[0].config.dynamic_shapes_kernel_specialization_strategy == KernelStrategy.EAGER
        strategy = used[0].config.cuda_graph_strategy
        wanted = CudaGraphStrategy.DISABLED if capturable else CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        assert (strategy, runner.graphs_held) == (wanted, 1 if capturable else 0)


def test_rtx_compiles_a_kernel_once_also_where_nothing_is_kept(host_cuda: HostCuda) -> None:
    runner, fake = rtx(host_cuda)
    with runner:
        runner.warm_up([(2, 3), (4, 3)])
        (cache,) = {id(context.config.cache): context.config.cache for context in fake.contexts if context.config}.values()
        assert cache is not None
        assert len(cache.compiled) == 2


def test_rtx_keeps_its_runtime_cache_beside_the_engine(
    host_cuda: HostCuda, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, given = tmp_path / "decoder.engine.rtx-cache", clicks(1, 2, 2)
    runner, _ = rtx(host_cuda, cache)
    with runner:
        runner.warm_up([(2, 3)])
        assert cache.read_bytes().count(b"kernel of") == 1
        runner.set_image(toy_embedding(3))
        check(runner.decode(*clicks(1, 4, 2), masks="all"), 3, clicks(1, 4, 2))
    assert cache.read_bytes().count(b"kernel of") == 2
    written = cache.stat().st_mtime_ns
    runner, fake = rtx(host_cuda, cache)
    with runner:
        runner.warm_up([(2, 3), (4, 3)])
        assert len(fake.contexts[0].config.cache.compiled) == 2  # type: ignore[union-attr]
    assert cache.stat().st_mtime_ns == written  # nothing new
    cache.write_bytes(b"cache of another GPU\n")
    runner, _ = rtx(host_cuda, cache)
    with runner:
        runner.set_image(toy_embedding(3))
        check(runner.decode(*given, masks="all"), 3, given)
    assert cache.read_bytes().startswith(b"cache of this GPU")
    # As many bytes, but others.
    runner, fake = rtx(host_cuda, cache)
    with runner:
        runner.warm_up([(2, 3)])
        kernels = fake.contexts[0].config.cache.compiled  # type: ignore[union-attr]
        kernels[:] = [kernel[::-1] for kernel in kernels]
    assert b"fo lenrek" in cache.read_bytes()
    # A folder that cannot be written costs the next start time, not this one its masks.
    runner, _ = rtx(host_cuda, tmp_path / "decoder.engine.rtx-cache" / "below")
    with runner:
        runner.warm_up([(1, 1)])
    assert "runtime cache is not kept" in caplog.text
