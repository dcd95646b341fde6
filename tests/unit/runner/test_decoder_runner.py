"""DecoderRunner over the host-memory driver and ONNX Runtime: results, order, waits, failures, leaks."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from tests.fixtures.hostcuda import OUT_OF_MEMORY, UNKNOWN, HostCuda
from tests.fixtures.ort_engine import FakeTrt, OrtEngine
from tests.fixtures.toy_decoder import specs, toy_decoder, toy_embedding, toy_feed
from tests.fixtures.toy_runner import GRAPHS, PLAIN, PROFILES, check, make, opened
from trt_sam.errors import ContractError, InferenceError, ManifestError
from trt_sam.runner.engine import Engine

pytestmark = pytest.mark.hostcuda


@pytest.mark.parametrize("name", GRAPHS)
def test_results_are_those_of_the_graph(host_cuda: HostCuda, name: str) -> None:
    options = GRAPHS[name]
    with opened(host_cuda, options) as (runner, _):
        for seed, (prompts, points) in enumerate([(1, 1), (4, 6), (2, 3), (1, 1), (3, 2), (4, 6)]):
            feed = toy_feed(seed, prompts, points, options)
            found = runner.run(feed)
            check(found, options, feed)
            assert all(array.base is None for array in found.values())


def test_the_image_that_is_set_counts_but_for_a_feed_with_its_own(host_cuda: HostCuda) -> None:
    with opened(host_cuda) as (runner, _):
        prompt = toy_feed(1, 2, 2, PLAIN)
        del prompt["image_embeddings"]
        assert runner.image_id == 0
        with pytest.raises(ContractError, match="no image"):
            runner.run(prompt)
        runner.set_image(toy_embedding(5))
        assert runner.image_id == 1
        for other in (7, 8):
            check(runner.run(prompt | {"image_embeddings": toy_embedding(other)}), PLAIN, prompt | image(other))
            check(runner.run(prompt), PLAIN, prompt | image(5))
        runner.set_image(toy_embedding(6))
        assert runner.image_id == 2
        check(runner.run(prompt), PLAIN, prompt | image(6))


def image(seed: int) -> dict[str, np.ndarray]:
    return {"image_embeddings": toy_embedding(seed)}


def test_metas_feed_is_taken(host_cuda: HostCuda) -> None:
    feed = toy_feed(2, 1, 2, PLAIN)
    meta = {"mask_input": np.zeros((1, 1, 256, 256), np.float32), "has_mask_input": np.zeros(1, np.float32)}
    with opened(host_cuda) as (runner, _):
        check(runner.run(feed | meta | {"orig_im_size": np.array([480, 640], np.float32)}), PLAIN, feed)


def test_views_hold_until_the_next_run_and_stay_readable_after_close(host_cuda: HostCuda) -> None:
    first, second = toy_feed(1, 2, 2, PLAIN), toy_feed(2, 2, 2, PLAIN)
    with opened(host_cuda, PLAIN) as (runner, _):
        views = runner.run(first, copy=False)
        check(views, PLAIN, first)
        runner.run(second)
        check(views, PLAIN, second)
    assert host_cuda.count("host_bytes") > 0
    assert host_cuda.count("device_bytes") == 0
    check(views, PLAIN, second)
    views.clear()
    assert not host_cuda.held


def test_views_have_the_graphs_own_types(host_cuda: HostCuda) -> None:
    with opened(host_cuda, GRAPHS["fp16"]) as (runner, _):
        views = runner.run(toy_feed(1, 1, 1, PLAIN), copy=False)
        assert {name: str(view.dtype) for name, view in views.items()} == {s.name: s.dtype for s in runner.outputs}
        views.clear()


def test_nothing_is_allocated_after_warm_up(host_cuda: HostCuda) -> None:
    with opened(host_cuda, image_bytes=8 << 20) as (runner, _):
        runner.warm_up()
        before = (host_cuda.held, host_cuda.count("cuMemAlloc"), host_cuda.count("cuMemHostAlloc"))
        for prompts in (1, 2, 3, 4):
            runner.run(toy_feed(prompts, prompts, 1, PLAIN))
            runner.submit_image(toy_embedding(prompts)).result()
        assert (host_cuda.held, host_cuda.count("cuMemAlloc"), host_cuda.count("cuMemHostAlloc")) == before
        assert host_cuda.count("pageable_copies") == 0


def test_a_call_is_one_launch_of_its_copies_and_the_inference_and_one_wait(host_cuda: HostCuda) -> None:
    prompt = toy_feed(1, 1, 2, PLAIN)
    del prompt["image_embeddings"]
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        runner.run(prompt)
        start = len(host_cuda.log)
        runner.run(prompt)
        log = [line.split()[:2] for line in host_cuda.log[start:] if not line.startswith("cuCtx")]
    kinds = [line[1] if line[0] == "run" else line[0] for line in log]
    assert kinds == ["cuGraphLaunch", "cuStreamSynchronize", "HtoD", "engine", "DtoH"]


def test_the_smallest_fitting_profile_runs(host_cuda: HostCuda) -> None:
    with opened(host_cuda) as (runner, fake):
        runner.run(toy_feed(1, 2, 3, PLAIN))
        runner.run(toy_feed(1, 2, 4, PLAIN))
        runner.run(toy_feed(1, 4, 1, PLAIN))
        # Each context ran once before its graph was recorded; the second call and the third have a bucket each.
        assert [(context.profile, context.runs) for context in fake.contexts] == [(0, 2), (1, 2), (1, 2)]
        assert runner.graphs_held == 3
        assert runner.limits == {"num_prompts": (1, 4), "num_points": (1, 6)}


def test_what_does_not_fit_is_said_and_nothing_is_queued(host_cuda: HostCuda) -> None:
    options = GRAPHS["full_resolution"]
    with opened(host_cuda, options) as (runner, _):
        for feed, words in (
            (toy_feed(1, 5, 1, options), r"num_prompts = 5, this graph takes 1 to 4; split"),
            (toy_feed(1, 1, 1, options) | {"orig_im_size": np.array([65, 30])}, r"no profile .* height = 65.* height 1 to 64"),
            (toy_feed(1, 1, 1, options) | {"image_embeddings": np.full((1, 256, 64, 64), np.nan, np.float32)}, "NaN"),
            (toy_feed(1, 1, 1, options) | {"surprise": np.zeros(1)}, "unknown input 'surprise'"),
        ):
            with pytest.raises(ContractError, match=words):
                runner.run(feed)
        with pytest.raises(ContractError, match="image_embeddings is float64"):
            runner.set_image(np.zeros((1, 256, 64, 64)))
        assert host_cuda.count("cuMemcpyHtoDAsync") == 0


def test_close_frees_all_may_be_repeated_and_ends_the_runner(host_cuda: HostCuda) -> None:
    runner, _ = make(host_cuda)
    runner.close()
    runner.close()
    assert not host_cuda.held
    for call in (lambda: runner.run(toy_feed(1, 1, 1, PLAIN)), lambda: runner.set_image(toy_embedding(1))):
        with pytest.raises(InferenceError, match="closed"):
            call()


def test_threads_may_share_a_runner(host_cuda: HostCuda) -> None:
    feeds = [toy_feed(seed, 1 + seed % 4, 1 + seed % 6, PLAIN) for seed in range(4)]
    results: dict[int, list[dict[str, np.ndarray]]] = {seed: [] for seed in range(4)}

    def work(seed: int) -> None:
        results[seed] = [runner.run(feeds[seed]) for _ in range(5)]

    with opened(host_cuda) as (runner, _):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed, feed in enumerate(feeds):
        assert len(results[seed]) == 5
        for result in results[seed]:
            check(result, PLAIN, feed)


@pytest.mark.parametrize("method", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_a_refusal_of_tensorrt_is_an_error_and_the_runner_lives_on(host_cuda: HostCuda, method: str) -> None:
    feed = toy_feed(1, 2, 2, PLAIN)
    with opened(host_cuda) as (runner, fake):
        fake.refuse = method
        with pytest.raises(InferenceError, match="TensorRT"):
            runner.run(feed)
        assert host_cuda.count("queued") == 0
        fake.refuse = None
        other = toy_feed(3, 2, 2, PLAIN)
        check(runner.run(other), PLAIN, other)


@pytest.mark.parametrize("method", ["create_execution_context", "set_optimization_profile_async"])
def test_a_refused_context_is_an_error_and_the_runner_lives_on(host_cuda: HostCuda, method: str) -> None:
    feed = toy_feed(1, 2, 2, PLAIN)
    with opened(host_cuda) as (runner, fake):
        fake.refuse = method
        for call in (lambda: runner.run(feed), runner.warm_up):
            with pytest.raises(InferenceError, match="TensorRT"):
                call()
        fake.refuse = None
        check(runner.run(feed), PLAIN, feed)


def test_an_engine_of_other_tensors_is_refused(host_cuda: HostCuda) -> None:
    inputs, outputs = specs(PLAIN)
    fake = OrtEngine(host_cuda, toy_decoder(PLAIN), inputs, outputs, PROFILES)
    with pytest.raises(ManifestError, match=r"float32.*its manifest says.*float16"):
        Engine(FakeTrt, fake, inputs, specs(GRAPHS["fp16"])[1], PROFILES)
    with pytest.raises(ManifestError, match="2 profiles, its manifest says 1"):
        Engine(FakeTrt, fake, inputs, outputs, PROFILES[:1])


def test_a_device_error_closes_the_runner_and_a_new_one_works(host_cuda: HostCuda) -> None:
    feed = toy_feed(1, 2, 2, PLAIN)
    runner, _ = make(host_cuda)
    host_cuda.fail_next_work()
    with pytest.raises(InferenceError, match=r"illegal memory access.*the runner is closed, open a new one"):
        runner.run(feed)
    with pytest.raises(InferenceError, match="the runner is closed"):
        runner.run(feed)
    assert not host_cuda.held
    host_cuda.reset()
    with opened(host_cuda) as (again, _):
        check(again.run(feed), PLAIN, feed)


def test_out_of_memory_at_open_is_named_and_leaves_nothing(host_cuda: HostCuda) -> None:
    for name in ("cuMemAlloc", "cuMemHostAlloc"):
        for count in range(1, 5 if name == "cuMemAlloc" else 4):
            host_cuda.reset()
            host_cuda.fail(name, count, OUT_OF_MEMORY, times=-1)
            with pytest.raises(InferenceError, match="out of memory"):
                make(host_cuda)
            assert not host_cuda.held


# Errors where something is freed are not raised (see trt_sam.cuda.device); nor is the last switch of contexts, at close.
_SILENT = {
    "cuEventDestroy",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuMemFree",
    "cuMemFreeHost",
    "cuStreamDestroy",
    "cuCtxPushCurrent",
    "cuCtxPopCurrent",
    "cuStreamSynchronize",
}


def _life(cuda: HostCuda) -> None:
    feed = toy_feed(1, 2, 2, PLAIN)
    with opened(cuda) as (runner, _):
        runner.set_image(toy_embedding(3))
        runner.run(feed)
        del feed["image_embeddings"]
        check(runner.run(feed), PLAIN, feed | image(3))


def test_each_driver_call_may_fail_once(host_cuda: HostCuda) -> None:
    _life(host_cuda)
    host_cuda.reset()  # what a process asks once only, the primary context, is no part of a runner's life
    _life(host_cuda)
    calls = {name: host_cuda.count(name) for name in host_cuda.called if name != "cuGetErrorString"}
    assert {"cuMemAlloc", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamSynchronize", "hostcuda_enqueue"} <= set(calls)
    raised = dict.fromkeys(calls, 0)
    for name, number in calls.items():
        for count in range(1, number + 1):
            host_cuda.reset()
            host_cuda.fail(name, count, UNKNOWN)
            try:
                _life(host_cuda)
            except InferenceError:
                raised[name] += 1
            if host_cuda.held:
                gc.collect()
            assert not host_cuda.held, (name, count)
            assert not host_cuda.violations, (name, count, host_cuda.violations)
    for name, number in calls.items():
        if name not in _SILENT:
            assert raised[name] == number, name
    # Close waits for the slot and for the images, and tells no error.
    assert raised["cuStreamSynchronize"] == calls["cuStreamSynchronize"] - 2
    assert raised["cuCtxPushCurrent"] > 5
