"""Several images in one call, on the real decoder: the results are those of calls on one image each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_sam.errors import ContractError
from trt_sam.gate.golden import load_golden, shipped_golden
from trt_sam.graph.export import export_decoder
from trt_sam.model.checkpoint import Checkpoint, load_checkpoint
from trt_sam.recipe import GraphOptions
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.predictor import Predictor
from trt_sam.runtime.torch_runner import TorchRunner

pytestmark = pytest.mark.usefixtures("one_torch_thread")

ON = [3, 1, 1, 2, 3, 1]
"""Numbers of the images of six prompts: of three, where the graph takes two."""


@pytest.fixture(scope="module")
def checkpoint(mobile_sam: Path) -> Checkpoint:
    return load_checkpoint(mobile_sam)


@pytest.fixture(scope="module")
def embeddings(checkpoint: Checkpoint) -> list[np.ndarray]:
    """A photograph's, as the package's golden data hold it, and its two mirror images."""
    golden = shipped_golden(checkpoint.sha256)
    assert golden is not None
    embedding = load_golden(golden).images[0].embedding
    return [np.ascontiguousarray(each) for each in (embedding, embedding[..., ::-1], embedding[:, :, ::-1])]


@pytest.fixture(scope="module")
def runner(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxRunner]:
    path = tmp_path_factory.mktemp("several") / "decoder.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((3, 2),))  # its prompts are compared one by one
        export_decoder(checkpoint.decoder, path, GraphOptions(precision="fp32", target="cpu", images=2))
    with OnnxRunner(path, threads=1) as runner:
        yield runner


@pytest.fixture
def clicks() -> tuple[np.ndarray, np.ndarray]:
    points = np.random.default_rng(1).uniform(100, 700, (len(ON), 1, 2)).astype(np.float32)
    return points, np.ones((len(ON), 1), np.float32)


def single(checkpoint: Checkpoint, embedding: np.ndarray, points: np.ndarray) -> dict[str, Any]:
    """A click on one image alone, in PyTorch."""
    with TorchRunner(checkpoint.decoder) as alone:
        return alone.run(
            {
                "image_embeddings": embedding,
                "point_coords": np.concatenate([points, np.zeros((1, 1, 2), np.float32)], axis=1),
                "point_labels": np.array([[1, -1]], np.float32),
                "mask_input": np.zeros((1, 1, 256, 256), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
            }
        )


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_prompts_on_three_images_in_any_order(
    runner: OnnxRunner, checkpoint: Checkpoint, embeddings: list[np.ndarray], clicks: tuple[np.ndarray, np.ndarray]
) -> None:
    numbers = [runner.add_image(each) for each in embeddings]
    points, labels = clicks
    on = [numbers[each - 1] for each in ON]
    calls = [
        runner.decode(points, labels, image=on, masks="all"),
        runner.decode_many(points, labels, image=np.array(on), masks="all"),
        runner.submit(points, labels, image=on, masks="all").result(),
    ]
    for row, number in enumerate(ON):
        alone = single(checkpoint, embeddings[number - 1], points[row : row + 1])
        for found in calls:
            assert_close(found.masks[row], alone["low_res_masks"][0])
            assert_close(found.iou_predictions[row], alone["iou_predictions"][0])
        one = runner.decode(points[row], labels[row], image=on[row], masks="all")
        assert_close(one.masks[0], alone["low_res_masks"][0])


def test_a_feed_of_two_images_and_of_fewer(runner: OnnxRunner, embeddings: list[np.ndarray]) -> None:
    assert [str(spec) for spec in runner.inputs[:2]] == [
        "image_embeddings: float32 [2, 256, 64, 64]",
        "image_index: int32 [num_prompts]",
    ]
    prompts = {
        "point_coords": np.full((2, 2, 2), 300, np.float32),
        "point_labels": np.array([[1, -1], [1, -1]], np.float32),
    }
    both = prompts | {"image_embeddings": np.concatenate(embeddings[:2]), "image_index": np.array([1, 0], np.int32)}
    found = runner.run(both)["low_res_masks"]
    for row, image in ((0, 1), (1, 0)):
        one = runner.run(prompts | {"image_embeddings": embeddings[image]})["low_res_masks"]
        assert_close(found[row], one[row])
        runner.set_image(embeddings[image])
        assert_close(found[row], runner.run(prompts)["low_res_masks"][row])
        predictor = Predictor(runner)
        predictor.set_image_embedding(embeddings[image], (1024, 1024))
        logits = predictor.predict(np.array([[300, 300]]), np.array([1]))[2]
        assert_close(found[row][1:], logits)
    for change, message in (
        ({"image_index": np.array([0, 2], np.int32)}, "image_index holds 2, must be 0 to 1: there are 2 images"),
        ({"image_index": np.array([0, -1], np.int32)}, "image_index holds -1, must be 0 to 1"),
        ({"image_index": np.array([0, 1])}, "image_index is int64, must be int32"),
        ({"image_index": np.array([0], np.int32)}, "num_prompts = 2, but another input has 1"),
        ({"image_embeddings": embeddings[0]}, "image_index holds 1, must be 0 to 0: there are 1 images"),
        ({"image_embeddings": np.concatenate(embeddings)}, r"must be \[2, 256, 64, 64\]"),
    ):
        with pytest.raises(ContractError, match=message):
            runner.run(both | change)
    with pytest.raises(ContractError, match="'image_index' is missing"):
        runner.run({name: array for name, array in both.items() if name != "image_index"})


def test_images_that_cannot_be(runner: OnnxRunner, clicks: tuple[np.ndarray, np.ndarray]) -> None:
    for image, message in (
        ([1, 2], "image names 2 images for 6 prompts; give one to each prompt, or one for all"),
        (["a"] * 6, "must be the number of an image, or a list of them"),
        ([99] * 6, "image 99 is not held"),
    ):
        with pytest.raises(ContractError, match=message):
            runner.decode(*clicks, image=image)  # type: ignore[arg-type]
