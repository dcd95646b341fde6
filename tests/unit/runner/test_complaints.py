"""TensorRT's own words in our errors."""

from __future__ import annotations

import threading

import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.ort_engine import FakeTrt, OrtContext, OrtEngine
from tests.fixtures.toy_decoder import specs, toy_decoder, toy_embedding
from tests.fixtures.toy_runner import PLAIN, PROFILES, clicks
from trt_sam.cuda.device import Device
from trt_sam.errors import InferenceError
from trt_sam.runner.complaints import Complaints, recorder_of
from trt_sam.runner.decoder_runner import DecoderRunner
from trt_sam.runner.engine import Engine


def test_each_thread_hears_its_own_errors_once() -> None:
    complaints = Complaints()
    threading.Thread(target=complaints.hear, args=("of another thread",)).start()
    complaints.hear("Error Code 2: Internal Error (no memory)")
    complaints.hear("Error Code 2: Internal Error (no memory)")
    assert complaints.after("it failed").startswith("it failed: ")
    assert complaints.after("it failed") == "it failed; its log has the reason"


def test_the_real_recorder_hears_why_a_plan_is_refused() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    recorder, complaints = recorder_of(trt.IErrorRecorder)
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    runtime.error_recorder = recorder
    complaints.forget()
    assert runtime.deserialize_cuda_engine(b"no engine" * 100) is None
    assert "incompatible serialization version" in complaints.after("it could not be loaded")


@pytest.mark.hostcuda
def test_a_call_that_tensorrt_refuses_says_why(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, outputs = specs(PLAIN)
    fake = OrtEngine(host_cuda, toy_decoder(PLAIN), inputs, outputs, PROFILES)
    complaints = Complaints()
    engine = Engine(FakeTrt, fake, inputs, outputs, PROFILES, complaints=complaints)
    with DecoderRunner(engine, Device(), graphs=False) as runner:
        runner.set_image(toy_embedding(1))
        runner.decode(*clicks(1, 1, 1))
        complaints.hear("of an earlier call")

        def refuse(context: OrtContext, stream_handle: int) -> bool:
            complaints.hear("IExecutionContext::enqueueV3: Error Code 3: API Usage Error (a shape is missing)")
            return False

        monkeypatch.setattr(OrtContext, "execute_async_v3", refuse)
        with pytest.raises(InferenceError, match=r"could not queue the inference: .*a shape is missing"):
            runner.decode(*clicks(1, 1, 1))
