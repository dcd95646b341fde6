"""A runner that nobody closed: dropped, collected, or open when Python exits. Nothing is left, and nothing goes too early."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import clicks, make
from trt_sam.cuda.accounts import outstanding
from trt_sam.errors import InferenceError
from trt_sam.runner.decoder_runner import DecoderRunner

pytestmark = pytest.mark.hostcuda
ROOT = Path(__file__).parents[3]
EXIT = """
import atexit
from tests.fixtures.hostcuda import HostCuda
cuda = HostCuda()
# Runs after those of trt_sam.
atexit.register(lambda: print(sorted(cuda.held), cuda.violations, cuda.count("cuDevicePrimaryCtxRelease")))
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import clicks, make
runner, _ = make(cuda, in_flight=2)
runner.set_image(toy_embedding(1))
runner.decode(*clicks(1, 1, 1), copy=True)
runner.submit(*clicks(1, 1, 1))
call = runner.submit(*clicks(1, 1, 1))
"""


def test_a_dropped_runner_is_closed_once_its_work_has_run(host_cuda: HostCuda) -> None:
    runner, _ = make(host_cuda, in_flight=2)
    runner.set_image(toy_embedding(2))
    kept = runner.decode(*clicks(1, 1, 2), masks="all").masks
    before = kept.copy()
    runner.submit(*clicks(1, 1, 2))
    scores = runner.decode(*clicks(1, 1, 2), masks="device").iou_predictions
    with pytest.warns(ResourceWarning, match=r"a DecoderRunner was dropped without close\(\)"):
        del runner
    # Page-locked memory alone lives on, for whoever has a view of it.
    assert set(outstanding()) == {"host_bytes"}
    assert (kept == before).all()
    with pytest.raises(InferenceError, match="the runner is closed"):
        scores.__dlpack__(stream=-1)


def test_a_runner_in_a_cycle_is_not_closed_while_a_reader_takes_its_masks(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, _ = make(host_cuda)
    runner.set_image(toy_embedding(2))
    scores = runner.decode(*clicks(1, 1, 2), masks="device").iou_predictions
    runner.__dict__["itself"] = runner

    def order(first: int, then: int) -> None:
        gc.collect()
        closed.append(scores._slot.closed)

    closed: list[bool] = []
    monkeypatch.setattr("trt_sam.cuda.dlpack.order", order)
    del runner

    def take() -> None:
        scores.__dlpack__(stream=1)

    thread = threading.Thread(target=take, daemon=True)
    gc.disable()
    try:
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "hangs"
        with pytest.warns(ResourceWarning):
            gc.collect()
    finally:
        gc.enable()
    assert closed == [False]
    assert scores._slot.closed


def test_a_runner_that_could_not_be_made_says_only_why(host_cuda: HostCuda, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(Exception, match="in_flight is 0"):
        make(host_cuda, in_flight=0)
    DecoderRunner.__new__(DecoderRunner)
    gc.collect()
    assert not recwarn.list


def test_a_runner_open_at_exit_is_closed_before_cuda_goes() -> None:
    done = subprocess.run([sys.executable, "-c", EXIT], cwd=ROOT, capture_output=True, text=True, timeout=60)
    # Page-locked memory is that of the views which the call under way still has.
    assert (done.returncode, done.stdout.strip()) == (0, "['host_bytes'] [] 1"), done.stdout + done.stderr
    assert not done.stderr
