"""What errors and results that somebody keeps must not keep: slots, contexts, engines."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.fixtures import toy_runner
from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import PLAIN, check_decoded, clicks, expected, make, opened, tokens
from trt_sam.errors import ContractError, InferenceError, InputError
from trt_sam.runner.decoder_runner import DecoderRunner
from trt_sam.runtime.predictor import Predictor

pytestmark = pytest.mark.hostcuda


def test_an_error_of_decode_many_keeps_no_slot(host_cuda: HostCuda) -> None:
    points, labels = clicks(1, 10, 2)
    labels[9] = 7
    with opened(host_cuda, in_flight=3) as (runner, _):
        runner.set_image(toy_embedding(1))
        with pytest.raises(ContractError, match="labels hold 7") as kept:
            runner.decode_many(points, labels)
        calls = [runner.submit(*clicks(1, 1, 1), timeout=0) for _ in range(3)]
        assert kept.value
        for call in calls:
            call.drop()
    del kept, call, calls
    gc.collect()


def test_no_prompts_are_told_by_decode_many_as_by_decode(host_cuda: HostCuda) -> None:
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        for call in (runner.decode, runner.decode_many):
            for given in ((), (np.zeros((0, 2, 2)), np.zeros((0, 2))), (None, None, np.zeros((0, 4)))):
                with pytest.raises(ContractError, match="there is no prompt"):
                    call(*given)
    gc.collect()


def test_a_copy_after_views_is_refused(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda, in_flight=2) as (runner, _):
        runner.set_image(toy_embedding(1))
        views, copies = runner.submit(*given), runner.submit(*given)
        views.result()
        with pytest.raises(ContractError, match="taken as views before"):
            views.result(copy=True)
        kept = copies.result(copy=True)
        assert copies.result(copy=True) is copies.result() is kept
        runner.decode(*clicks(2, 1, 1))
        check_decoded(kept, tokens(toy_embedding(1), *given))
    del views, copies
    gc.collect()


def held_by(runner: DecoderRunner) -> Callable[[], list[object]]:
    """What the runner's engine and an execution context of it hold of TensorRT."""
    runner.decode(*clicks(1, 1, 1))
    engine, (program,) = runner._core.engines[0], runner._core.slots[0]._programs.values()
    assert engine._engine is not None
    return lambda: [engine._engine, program.context._context]


def test_an_error_that_is_kept_keeps_no_engine(host_cuda: HostCuda) -> None:
    runner, _ = make(host_cuda)
    runner.set_image(toy_embedding(1))
    holds = held_by(runner)
    with pytest.raises(ContractError) as kept:
        runner.decode([[1, np.nan]], [1])
    runner.close()
    assert kept.value.__traceback__ is not None
    assert holds() == [None, None]
    del kept, holds
    gc.collect()


