"""The ONNX Runtime runner: results, the image that it keeps, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import CHECKPOINT_SHA256, make_decoder, make_embedding

from trt_sam.errors import ContractError, InferenceError, InputError
from trt_sam.runtime.interface import Runner
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.torch_runner import TorchRunner

Feed = dict[str, np.ndarray]

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def runner(graphs: dict[str, Path]) -> Iterator[OnnxRunner]:
    with OnnxRunner(graphs["plain"], threads=1) as runner:
        yield runner


def prompts(count: int = 2, points: int = 2) -> Feed:
    rng = np.random.default_rng(count * 10 + points)
    return {
        "point_coords": rng.uniform(0, 1024, (count, points, 2)).astype(np.float32),
        "point_labels": rng.integers(0, 2, (count, points)).astype(np.float32),
    }


def reference(feed: Feed, embedding: np.ndarray) -> Feed:
    with TorchRunner(make_decoder()) as torch_runner:
        torch_runner.set_image(embedding)
        masks = {
            "mask_input": np.zeros((len(feed["point_coords"]), 1, 256, 256), np.float32),
            "has_mask_input": np.zeros(len(feed["point_coords"]), np.float32),
        }
        return torch_runner.run(masks | feed)


def assert_close(results: Feed, expected: Feed, tolerance: float = 1e-4) -> None:
    assert results.keys() >= expected.keys()
    for name, array in expected.items():
        assert results[name].dtype == np.float32
        error = np.abs(results[name] - array).max() / np.abs(array).max()
        assert error < tolerance, f"{name} differs by {error}"


@pytest.mark.parametrize(("count", "points"), [(1, 1), (5, 4)])
def test_results_are_pytorchs(runner: OnnxRunner, count: int, points: int) -> None:
    feed = prompts(count, points)
    runner.set_image(make_embedding())
    assert_close(runner.run(feed), reference(feed, make_embedding()))


def test_both_runners_have_the_interface(graphs: dict[str, Path]) -> None:
    torch_runner = TorchRunner(make_decoder())
    with OnnxRunner(graphs["mask"], threads=1) as onnx_runner:
        for each in (onnx_runner, torch_runner):
            as_runner: Runner = each
            assert [s.name for s in as_runner.inputs][-2:] == ["mask_input", "has_mask_input"]
            assert [str(s) for s in as_runner.outputs][1] == "iou_predictions: float32 [num_prompts, 4]"
            assert as_runner.limits.keys() == {"num_prompts", "num_points"}
            assert as_runner.image_id == 0


def test_metadata(runner: OnnxRunner) -> None:
    assert runner.checkpoint_sha256 == CHECKPOINT_SHA256
    assert runner.options.precision == "fp32"
    assert not runner.options.mask_input


def test_the_image_is_a_copy_and_is_not_copied_again(graphs: dict[str, Path]) -> None:
    with OnnxRunner(graphs["plain"], threads=1) as runner:
        embedding = make_embedding()
        runner.set_image(embedding)
        first = runner.run(prompts())
        embedding[:] = 0
        assert runner.image_id == 1
        tracemalloc.start()
        try:
            second = runner.run(prompts())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        np.testing.assert_array_equal(first["low_res_masks"], second["low_res_masks"])
        # The results are 2 MiB; a copy of the embedding would be 4 MiB more.
        assert peak < 3 << 20


def test_an_image_in_the_feed_counts_for_one_call(runner: OnnxRunner) -> None:
    runner.set_image(make_embedding(1))
    kept = runner.run(prompts())
    other = runner.run(prompts() | {"image_embeddings": make_embedding(2)})
    assert_close(other, reference(prompts(), make_embedding(2)))
    assert np.abs(other["low_res_masks"] - kept["low_res_masks"]).max() > 1e-2
    np.testing.assert_array_equal(runner.run(prompts())["low_res_masks"], kept["low_res_masks"])


def test_results_of_earlier_calls_stay(runner: OnnxRunner) -> None:
    runner.set_image(make_embedding())
    first = runner.run(prompts(1))
    before = first["low_res_masks"].copy()
    runner.run(prompts(1, 3))
    np.testing.assert_array_equal(first["low_res_masks"], before)


def test_metas_feed(graphs: dict[str, Path], runner: OnnxRunner) -> None:
    feed = prompts(1) | {
        "image_embeddings": make_embedding(),
        "mask_input": np.full((1, 1, 256, 256), 3, np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([300, 451], np.float32),
    }
    expected = reference(prompts(1), make_embedding())
    assert_close(runner.run(feed), expected)
    with OnnxRunner(graphs["mask"], threads=1) as with_mask:
        assert_close(with_mask.run(feed), expected)
        used = with_mask.run(feed | {"has_mask_input": np.ones(1, np.float32)})
        assert np.abs(used["low_res_masks"] - expected["low_res_masks"]).max() > 1e-2
    with OnnxRunner(graphs["full"], threads=1) as full:
        results = full.run(feed)
        assert results["masks"].shape == (1, 4, 300, 451)
        assert_close(results, expected)
    with pytest.raises(ContractError, match="--mask-input"):
        runner.run(feed | {"has_mask_input": np.ones(1, np.float32)})


def test_float16_masks_come_as_float32(graphs: dict[str, Path], runner: OnnxRunner) -> None:
    feed = prompts() | {"image_embeddings": make_embedding()}
    with OnnxRunner(graphs["half"], threads=1) as half:
        assert half.outputs[0].dtype == "float16"
        results = half.run(feed)
    assert_close(results, runner.run(feed), tolerance=1e-3)
    np.testing.assert_array_equal(results["low_res_masks"], results["low_res_masks"].astype(np.float16))


def test_a_graph_with_a_fixed_number_of_prompts(graphs: dict[str, Path]) -> None:
    with OnnxRunner(graphs["fixed"], threads=1) as fixed:
        fixed.set_image(make_embedding())
        assert fixed.limits.keys() == {"num_points"}
        assert_close(fixed.run(prompts(1, 3)), reference(prompts(1, 3), make_embedding()))
        with pytest.raises(ContractError, match=r"point_coords has shape \[2, 3, 2\], must be \[1, num_points, 2\]"):
            fixed.run(prompts(2, 3))


def test_bad_feeds_leave_the_runner_usable(graphs: dict[str, Path]) -> None:
    with OnnxRunner(graphs["plain"], threads=1) as runner:
        with pytest.raises(ContractError, match="there is no image"):
            runner.run(prompts())
        with pytest.raises(ContractError, match="must be float32"):
            runner.set_image(make_embedding().astype(np.float64))  # type: ignore[arg-type]
        with pytest.raises(ContractError, match="NaN"):
            runner.set_image(np.full((1, 256, 64, 64), np.nan, np.float32))
        assert runner.image_id == 0
        runner.set_image(make_embedding())
        for change in (
            {"point_coords": np.full((2, 2, 2), np.nan, np.float32)},
            {"point_labels": np.full((2, 2), 9, np.float32)},
        ):
            with pytest.raises(ContractError):
                runner.run(prompts() | change)
        assert_close(runner.run(prompts()), reference(prompts(), make_embedding()))


def test_a_failed_execution_is_one_line_and_leaves_the_runner_usable(graphs: dict[str, Path], tmp_path: Path) -> None:
    # Fails only when it runs: the number of points has to divide by three.
    model = onnx.load(graphs["plain"])
    model.graph.initializer.append(onnx.helper.make_tensor("by_three", onnx.TensorProto.INT64, [2], [-1, 3]))
    model.graph.node.append(onnx.helper.make_node("Reshape", ["point_labels", "by_three"], ["thirds"]))
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "iou_predictions" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["thirds"], ["sum"], keepdims=0))
    model.graph.initializer.append(onnx.helper.make_tensor("nothing", onnx.TensorProto.FLOAT, [], [0]))
    model.graph.node.append(onnx.helper.make_node("Mul", ["sum", "nothing"], ["naught"]))
    model.graph.node.append(onnx.helper.make_node("Add", ["scores", "naught"], ["iou_predictions"]))
    path = tmp_path / "fails.onnx"
    onnx.save(model, path)
    with OnnxRunner(path, threads=1) as runner:
        runner.set_image(make_embedding())
        with pytest.raises(InferenceError, match=r"failed in ONNX Runtime .* still open") as caught:
            runner.run(prompts(1, 2))
        assert "\n" not in str(caught.value)
        assert_close(runner.run(prompts(1, 3)), reference(prompts(1, 3), make_embedding()))


def test_closing(graphs: dict[str, Path]) -> None:
    for runner in (OnnxRunner(graphs["plain"], threads=1), TorchRunner(make_decoder())):
        runner.set_image(make_embedding())
        runner.close()
        runner.close()
        with pytest.raises(InferenceError, match="closed"):
            runner.run(prompts())


def test_impossible_settings(graphs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"provider CUDA is not in this onnxruntime; it has .*CPUExecutionProvider"):
        OnnxRunner(graphs["plain"], providers=["CUDA"])
    with pytest.raises(InputError, match="threads is 0"):
        OnnxRunner(graphs["plain"], threads=0)


def test_pytorch_errors_are_ours() -> None:
    class Broken(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> None:
            raise RuntimeError("out of memory\nsecond line")

    runner = TorchRunner(Broken())  # type: ignore[arg-type]
    masks = {"mask_input": np.zeros((2, 1, 256, 256), np.float32), "has_mask_input": np.zeros(2, np.float32)}
    with pytest.raises(InferenceError, match=r"failed in PyTorch \(out of memory\)$"):
        runner.run(prompts() | masks | {"image_embeddings": make_embedding()})


def test_many_prompts_are_what_few_are(graphs: dict[str, Path]) -> None:
    many = prompts(19, 3) | {
        "mask_input": np.random.default_rng(1).normal(0, 4, (19, 1, 256, 256)).astype(np.float32),
        "has_mask_input": (np.arange(19) % 2).astype(np.float32),
    }
    with OnnxRunner(graphs["mask"], threads=1) as runner, TorchRunner(make_decoder()) as torch_runner:
        for each in (runner, torch_runner):
            each.set_image(make_embedding())
            assert each.most_prompts(3) < 19
            together = each.run(many)
            for rows in (slice(0, 5), slice(5, 19)):
                assert_close({n: a[rows] for n, a in together.items()}, each.run({n: a[rows] for n, a in many.items()}), 1e-5)
    with OnnxRunner(graphs["full"], threads=1) as full:
        full.set_image(make_embedding())
        assert full.most_prompts(2, image_size=(6000, 8000)) == 1
        few = full.run(prompts(9) | {"orig_im_size": np.array([30, 45])})
        assert few["masks"].shape == (9, 4, 30, 45)
        assert_close({"low_res_masks": few["low_res_masks"]}, {"low_res_masks": runner_masks(graphs, prompts(9))}, 1e-5)


def runner_masks(graphs: dict[str, Path], feed: Feed) -> np.ndarray:
    with OnnxRunner(graphs["plain"], threads=1) as runner:
        return runner.run(feed | {"image_embeddings": make_embedding()})["low_res_masks"]


MEMORY = """
import sys
import numpy as np
from trt_sam import OnnxRunner, Predictor
rng = np.random.default_rng(0)
with OnnxRunner(sys.argv[1], threads=2) as runner:
    predictor = Predictor(runner)
    predictor.set_image_embedding(rng.normal(0, 0.5, (1, 256, 64, 64)).astype(np.float32), (480, 640))
    corners = rng.uniform(0, 240, (int(sys.argv[2]), 4)) + [0, 0, 240, 240]
    masks, _, low_res = predictor.predict_batch(boxes=corners, multimask_output=False)
