"""Photos on the GPU, over the host-memory driver: the encoder's stream and its copies, who waits for it, and what may fail."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.fixtures.hostcuda import UNKNOWN, HostCuda
from tests.fixtures.ort_engine import FakeRtx, OrtEngine, runs_of
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_encoder import toy_photo
from tests.fixtures.toy_runner import PLAIN, check_decoded, clicks, encoder_of, engine_of, opened, tokens
from trt_sam.contract import EMBEDDING_BYTES, EMBEDDING_SHAPE
from trt_sam.cuda.device import Device
from trt_sam.errors import ContractError, GraphError, InferenceError, InputError, ManifestError
from trt_sam.runner.decoder_runner import DecoderRunner
from trt_sam.runtime.predictor import Predictor

pytestmark = pytest.mark.hostcuda

GIVEN = clicks(1, 2, 2)


@pytest.fixture
def photos(host_cuda: HostCuda) -> Iterator[tuple[DecoderRunner, OrtEngine]]:
    encoder, fake = encoder_of(host_cuda)
    with opened(host_cuda, encoder=encoder, in_flight=2, image_bytes=2 * EMBEDDING_BYTES) as (runner, _):
        yield runner, fake


def check(runner: DecoderRunner, seed: int, **asked: Any) -> None:
    check_decoded(runner.decode(*GIVEN, **asked), tokens(toy_embedding(seed), *GIVEN))


def test_photo_in_masks_out_by_number_and_least_recently_used(photos: tuple[DecoderRunner, OrtEngine]) -> None:
    runner, _ = photos
    assert runner.takes_photos
    runner.set_image(toy_photo(5))
    check(runner, 5)
    second = runner.add_image(toy_photo(6, 64, 30))
    check(runner, 6, image=second)
    check(runner, 5)
    third = runner.add_image(toy_embedding(7))  # an embedding as ever; number 2 was used longest ago
    check(runner, 7, image=third)
    check(runner, 5)
    with pytest.raises(ContractError, match=r"image 2 is not held \(held: 3, 1\)"):
        runner.decode(*GIVEN, image=second)
    runner.use_image(third)
    runner.drop_image(1)
    check(runner, 7)
    assert runner.counters.images == 3


def test_nobody_waits_for_a_photo_on_the_host(photos: tuple[DecoderRunner, OrtEngine], host_cuda: HostCuda) -> None:
    runner, fake = photos
    runner.warm_up([(2, 3)])
    runner.set_image(toy_photo(4))
    check(runner, 4)
    names = ("cuMemcpyHtoDAsync", "cuGraphLaunch", "cuMemcpyDtoDAsync", "cuStreamSynchronize", "cuMemAlloc", "cuMemHostAlloc")
    before, counts, lines = runs_of(fake), {name: host_cuda.count(name) for name in names}, len(host_cuda.log)
    submitted = runner.submit_image(toy_photo(9))
    assert not submitted.done()
    call = runner.submit(*GIVEN, image=submitted.number)
    assert runs_of(fake) == before
    assert host_cuda.count("cuStreamSynchronize") == counts["cuStreamSynchronize"]
    check_decoded(call.result(), tokens(toy_embedding(9), *GIVEN))
    assert submitted.result() == submitted.number
    assert submitted.done()
    # To the GPU, one launch of the encoder, and to the memory of the image: the embedding never sees the host.
    assert [host_cuda.count(name) - counts[name] for name in names] == [1, 2, 2, 2, 0, 0]
    ran = [line.split()[1] for line in host_cuda.log[lines:] if line.startswith("run ")]
    assert [what for what in ran if what not in ("event", "wait")][:3] == ["HtoD", "engine", "DtoD"]


def test_clicks_are_urgent_and_photos_are_not(photos: tuple[DecoderRunner, OrtEngine], host_cuda: HostCuda) -> None:
    runner, _ = photos
    made = [line for line in host_cuda.log if line.startswith("cuStreamCreateWithPriority")]
    assert [line.rpartition(" ")[2].rstrip(")") for line in made] == ["-5", "-5", "-5", "0"]  # two slots, uploads, encoder
    encoder = runner._core.encoder
    assert encoder is not None
    assert encoder.stream.handle not in {slot.stream.handle for slot in runner._core.slots}


def test_a_click_on_an_image_that_is_there_does_not_wait_for_a_photo(photos: tuple[DecoderRunner, OrtEngine]) -> None:
    runner, fake = photos
    runner.warm_up([(2, 3)])
    runner.set_image(toy_photo(3))
    check(runner, 3)
    before = runs_of(fake)
    submitted = runner.submit_image(toy_photo(8))
    check(runner, 3)
    assert runs_of(fake) == before
    assert submitted.result() == 2
    assert runs_of(fake) == before + 1


def test_only_the_rows_of_the_photo_are_copied(photos: tuple[DecoderRunner, OrtEngine], host_cuda: HostCuda) -> None:
    runner, _ = photos
    runner.warm_up([(2, 3)])
    lines = len(host_cuda.log)
    runner.submit_image(toy_photo(8, 10, 1024)).result()
    copies = [line.split() for line in host_cuda.log[lines:] if line.startswith("run HtoD")]
    assert [int(copy[-1]) for copy in copies] == [256 + 10 * 1024 * 3]


def test_an_embedding_for_the_host(photos: tuple[DecoderRunner, OrtEngine], host_cuda: HostCuda) -> None:
    runner, fake = photos
    found = runner.embed(toy_photo(7))
    np.testing.assert_array_equal(found, toy_embedding(7))
    runner.embed(toy_photo(8))
    np.testing.assert_array_equal(found, toy_embedding(7))
    assert runner.images_held == 0
    predictor = Predictor(runner)
    predictor.set_image(toy_photo(7))
    masks, scores, _ = predictor.predict(*(each[0] for each in clicks(2, 1, 1)))
    assert np.isfinite(scores).all()
    assert masks.shape[1:] == (48, 64)
    fake.session = NanSession(fake.session)
    with pytest.raises(InferenceError, match="embedding with NaN or infinity; build it with --precision fp32"):
        runner.embed(toy_photo(7))


class NanSession:
    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        return [np.full_like(each, np.nan) for each in self._session.run(names, feed)]


def test_what_is_no_photo_is_told(photos: tuple[DecoderRunner, OrtEngine], host_cuda: HostCuda) -> None:
    runner, _ = photos
    with pytest.raises(InputError, match=r"uint8 \[4, 4, 4\], must be uint8 \[height, width, 3\]"):
        runner.set_image(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ContractError, match="image_embeddings"):
        runner.set_image(np.zeros((4, 4, 3), np.float32))

    address = runner._core.device.buffer(EMBEDDING_BYTES).address
    told = {"shape": (48, 64, 3), "typestr": "|u1", "data": (address, False), "version": 3}
    with pytest.raises(ContractError, match=r"a photo is scaled on the host: give it as numpy, torch: \.cpu\(\)\.numpy\(\)"):
        runner.set_image(SimpleNamespace(__cuda_array_interface__=told))
    with opened(host_cuda) as (plain, _):
        assert not plain.takes_photos
        with pytest.raises(GraphError, match="open a set with one: trt-sam build --checkpoint"):
            plain.set_image(toy_photo(1))


def test_an_encoder_of_another_kind_is_refused(host_cuda: HostCuda) -> None:
    decoder, _ = engine_of(host_cuda, PLAIN)
    wrong, _ = engine_of(host_cuda, PLAIN)
    with pytest.raises(ManifestError, match=r"the image encoder's engine has image_embeddings: .*build the set again"):
        DecoderRunner(decoder, Device(), encoder=wrong)


@pytest.mark.parametrize("trt", [None, FakeRtx])
def test_engines_that_are_not_recorded_run_as_well(host_cuda: HostCuda, trt: type | None) -> None:
    encoder, fake = encoder_of(host_cuda, *([trt] if trt else []))
    fake.capturable = trt is None
    with opened(host_cuda, encoder=encoder, graphs=trt is not None) as (runner, _):
        for seed in (3, 4):
            runner.set_image(toy_photo(seed))
            check(runner, seed)


def life(cuda: HostCuda) -> None:
    """One use of all that photos ask of the driver; at its end nothing is queued."""
    encoder, _ = encoder_of(cuda)
    with opened(cuda, encoder=encoder, image_bytes=EMBEDDING_BYTES) as (runner, _):
        runner.warm_up([(2, 3)])
        for seed in (3, 4, 5):
            runner.set_image(toy_photo(seed))
        check(runner, 5)
        submitted = runner.submit_image(toy_photo(6))
        submitted.done()
        submitted.result()
        check(runner, 6, image=submitted.number)
        np.testing.assert_array_equal(runner.embed(toy_photo(7)), toy_embedding(7))


def test_each_driver_call_may_fail_once(host_cuda: HostCuda) -> None:
    life(host_cuda)
    gc.collect()
    host_cuda.reset()
    life(host_cuda)
    calls = {name: host_cuda.count(name) for name in host_cuda.called if name != "cuGetErrorString"}
    silent = {"cuEventDestroy", "cuGraphDestroy", "cuGraphExecDestroy", "cuMemFree", "cuMemFreeHost", "cuStreamDestroy"}
    at_close = {"cuCtxPushCurrent", "cuCtxPopCurrent", "cuStreamSynchronize"}
    for name, number in calls.items():
        raised = 0
        for count in range(1, number + 1):
            host_cuda.reset()
            host_cuda.fail(name, count, UNKNOWN)
            try:
                life(host_cuda)
            except InferenceError:
                raised += 1
            if host_cuda.held:
                gc.collect()
            assert not host_cuda.held, (name, count, host_cuda.held)
            assert not host_cuda.violations, (name, count, host_cuda.violations)
        assert raised == number or name in silent | at_close, name


def test_after_a_failure_the_next_photo_is_right(photos: tuple[DecoderRunner, OrtEngine], host_cuda: HostCuda) -> None:
    runner, fake = photos
    runner.set_image(toy_photo(2))
    for name in ("cuMemcpyHtoDAsync", "cuGraphLaunch", "cuMemcpyDtoDAsync", "cuEventRecord"):
        host_cuda.fail(name)
        with pytest.raises(InferenceError, match="CUDA failed"):
            runner.add_image(toy_photo(9))
    check(runner, 2)
    fake.refuse = "execute_async_v3"
    check(runner, 2)
    runner.set_image(toy_photo(3))
    check(runner, 3)


def test_a_device_error_in_the_encoder_closes_the_runner(photos: tuple[DecoderRunner, OrtEngine], host_cuda: HostCuda) -> None:
    runner, _ = photos
    runner.warm_up([(2, 3)])
    submitted, other = runner.submit_image(toy_photo(2)), runner.submit_image(toy_photo(3))
    host_cuda.fail_next_work()
    with pytest.raises(InferenceError, match=r"illegal memory access.*the runner is closed, open a new one"):
        submitted.result()
    assert runner.closed
    for call in (submitted.done, other.result, other.done):
        with pytest.raises(InferenceError, match="was closed while this image was under way"):
            call()
    host_cuda.reset()


def test_close_waits_for_whoever_waits_for_a_photo(photos: tuple[DecoderRunner, OrtEngine]) -> None:
    runner, _ = photos
    runner.warm_up([(2, 3)])
    found = list[int]()
    submitted = runner.submit_image(toy_photo(2))
    thread = threading.Thread(target=lambda: found.append(submitted.result()), daemon=True)
    thread.start()
    thread.join(20)
    runner.close()
    assert found == [1]
    assert submitted.done()
    assert submitted.result() == 1


def test_embeddings_of_a_photo_on_two_threads(photos: tuple[DecoderRunner, OrtEngine]) -> None:
    runner, _ = photos
    wrong = list[object]()

    def work(seed: int) -> None:
        for turn in range(10):
            image = runner.add_image(toy_photo(seed + turn))
            found = runner.decode(*GIVEN, image=image, masks="all", copy=True)
            single = toy_embedding(seed + turn)
            try:
                check_decoded(found, tokens(single, *GIVEN), best=False)
            except AssertionError as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (10, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert toy_embedding(1).shape == EMBEDDING_SHAPE
