"""A warm-up among callers who hold slots."""

from __future__ import annotations

import threading
import time

import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import clicks, opened

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
