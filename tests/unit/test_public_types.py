"""`mypy --strict` over calls of the public API: what is misspelled is reported, what is right is not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CALLS = """
from typing_extensions import assert_type

import numpy as np
import numpy.typing as npt

from trt_sam import AutomaticMaskGenerator, DecoderRunner, EngineRecipe, OnnxRunner, Predictor, RunnerPool
from trt_sam.runner import Decoded, DecodedOnDevice, Submission
from trt_sam.runtime.interface import PromptRunner

embedding = np.zeros((1, 256, 64, 64), np.float32)
points, labels = np.zeros((1, 1, 2), np.float32), np.ones((1, 1), np.float32)


def right(runner: PromptRunner) -> None:
    runner.set_image(embedding)
    assert_type(runner.decode(points, labels, masks="all", bits="packed", copy=True), Decoded)
    with runner.submit([[1, 2]], [1], image=3, image_size=(4, 5), timeout=1.5) as call:
        assert_type(call.result(), Decoded)
    runner.run({"point_coords": points})
    photo = np.zeros((4, 4, 3), np.uint8)
    assert_type(runner.submit_image(photo).result(), int)
    assert_type(runner.embed(photo), npt.NDArray[np.float32])
    assert_type(runner.takes_photos, bool)


right(OnnxRunner("decoder.onnx", threads=2, image_bytes=1 << 24))
gpu = DecoderRunner.open("engine", in_flight=2, wait="block", prompt_buckets=[1, 4], device=1)
right(gpu)
assert_type(gpu.decode(points, labels), Decoded)
assert_type(gpu.decode(points, labels, masks="device"), DecodedOnDevice)
assert_type(gpu.submit(points, labels, masks="device"), Submission[DecodedOnDevice])
pool = RunnerPool.open("engine", 2, graphs=False, max_waiting=3)
pool.submit(embedding, points, labels, masks="all", timeout=1)
pool.map([(embedding, points, labels)], bits=True)


def wrong(runner: PromptRunner, cpu: OnnxRunner) -> None:
    runner.decode(mask="best")  # wrong
    runner.decode(masks="worst")  # wrong
    runner.decode(masks="device")  # wrong
    runner.decode(bits="few")  # wrong
    runner.submit(images=1)  # wrong
    runner.submit(image="first")  # wrong
    runner.decode_many(time_out=1)  # wrong
    runner.set_images(embedding)  # wrong
    runner.submit_image(photo=embedding)  # wrong
    runner.submit_image(embedding).wait()  # wrong
    runner.run(feeds={})  # wrong
    cpu.decode(mask="best")  # wrong
    cpu.submit(copies=True)  # wrong
    cpu.decode(point=points)  # wrong


wrong(gpu, OnnxRunner("decoder.onnx", thread=2))  # wrong
DecoderRunner.open("engine", typo_option=3)  # wrong
DecoderRunner.open("engine", wait="sleep")  # wrong
DecoderRunner.open("engine", photo=False)  # wrong
DecoderRunner.open("engine", in_flight="2")  # wrong
gpu.decode(mask="best")  # wrong
gpu.submit(masks="devices")  # wrong
gpu.submit(bit=True)  # wrong
gpu.decode_many(masks="device")  # wrong
gpu.warm_up(size=[(1, 1)])  # wrong
gpu.decode(points, labels).mask  # wrong
gpu.decode(points, labels).masks.shapes  # wrong
RunnerPool.open("engine", 2, in_flights=2)  # wrong
pool.submit(embedding, points, labels, mask="all")  # wrong
pool.map([], image_sizes=(1, 2))  # wrong
Predictor(gpu, share=True)  # wrong
Predictor(gpu).predict(points_coords=points)  # wrong
AutomaticMaskGenerator(gpu, point_per_side=16)  # wrong
EngineRecipe(nam="x")  # wrong
"""


def test_every_misspelled_call_is_reported_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "calls.py"
    file.write_text(CALLS)
    options = ["--strict", "--no-error-summary", "--config-file", str(ROOT / "pyproject.toml")]
    command = [sys.executable, "-m", "mypy", *options, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = {int(number) for number in re.findall(r"calls\.py:(\d+): error", done.stdout)}
    wrong = {number for number, line in enumerate(CALLS.splitlines(), 1) if line.endswith("# wrong")}
    assert len(wrong) == 33
    assert found == wrong, done.stdout + done.stderr
