"""Predictors that share a runner, over the host-memory driver."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import opened
from trt_sam.contract import EMBEDDING_BYTES
from trt_sam.runtime.predictor import Predictor

pytestmark = pytest.mark.hostcuda


def test_predictors_that_share_a_runner_keep_their_images_apart(host_cuda: HostCuda) -> None:
    with opened(host_cuda, in_flight=2) as (runner, _):
        predictors = [Predictor(runner), Predictor(runner)]
        point, label = np.array([[30.0, 40.0]]), np.array([1])
        for seed, predictor in enumerate(predictors):
            predictor.set_image_embedding(toy_embedding(seed), (256, 256))
        wanted = [predictor.predict(point, label)[2] for predictor in predictors]
        assert not np.array_equal(*wanted)
        wrong: list[int] = []

        def work(which: int) -> None:
            for _ in range(100):
                if not np.array_equal(predictors[which].predict(point, label)[2], wanted[which]):
                    wrong.append(which)

        threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
        assert not wrong
        assert runner.images_held == 2
        assert runner.add_image(toy_embedding(2)) == 3  # neither was brought to the GPU twice


def test_a_predictor_whose_image_had_to_go_brings_it_again(host_cuda: HostCuda) -> None:
    with opened(host_cuda, image_bytes=EMBEDDING_BYTES) as (runner, _):
        predictors = [Predictor(runner), Predictor(runner)]
        point, label = np.array([[30.0, 40.0]]), np.array([1])
        found = []
        for seed, predictor in enumerate(predictors):
            predictor.set_image_embedding(toy_embedding(seed), (256, 256))
            found.append(predictor.predict(point, label)[2])
        np.testing.assert_array_equal(predictors[0].predict(point, label)[2], found[0])