def test_plans_that_were_forgotten_are_closed_too(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_sam.runner.prompts._MOST_PLANS", 2)
    runner, _ = make(host_cuda)
    runner.set_image(toy_embedding(1))
    kept = []
    for count in (1, 2, 3, 4):
        given = clicks(count, count, 1)
        kept.append(runner.submit(*given))
        check_decoded(kept[-1].result(), tokens(toy_embedding(1), *given))
        assert len(runner._core.calls._plans[runner._core.slots[0]]) <= 2
        assert len(runner._core.calls._known) <= 2
    contexts = [call._plan.program.context for call in kept]
    runner.close()
    assert [context._context for context in contexts] == [None] * 4
    del kept, contexts
    gc.collect()


def test_close_closes_whatever_the_runtime_cache_does(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _ = make(host_cuda)

    def broken(engine: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr("trt_sam.runner.engine.Engine.save_runtime_cache", broken)
    with pytest.raises(TypeError, match="a bug"):
        runner.close()
    assert runner.closed


def test_buckets_that_are_none_are_refused(host_cuda: HostCuda) -> None:
    bad: Any
    for bad in (3, "ab", [0], [5], [1.5]):
        with pytest.raises(ContractError, match=r"buckets of num_prompts are .*, must be a list of numbers from 1 to 4"):
            make(host_cuda, prompt_buckets=bad)
    with opened(host_cuda, prompt_buckets=[3], point_buckets=(2,)) as (runner, _):
        assert {bucket.num_prompts for _, buckets in runner._core.calls._engines for bucket in buckets.all} == {2, 3, 4}


def short_or_many(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> DecoderRunner:
    """A runner that takes many short prompts, or two long ones."""
    profiles = ({"num_prompts": (1, 8), "num_points": (1, 2)}, {"num_prompts": (1, 2), "num_points": (1, 6)})
    monkeypatch.setattr(toy_runner, "PROFILES", profiles)
    return make(host_cuda, in_flight=2)[0]


def test_calls_are_cut_up_as_the_profiles_of_their_length_ask(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with short_or_many(host_cuda, monkeypatch) as runner:
        runner.set_image(toy_embedding(1))
        for given in (clicks(1, 5, 5), clicks(2, 20, 1)):
            found = runner.decode_many(*given, masks="all")
            wanted = expected(PLAIN, tokens(toy_embedding(1), *given))
            np.testing.assert_array_equal(found.low_res_masks, wanted["low_res_masks"])
        with pytest.raises(ContractError, match="num_points = 10"):
            runner.decode_many(*clicks(1, 3, 9))


def test_a_predictor_cuts_up_its_batches_alike(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with short_or_many(host_cuda, monkeypatch) as runner:
        predictor = Predictor(runner)
        predictor.set_image_embedding(toy_embedding(1), (1024, 1024))
        points, labels = clicks(1, 5, 4)
        _, _, low_res = predictor.predict_batch(list(points), list(labels))
        wanted = expected(PLAIN, tokens(toy_embedding(1), points, labels))["low_res_masks"]
        np.testing.assert_array_equal(low_res, wanted[:, 1:])


def test_a_predictors_image_that_went_is_brought_back(host_cuda: HostCuda) -> None:
    with make(host_cuda, image_bytes=4 << 20)[0] as runner:
        predictor = Predictor(runner)
        predictor.set_image_embedding(toy_embedding(1), (1024, 1024))
        points, labels = clicks(1, 1, 1)
        before = predictor.predict(points[0], labels[0])[2]
        runner.add_image(toy_embedding(7))
        np.testing.assert_array_equal(predictor.predict(points[0], labels[0])[2], before)


def test_a_predictor_refuses_an_embedding_on_the_gpu(host_cuda: HostCuda) -> None:
    class OnGpu:
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {"shape": (1, 256, 64, 64), "typestr": "<f4", "data": (4096, False), "version": 3}

    class Torch(OnGpu):
        def __array__(self, *_: object, **__: object) -> None:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    with make(host_cuda)[0] as runner:
        predictor = Predictor(runner)
        for source in (OnGpu(), Torch()):
            with pytest.raises(InputError, match="image_embeddings"):
                predictor.set_image_embedding(source, (1024, 1024))  # type: ignore[arg-type]
            assert not predictor.is_image_set


def test_times_and_sizes_that_cannot_be_are_refused_or_cut(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        runner.decode(*given, timeout=float("inf"))
        asked: dict[str, Any]
        for asked, words in (({"image_size": 3}, "image_size is 3, must be"), ({"masks": ["best"]}, "masks is")):
            with pytest.raises(ContractError, match=words):
                runner.decode(*given, **asked)
        for size in ((0, 1), (-1, 1), (1, 0)):
            with pytest.raises(ContractError, match=r"must be \(num_prompts, num_tokens\)"):
                runner.warm_up([size])
        call = runner.submit(*given)
        with pytest.raises(InferenceError, match="all 1 slots are in use"):
            runner.submit(*given, timeout=0)
        call.drop()
        runner.decode(*given, timeout=0)
