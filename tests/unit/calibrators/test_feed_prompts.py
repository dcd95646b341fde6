"""Calibration feeds of the user's own prompts: points and boxes, COCO annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_data import SIZE, coco, write
from helpers import make_embedding as embedding

from calibrators.feeds import FeedOptions, calibration_feeds
from trt_sam.contract import input_specs
from trt_sam.errors import InputError
from trt_sam.runtime.predictor import Predictor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("feeds") / "embeddings")


class RecordingRunner:
    """What `Predictor` sends, for comparison."""

    inputs = input_specs()
    outputs = ()
    limits = {"num_prompts": (1, 16), "num_points": (1, 16)}  # noqa: RUF012
    image_id = 1

    def set_image(self, embedding: object) -> None: ...

    def run(self, feed: dict[str, Any]) -> dict[str, Any]:
        self.seen = feed
        rows = len(feed["point_labels"])
        return {"low_res_masks": np.zeros((rows, 4, 256, 256), np.float32), "iou_predictions": np.zeros((rows, 4), np.float32)}


@pytest.mark.parametrize(
    "prompt",
    [
        {"points": [[10, 20]], "labels": [1]},
        {"points": [[10.5, 20], [639, 479], [0, 0]], "labels": [1, 0, 1]},
        {"box": [100, 50, 300.25, 200]},
        {"points": [[150, 90]], "labels": [0], "box": [100, 50, 300, 200]},
    ],
)
def test_the_users_prompts_arrive_as_predictor_sends_them(tmp_path: Path, folder: Path, prompt: dict[str, Any]) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"images": {"photo1.jpg": [prompt], "elsewhere.jpg": [{"box": [0, 0, 1, 1]}]}}))
    feeds = calibration_feeds(folder, prompts=path)
    assert (feeds.num_images, feeds.num_prompts, len(feeds.skipped)) == (1, 1, 2)
    (feed,) = feeds
    runner = RecordingRunner()
    predictor = Predictor(runner)  # type: ignore[arg-type]
    predictor.set_image_embedding(embedding(1), SIZE)
    points = np.array(prompt["points"]) if "points" in prompt else None
    labels = np.array(prompt["labels"]) if "labels" in prompt else None
    predictor.predict(points, labels, np.array(prompt["box"]) if "box" in prompt else None)
    assert np.array_equal(feed["image_embeddings"], embedding(1))
    for name in ("point_coords", "point_labels"):
        assert feed[name].dtype == runner.seen[name].dtype
        np.testing.assert_array_equal(feed[name], runner.seen[name])


def test_coco_boxes_become_box_prompts(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco()))
    feeds = calibration_feeds(folder, FeedOptions(mask_input=True), prompts=path)
    assert [Path(name).stem for name in feeds.names] == ["photo0", "photo2"]
    assert [Path(name).stem for name in feeds.skipped] == ["photo1"]
    first, second = feeds
    np.testing.assert_array_equal(first["point_coords"][0], np.array([[10, 20], [110, 70]], np.float32) * np.float32(1.6))
    assert first["point_labels"].tolist() == [[2, 3], [2, 3]]
    assert second["point_labels"].tolist() == [[2, 3]]


def test_the_users_prompts_bring_earlier_masks_too_where_the_graph_takes_them(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"images": {"photo1.jpg": [{"box": [1, 2, 30, 40]}] * 8}}))
    (feed,) = calibration_feeds(folder, FeedOptions(mask_input=True), prompts=path)
    assert feed["has_mask_input"].sum() == 2
    assert feed["mask_input"].any((1, 2, 3)).tolist() == feed["has_mask_input"].astype(bool).tolist()


def test_coco_tells_the_size_of_a_bare_array(tmp_path: Path) -> None:
    folder = tmp_path / "embeddings"
    folder.mkdir()
    np.save(folder / "photo0.npy", embedding(0))
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco()))
    (feed,) = calibration_feeds(folder, prompts=path)
    np.testing.assert_array_equal(feed["point_coords"][0, 0], np.float32([16, 32]))
    path.write_text(json.dumps({"images": {"photo0.jpg": [{"box": [0, 0, 5, 5]}]}}))
    with pytest.raises(InputError, match="does not say how large its photo was"):
        calibration_feeds(folder, prompts=path)
