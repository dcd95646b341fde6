"""PyTorch's sides of the benchmark, and ONNX Runtime's on a GPU: what they give, and their settings. Judges no time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_decoder
from torch._dynamo import config as dynamo_config

from trt_sam.accuracy.metrics import best_masks
from trt_sam.bench import torch_sides as _bench_torch
from trt_sam.bench.feed import make_feed
from trt_sam.bench.sides import RunnerSide, UncheckedGraph
from trt_sam.bench.torch_sides import TorchGpuSide, TorchSide
from trt_sam.runtime.onnx_runner import OnnxRunner

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LIMITS = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")
CPU = ["CPUExecutionProvider"]


class Toy(torch.nn.Module):
    """Logits and scores of any dtype out of all inputs, at once."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, image: torch.Tensor, points: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        prompt = points.sum((1, 2)) / 1024 + labels.sum(1) + image.mean()
        iou = torch.sin(prompt[:, None] * torch.arange(1, 5)).to(self.dtype)
        return iou[:, :, None, None].expand(-1, -1, 256, 256) + torch.linspace(-1.5, 0.5, 256).to(self.dtype), iou


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    kept = {name: getattr(dynamo_config, name) for name in LIMITS}
    yield
    for name, value in kept.items():
        setattr(dynamo_config, name, value)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32


@pytest.fixture
def compiled_with(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `torch.compile` is asked for; it compiles nothing."""
    asked: dict[str, Any] = {}

    def compile_(module: torch.nn.Module, **options: Any) -> torch.nn.Module:
        asked.update(options)
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    return asked


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The GPU's side on the CPU: its copies and choices are the same there. Counts its waits."""
    waits = {"waits": 0}

    def wait() -> None:
        waits["waits"] += 1

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=wait))
    monkeypatch.setattr(_bench_torch, "_page_locked", torch.empty_like)
    return waits


def test_float32_products_on_a_cpu_are_exact_whatever_was_set_before(compiled_with: dict[str, Any]) -> None:
    torch.set_float32_matmul_precision("medium")
    side = TorchSide(make_decoder(), compiled=True)
    assert torch.get_float32_matmul_precision() == "highest"
    assert side.about["float32 products"] == "matmul precision highest"
    assert compiled_with == {"dynamic": False, "mode": None}
    assert side.about["runtime"].endswith("torch.compile (fixed shapes)")
    assert side.device_ms(1) is None
    assert not hasattr(side, "call_best")


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_on_a_gpu_it_is_compiled_to_cuda_graphs_and_says_what_is_timed(
    compiled: bool, compiled_with: dict[str, Any], no_cuda: dict[str, int]
) -> None:
    torch.backends.cudnn.allow_tf32 = False
    side = TorchGpuSide(make_decoder(), half=True, compiled=compiled, device="cpu")
    assert compiled_with == ({"dynamic": False, "mode": "reduce-overhead"} if compiled else {})
    assert ("CUDA graphs" in side.about["runtime"]) == compiled
    assert ("gaps" in side.about["events"]) == (not compiled)
    assert side.about["float32 products"] == "matmul precision high, cuDNN TF32 True"
    assert torch.backends.cudnn.allow_tf32


def test_every_number_of_prompts_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, dynamic, mode: compile_(module, dynamic=dynamic, backend=backend))
    side = TorchSide(Toy(torch.float32), compiled=True)
    for prompts in range(1, 12):  # the compiler's own limit is 8
        side.load(make_feed(prompts))
        side.call()
    torch._dynamo.reset()
    assert len(graphs) == 11


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_the_gpu_side_gives_all_masks_in_memory_that_it_keeps(half: bool, no_cuda: dict[str, int]) -> None:
    feed = make_feed(3)
    decoder = Toy(torch.float16 if half else torch.float32)
    plain = TorchSide(decoder, half=half)
    plain.load(feed)
    expected, scores = (each.copy() for each in plain.call())
    side = TorchGpuSide(decoder, half=half, compiled=False, device="cpu")
    side.load(feed)
    masks, iou = side.call()
    assert masks.dtype == ("float16" if half else "float32")
    np.testing.assert_array_equal(masks, expected)
    np.testing.assert_array_equal(iou, scores)
    assert side.call()[0].ctypes.data == masks.ctypes.data
    assert no_cuda["waits"] == 2
    best, score = side.call_best()
    chosen = best_masks(scores, feed["point_labels"])
    assert (chosen > 0).all()
    np.testing.assert_array_equal(best, expected[np.arange(3), chosen])
    np.testing.assert_array_equal(score, scores[np.arange(3), chosen])
    inside = best > 0
    bits, score = side.call_bits()
    np.testing.assert_array_equal(bits, np.packbits(inside, axis=-1))
    np.testing.assert_array_equal(score, scores[np.arange(3), chosen])
    assert 0 < inside.mean() < 1
    side.load(make_feed(1))  # other shapes: other memory
    assert side.call()[0].shape == (1, 4, 256, 256)
    side.close()


@pytest.mark.parametrize("name", ["plain", "half", "full", "mask"])
def test_the_unchecked_graph_gives_what_the_runner_gives_unconverted(graphs: dict[str, Path], name: str) -> None:
    bare = UncheckedGraph(str(graphs[name]), threads=1, providers=CPU)
    sides = [RunnerSide(runner, {}) for runner in (OnnxRunner(graphs[name], threads=1), bare)]
    for prompts in (2, 1):
        for side in sides:
            side.load(make_feed(prompts))
        (expected, scores), (masks, iou) = (side.call() for side in sides)
        assert masks.dtype == ("float16" if name == "half" else "float32")
        np.testing.assert_array_equal(masks.astype(np.float32), expected)
        np.testing.assert_array_equal(iou, scores)
        assert sides[1].call()[0].ctypes.data == masks.ctypes.data
    for side in sides:
        side.close()