# Not ru_maxrss, which counts what the parent held before it started this.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print((masks.nbytes + low_res.nbytes) >> 20, int(peak) >> 10)
"""


def test_memory_does_not_grow_with_the_number_of_prompts(graphs: dict[str, Path]) -> None:
    """Sixty-four boxes took 2.3 GB when they were computed all at once."""
    results, peak = zip(*(memory_of(graphs["mask"], count) for count in (8, 64)), strict=True)
    assert peak[1] - peak[0] < results[1] - results[0] + 40, (results, peak)
    assert peak[1] < 600


@pytest.mark.slow
def test_three_hundred_boxes_take_less_than_a_gigabyte(graphs: dict[str, Path]) -> None:
    results, peak = memory_of(graphs["mask"], 300)
    print(f"300 boxes: results {results} MiB, peak {peak} MiB of the whole process")
    assert peak < 1000


def memory_of(graph: Path, count: int) -> tuple[int, int]:
    """MiB of the results of so many boxes, and the peak of a process that asks for them."""
    command = [sys.executable, "-c", MEMORY, str(graph), str(count)]
    results, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(results), int(peak)


@pytest.mark.parametrize("providers", [["CPUExecutionProvider"], [("CPUExecutionProvider", {})], ("CPUExecutionProvider",)])
def test_providers_are_taken_as_onnx_runtime_takes_them(providers: Any, graphs: dict[str, Path]) -> None:
    with OnnxRunner(graphs["plain"], threads=1, providers=providers) as runner:
        assert runner.run(prompts(1) | {"image_embeddings": make_embedding()})["iou_predictions"].shape == (1, 4)


@pytest.mark.parametrize("provider", [("CPUExecutionProvider",), ("CPUExecutionProvider", {}, 1), (1, {}), 5, ("X", [])])
def test_what_is_no_provider(provider: Any, graphs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="is neither a name nor"):
        OnnxRunner(graphs["plain"], providers=[provider])
    with pytest.raises(InputError, match="provider MyProvider is not in this onnxruntime"):
        OnnxRunner(graphs["plain"], providers=[("MyProvider", {})])
