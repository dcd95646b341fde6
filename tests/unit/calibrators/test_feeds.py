"""Calibration feeds: what they give and what they depend on."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from calibration_data import ENCODER, SIZE, write
from helpers import make_embedding as embedding

from calibrators.feeds import CalibrationFeeds, FeedOptions, calibration_feeds
from calibrators.prompts import PATTERN
from calibrators.trials import TRIAL_IMAGES, trial_feeds
from trt_sam.contract import LABEL_ABSENT, check_feed, input_specs
from trt_sam.errors import InputError
from trt_sam.feeds.feeds import Image
from trt_sam.feeds.realistic import CALIBRATION, pattern, shares
from trt_sam.imaging.embeddings import Embedding, save_embedding


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


def test_ranges_see_more_refinements_than_people_give(folder: Path) -> None:
    def decode(feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        rows = len(feed["point_labels"])
        masks = np.full((rows, 4, 256, 256), -1.0, np.float32)
        masks[:, :, 40:90, 40:90] = 1.0
        return {"low_res_masks": masks, "iou_predictions": np.ones((rows, 4), np.float32)}

    for mask_input, order in ((True, CALIBRATION), (False, pattern(earlier_masks=False))):
        feeds = calibration_feeds(folder, FeedOptions(prompts_per_image=16, mask_input=mask_input), decode=decode)
        assert feeds.to_dict()["shares"] == shares(order)
        assert feeds.prompts_from == "masks"


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
        return {feed["image_embeddings"].tobytes() for feed, _ in trial_feeds(held_out.with_sizes())}

    assert tried(images) == tried(images[::-1])
    assert len(tried(images)) == TRIAL_IMAGES
