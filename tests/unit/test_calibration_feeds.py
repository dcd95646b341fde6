"""Calibration feeds: what they give, what they depend on, and every fault of their files."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from calibrators.feeds import CalibrationFeeds, FeedOptions, calibration_feeds
from calibrators.prompts import PATTERN
from calibrators.trials import TRIAL_IMAGES, trial_feeds
from trt_sam.compare_feeds import Image
from trt_sam.contract import EMBEDDING_SHAPE, LABEL_ABSENT, check_feed, input_specs
from trt_sam.embeddings import Embedding, save_embedding
from trt_sam.errors import InputError
from trt_sam.predictor import Predictor

SIZE = (480, 640)
ENCODER = "ab" * 32


def embedding(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32)


def write(folder: Path, seeds: range = range(3), **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        fields: dict[str, Any] = {"original_size": SIZE, "file_name": f"photo{seed}.jpg", "encoder_sha256": ENCODER, **changes}
        save_embedding(folder / f"photo{seed}.npz", Embedding(embedding(seed), **fields))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("feeds") / "embeddings")


def same(first: CalibrationFeeds, second: CalibrationFeeds) -> bool:
    one, two = list(first), list(second)
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a) for a, b in zip(one, two, strict=True)
    )


# --- What they give ---


@pytest.mark.parametrize("mask_input", [False, True])
def test_feeds_fit_the_contract_and_are_the_same_every_time(folder: Path, mask_input: bool) -> None:
    feeds = calibration_feeds(folder, FeedOptions(prompts_per_image=16, mask_input=mask_input), encoder_sha256=ENCODER)
    assert (feeds.num_images, feeds.num_prompts, len(feeds)) == (3, 48, len(list(feeds)))
    assert [Path(name).stem for name in feeds.names] == ["photo0", "photo1", "photo2"]
    with_mask = 0
    for feed in feeds:
        check_feed(feed, input_specs(mask_input=mask_input))
        assert 1 <= len(feed["point_labels"]) <= feeds.options.prompts_per_feed
        if mask_input:
            with_mask += int(feed["has_mask_input"].sum())
            used = feed["has_mask_input"].astype(bool)
            assert not feed["mask_input"][~used].any()
            assert all(mask.min() < 0 < mask.max() for mask in feed["mask_input"][used])
    assert sum(len(feed["point_labels"]) for feed in feeds) == 48
    assert with_mask == (48 // 4 if mask_input else 0)
    assert same(feeds, feeds)
    assert same(feeds, calibration_feeds(folder, feeds.options))


def test_kinds_come_in_the_stated_proportions_and_inside_the_picture(folder: Path) -> None:
    feeds = calibration_feeds(folder, FeedOptions(prompts_per_image=32))
    kinds = feeds.to_dict()["prompts_by_kind"]
    assert (
        kinds
        == {kind: 12 * PATTERN.count(kind) for kind in set(PATTERN)}
        == {"click": 36, "box": 24, "clicks": 24, "padded": 12}
    )
    absent = 0
    for feed in feeds:
        labels, coords = feed["point_labels"], feed["point_coords"]
        absent += int((labels == LABEL_ABSENT).any(axis=1).sum())
        # 480x640 becomes 768x1024 in the frame; tokens that are not points are at the origin.
        assert coords.min() >= 0
        assert coords[..., 0].max() <= 1024
        assert coords[..., 1].max() <= 768
        assert (labels != LABEL_ABSENT).any(axis=1).all()
    assert absent == 12


def test_images_in_memory_with_objects_are_prompted_on_them() -> None:
    mask = np.zeros((1, 1024, 1024), np.bool_)
    mask[0, 200:300, 500:700] = True
    feeds = calibration_feeds([Image(embedding(0), (1024, 1024), mask)], FeedOptions(prompts_per_image=8))
    clicked = [
        feed["point_coords"][row, 0]
        for feed in feeds
        for row in range(len(feed["point_labels"]))
        if feed["point_labels"][row, 0] == 1
    ]
    assert len(clicked) == 6
    assert all(500 <= x < 700 and 200 <= y < 300 for x, y in clicked)


def test_a_feed_is_the_readers_own(folder: Path) -> None:
    image = Image(embedding(0), SIZE)
    feeds = calibration_feeds([image])
    before = list(feeds)
    for feed in feeds:
        for array in feed.values():
            array[...] = 0
    assert np.array_equal(image.embedding, embedding(0))
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(before, feeds, strict=True) for name in a)


def test_bare_arrays_are_taken_too(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    np.save(tmp_path / "a.npy", embedding(0))
    save_file({"image_embeddings": embedding(1)}, tmp_path / "b.safetensors")
    (tmp_path / "notes.txt").write_text("not an embedding")
    feeds = calibration_feeds(tmp_path)
    assert [Path(name).name for name in feeds.names] == ["a.npy", "b.safetensors"]
    first = next(iter(feeds))
    assert np.array_equal(first["image_embeddings"], embedding(0))


def test_one_embedding_is_in_memory_at_a_time(tmp_path: Path) -> None:
    write(tmp_path, range(12))
    feeds = calibration_feeds(tmp_path, FeedOptions(prompts_per_image=2))
    tracemalloc.start()
    for _ in feeds:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Twelve embeddings are 48 MiB. One is read, checked for NaN, copied into the feed, with the feed before it still held.
    assert peak < 24 << 20


# --- What they depend on ---


def test_prompts_depend_on_embedding_and_seed_alone(tmp_path: Path, folder: Path) -> None:
    options = FeedOptions(prompts_per_image=4)
    whole = calibration_feeds(folder, options)
    save_embedding(tmp_path / "renamed.npz", Embedding(embedding(1), SIZE, "other.jpg"))
    alone = list(calibration_feeds(tmp_path, options))
    inside = [feed for feed in whole if np.array_equal(feed["image_embeddings"], embedding(1))]
    assert len(alone) == len(inside)
    for a, b in zip(alone, inside, strict=True):
        assert np.array_equal(a["point_coords"], b["point_coords"])
    assert not same(whole, calibration_feeds(folder, FeedOptions(prompts_per_image=4, seed=1)))


def test_fingerprints_tell_feeds_apart(tmp_path: Path, folder: Path) -> None:
    base = calibration_feeds(folder).fingerprint
    assert len(base) == 64
    assert base == calibration_feeds(folder).fingerprint
    images = [Image(embedding(seed), SIZE) for seed in range(3)]
    assert base == calibration_feeds(images).fingerprint
    others = [
        calibration_feeds(folder, FeedOptions(seed=1)),
        calibration_feeds(folder, FeedOptions(prompts_per_image=15)),
        calibration_feeds(folder, FeedOptions(mask_input=True)),
        calibration_feeds(images[:2]),
        calibration_feeds(images[::-1]),
        calibration_feeds([*images[:2], Image(np.nextafter(images[2].embedding, np.float32(9)), SIZE)]),
    ]
    assert len({base, *(feeds.fingerprint for feeds in others)}) == 1 + len(others)


def test_split_by_image(tmp_path: Path) -> None:
    images = [Image(embedding(seed), SIZE) for seed in range(8)]
    feeds = calibration_feeds(images, FeedOptions(prompts_per_image=2))
    rest, held_out = feeds.split(0.25)
    assert (rest.num_images, held_out.num_images) == (6, 2)
    assert set(rest.names).isdisjoint(held_out.names)
    assert len({feeds.fingerprint, rest.fingerprint, held_out.fingerprint}) == 3
    assert list(rest.names) == [name for name in feeds.names if name in rest.names]

    # Not a matter of the order or the names.
    def shown(part: CalibrationFeeds) -> set[bytes]:
        return {feed["image_embeddings"].tobytes() for feed in part}

    assert shown(calibration_feeds(images[::-1], feeds.options).split(0.25)[1]) == shown(held_out)
    for share in (0.01, 0.99):
        assert all(part.num_images >= 1 for part in feeds.split(share))
    # The same photo twice is on one side only.
    doubled = calibration_feeds([*images[:2], *images[:2]], feeds.options).split(0.5)
    assert [part.num_images for part in doubled] == [2, 2]
    assert shown(doubled[0]).isdisjoint(shown(doubled[1]))
    for lonely in (images[:1], [images[0], images[0]]):
        with pytest.raises(InputError, match="1 different image"):
            calibration_feeds(lonely).split()
    with pytest.raises(InputError, match="held_out is 1"):
        feeds.split(1)


def test_what_auto_tries_does_not_depend_on_the_order_of_many_images() -> None:
    images = [Image(embedding(seed), SIZE) for seed in range(20)]

    def tried(order: list[Image]) -> set[bytes]:
        rest, held_out = calibration_feeds(order, FeedOptions(prompts_per_image=2)).split(0.5, most=TRIAL_IMAGES)
        # None is held out in vain.
        assert (rest.num_images, held_out.num_images) == (20 - TRIAL_IMAGES, TRIAL_IMAGES)
        return {feed["image_embeddings"].tobytes() for feed in trial_feeds(held_out)}

    assert tried(images) == tried(images[::-1])
    assert len(tried(images)) == TRIAL_IMAGES


# --- The user's prompts ---


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


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": 7, "file_name": "val/photo0.jpg", "height": 480, "width": 640}, {"id": 9, "file_name": "photo2.png"}],
        "annotations": [
            {"image_id": 7, "bbox": [10, 20, 100, 50], "segmentation": [[1, 2]]},
            {"image_id": 7, "bbox": [0, 0, 640.4, 480.4], "iscrowd": 0},
            {"image_id": 7, "bbox": [5, 5, 9, 9], "iscrowd": 1},
            {"image_id": 9, "bbox": [5, 5, 0, 9]},
            {"image_id": 9, "bbox": [5, 5, 7, 9]},
        ],
        **changes,
    }


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


# --- Faults ---


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
        (np.zeros((1, 256, 32, 32), np.float32), "must be float32"),
        (np.ones(EMBEDDING_SHAPE, np.float64), "must be float32"),
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
        r"photo0\.jpg, prompt 2: \(900, 5\) is outside",
    )
    refused({"images": {"photo0.jpg": [{"points": [[5, -3]], "labels": [1]}]}}, r"\(5, -3\) is outside the image of 640x480")
    sized = coco()
    sized["images"][0]["width"] = 641
    refused(sized, "641x480, but .* is of a photo of 640x480")
    with pytest.raises(InputError, match="prompt file not found"):
        calibration_feeds(folder, prompts=tmp_path / "absent.json")
    with pytest.raises(InputError, match="in memory"):
        calibration_feeds([Image(embedding(0), SIZE)], prompts=path)
