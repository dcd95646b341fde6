"""What a service reads of a runner."""

from __future__ import annotations

import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import clicks, opened
from trt_sam.errors import ContractError, InferenceError
from trt_sam.runner import Counters

pytestmark = pytest.mark.hostcuda


def test_calls_failures_images_and_waits_are_counted(host_cuda: HostCuda) -> None:
    with opened(host_cuda) as (runner, _):
        assert runner.counters == Counters()
        runner.set_image(toy_embedding(1))
        runner.decode_many(*clicks(1, 9, 1))  # the engine takes four at a time
        first = runner.counters
        assert (first.calls, first.failed, first.images) == (3, 0, 1)
        with pytest.raises(ContractError, match="NaN"):
            runner.decode([[float("nan"), 1]], [1])
        with runner.submit(*clicks(1, 1, 1)), pytest.raises(InferenceError, match="slots are in use"):
            runner.submit(*clicks(1, 1, 1), timeout=0)
        before = runner.counters
        held = runner.submit(*clicks(1, 1, 1))
        with pytest.raises(InferenceError, match="slots are in use"):
            runner.submit(*clicks(1, 1, 1), timeout=0.05)
        held.drop()
        found = runner.counters
        assert (found.calls, found.failed, found.images) == (5, 1, 1)
        assert found.slot_waits - before.slot_waits == 1
        assert found.queue_ms - before.queue_ms >= 40
        assert first.calls == 3, "a copy that stays"
