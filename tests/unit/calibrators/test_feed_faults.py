"""Every fault of the files that calibration feeds come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from calibration_data import ENCODER, SIZE, coco, write
from helpers import make_embedding as embedding

from calibrators.feeds import FeedOptions, calibration_feeds
from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.errors import InputError
from trt_sam.feeds.feeds import Image
from trt_sam.imaging.embeddings import Embedding, save_embedding


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("feeds") / "embeddings")


def test_no_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not found"):
        calibration_feeds(tmp_path / "absent")
    with pytest.raises(InputError, match="no embedding file"):
        calibration_feeds(tmp_path)
    with pytest.raises(InputError, match="no image"):
        calibration_feeds([])
    with pytest.raises(InputError, match="prompts_per_image is 0"):
        FeedOptions(prompts_per_image=0)


def test_one_truncated_file_among_many_is_named(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    broken = tmp_path / "photo3.npz"
    broken.write_bytes(broken.read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"photo3\.npz cannot be read"):
        calibration_feeds(tmp_path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 256, 32, 32), np.float32), "must be floats"),
        (np.ones(EMBEDDING_SHAPE, np.int32), "must be floats"),
        (np.ones(EMBEDDING_SHAPE, np.float64), "1 everywhere"),
        (np.where(np.arange(4096).reshape(64, 64) == 5, np.nan, embedding(0)).astype(np.float32), "NaN or infinity"),
        (np.where(np.arange(4096).reshape(64, 64) == 5, -np.inf, embedding(0)).astype(np.float32), "NaN or infinity"),
        (np.full(EMBEDDING_SHAPE, 0.25, np.float32), "0.25 everywhere"),
    ],
)
def test_what_is_no_embedding_is_refused(tmp_path: Path, array: npt.NDArray[Any], message: str) -> None:
    np.save(tmp_path / "a.npy", embedding(0))
    np.save(tmp_path / "b.npy", array)
    with pytest.raises(InputError, match=message) as raised:
        calibration_feeds(tmp_path)
    assert "b.npy" in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError):
        calibration_feeds([Image(embedding(0), SIZE), Image(array, SIZE)])


def test_another_encoders_embeddings_are_refused(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    assert calibration_feeds(tmp_path, encoder_sha256=ENCODER).num_images == 2
    with pytest.raises(InputError, match=r"photo0\.npz was made by another image encoder \(abab"):
        calibration_feeds(tmp_path, encoder_sha256="cd" * 32)
    write(tmp_path, range(2, 3), encoder_sha256="")
    assert calibration_feeds(tmp_path).num_images == 3
    write(tmp_path, range(3, 4), encoder_sha256="cd" * 32)
    with pytest.raises(InputError, match="different image encoders"):
        calibration_feeds(tmp_path)


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    feeds = calibration_feeds(write(tmp_path))
    save_embedding(tmp_path / "photo1.npz", Embedding(embedding(99), SIZE))
    with pytest.raises(InputError, match=r"photo1\.npz has changed"):
        list(feeds)
    (tmp_path / "photo0.npz").unlink()
    with pytest.raises(InputError, match=r"not found: .*photo0\.npz"):
        list(feeds)


def test_prompts_that_fit_no_photo_are_refused(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "prompts.json"

    def refused(content: Any, message: str) -> None:
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            calibration_feeds(folder, prompts=path)

    refused({"images": {"cat.jpg": [{"box": [0, 0, 5, 5]}]}}, r"names no photo of .*, but cat\.jpg")
    refused(
        {"images": {"photo0.jpg": [{"box": [0, 0, 5, 5]}, {"box": [0, 0, 900, 5]}]}},
        rf'prompt file {re.escape(str(path))}: image "photo0\.jpg", prompt 2: \(900, 5\) is outside',
    )
    refused({"images": {"photo0.jpg": [{"points": [[5, -3]], "labels": [1]}]}}, r"\(5, -3\) is outside the image of 640x480")
    sized = coco()
    sized["images"][0]["width"] = 641
    refused(
        sized,
        rf"prompt file {re.escape(str(path))} says that .* is 641x480, but the photo that was embedded is 640x480",
    )
    sized["images"][0].update(width=480, height=640)  # as its camera stored it, on its side
    refused(sized, r"480x640, but the photo that was embedded is 640x480 \(photos are read upright, as their EXIF")
    with pytest.raises(InputError, match="prompt file not found"):
        calibration_feeds(folder, prompts=tmp_path / "absent.json")
    with pytest.raises(InputError, match="in memory"):
        calibration_feeds([Image(embedding(0), SIZE)], prompts=path)
