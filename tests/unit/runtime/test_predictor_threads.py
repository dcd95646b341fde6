"""One `Predictor` in several threads: never masks of another thread's image, never half of a call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import make_decoder

from tests.metas_sam import PatchEncoder
from trt_sam.runtime.predictor import ImageNotSetError, ImageReplacedError, Predictor
from trt_sam.runtime.torch_runner import TorchRunner

IMAGE = np.random.default_rng(4).integers(0, 256, (300, 451, 3), np.uint8)
BOX = np.array([30.5, 40, 300, 220])

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def in_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_never_gets_masks_of_another_threads_image() -> None:
    predictor = Predictor(TorchRunner(make_decoder()), PatchEncoder())
    assert isinstance(in_thread(lambda: predictor.predict(box=BOX)), ImageNotSetError)
    predictor.set_image(IMAGE)
    mine = predictor.predict(box=BOX)[2]
    # A thread that has set none may ask about the one that is there.
    np.testing.assert_array_equal(in_thread(lambda: predictor.predict(box=BOX))[2], mine)
    in_thread(lambda: predictor.set_image(IMAGE[::-1].copy()))
    with pytest.raises(ImageReplacedError, match="another thread has set another image"):
        predictor.predict(box=BOX)
    with pytest.raises(RuntimeError):
        predictor.get_image_embedding()
    predictor.set_image(IMAGE)
    np.testing.assert_array_equal(predictor.predict(box=BOX)[2], mine)


def test_a_shared_predictor_takes_the_last_image() -> None:
    predictor = Predictor(TorchRunner(make_decoder()), PatchEncoder(), shared=True)
    predictor.set_image(IMAGE[::-1].copy())
    other = predictor.predict(box=BOX)[2]
    in_thread(lambda: predictor.set_image(IMAGE))
    assert np.abs(predictor.predict(box=BOX)[2] - other).max() > 1e-3


def test_calls_are_whole_while_other_threads_set_images() -> None:
    """What used to give ZeroDivisionError, or masks of one image at the size of another."""

    class Zeros(TorchRunner):
        def run(self, feed: Any) -> Any:
            assert self._image is not None
            scores = np.full((len(feed["point_coords"]), 4), self._image[0, 0, 0, 0], np.float32)
            return {"low_res_masks": np.zeros((len(scores), 4, 256, 256), np.float32), "iou_predictions": scores}

    predictor = Predictor(Zeros(make_decoder()), shared=True)
    heights = range(20, 24)
    predictor.set_image_embedding(np.full((1, 256, 64, 64), heights[0], np.float32), (heights[0], 40))
    stop, faults = threading.Event(), []

    def set_images() -> None:
        while not stop.is_set():
            for height in heights:
                predictor.set_image_embedding(np.full((1, 256, 64, 64), height, np.float32), (height, 40))

    setter = threading.Thread(target=set_images)
    setter.start()
    try:
        for _ in range(200):
            try:
                masks, scores, _ = predictor.predict(box=[1, 2, 3, 4])
                if masks.shape[1] != scores[0]:
                    faults.append((masks.shape, scores[0]))
            except ImageNotSetError:
                faults.append("no image")
    finally:
        stop.set()
        setter.join()
    assert not faults
