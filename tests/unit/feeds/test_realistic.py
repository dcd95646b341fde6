"""Prompts drawn on what a decoder segments: kinds, places and masks; the decoder here draws a disc around each click."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from helpers import make_embedding

from trt_sam.contract import LABEL_ABSENT
from trt_sam.feeds.realistic import CALIBRATION, JITTER, PATTERN, DrawnPrompt, draw_realistic, pattern, picture_part, shares

SIZE = (480, 640)
RADIUS = 20


def disc(click: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    y, x = np.mgrid[:256, :256] + 0.5
    return (RADIUS - np.hypot(x - click[0] / 4, y - click[1] / 4)).astype(np.float32)


def decode(feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Mask 2 is the disc and scored best but for mask 0, which SAM's rule does not take for one click."""
    masks = np.full((len(feed["point_labels"]), 4, 256, 256), -1.0, np.float32)
    masks[:, 2] = [disc(coords[0]) for coords in feed["point_coords"]]
    return {"low_res_masks": masks, "iou_predictions": np.tile(np.float32([0.99, 0.1, 0.9, 0.2]), (len(masks), 1))}


def drawn(count: int = 64, seed: int = 0, **options: Any) -> tuple[DrawnPrompt, ...]:
    return draw_realistic(np.random.default_rng(seed), make_embedding(0), SIZE, count, decode, **options)


def inside(prompt: DrawnPrompt, place: npt.NDArray[Any]) -> bool:
    return bool(np.hypot(*(place - prompt.coords[0])) <= 4 * RADIUS + 4)


def test_kinds_come_in_the_stated_shares_and_inside_the_picture() -> None:
    prompts = drawn(earlier_masks=True)
    assert shares([each.kind for each in prompts]) == {kind: PATTERN.count(kind) / 16 for kind in sorted(set(PATTERN))}
    for each in prompts:
        assert each.coords.dtype == each.labels.dtype == np.float32
        assert (each.coords >= 0).all()
        assert (each.coords <= (1024, 768)).all()

    kinds = [each.kind for each in drawn(earlier_masks=True, order=CALIBRATION)]
    assert shares(kinds) == {kind: CALIBRATION.count(kind) / 16 for kind in sorted(set(PATTERN))}


def test_boxes_are_around_what_is_segmented_with_their_sides_moved_a_little() -> None:
    boxes = [each for each in drawn() if each.kind == "box"]
    assert all(each.labels.tolist() == [2, 3] for each in boxes)
    # Those that the picture's border does not cut.
    whole = [each for each in boxes if (each.coords > 24).all() and (each.coords[1] < (1000, 744)).all()]
    assert len(whole) > 3
    for each in whole:
        width, height = each.coords[1] - each.coords[0]
        assert abs(width - 8 * RADIUS) <= 2 * JITTER * 8 * RADIUS + 8
        assert abs(height - 8 * RADIUS) <= 2 * JITTER * 8 * RADIUS + 8
    assert len({tuple(each.coords[1] - each.coords[0]) for each in whole}) == len(whole)


def test_further_clicks_lie_on_the_same_object() -> None:
    for each in (each for each in drawn() if each.kind == "clicks"):
        assert each.labels.tolist() == [1] * (len(each.labels) - 1) + [-1]
        assert 3 <= len(each.labels) <= 5
        assert all(inside(each, place) for place in each.coords[1:-1])


def test_refinements_bring_the_mask_and_a_click_on_it() -> None:
    prompts = [each for each in drawn(earlier_masks=True) if each.kind == "refinement"]
    for each in prompts:
        assert each.mask is not None
        np.testing.assert_allclose(each.mask, disc(each.coords[0]), atol=0.3)
        assert inside(each, each.coords[1])
        assert each.labels.tolist() in ([1, 1, -1], [1, 0, -1])
    assert all(each.mask is None for each in drawn() if each.kind != "refinement")
    assert "refinement" not in {each.kind for each in drawn()}
    assert pattern(earlier_masks=False).count("clicks") == PATTERN.count("clicks") + PATTERN.count("refinement")


def test_absent_points_stand_behind_a_click() -> None:
    (each, *_) = (each for each in drawn() if each.kind == "padded")
    assert each.labels[:2].tolist() == [1, -1]
    assert set(each.labels[2:].tolist()) == {LABEL_ABSENT}


def test_the_same_seed_gives_the_same_prompts_and_another_one_others() -> None:
    first, again, other = drawn(16), drawn(16), drawn(16, seed=1)
    assert all(np.array_equal(a.coords, b.coords) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.coords, b.coords) for a, b in zip(first, other, strict=True))


def test_a_picture_in_which_nothing_is_segmented_is_prompted_too() -> None:
    def nothing(feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        return {**decode(feed), "low_res_masks": np.full((len(feed["point_labels"]), 4, 256, 256), -1.0, np.float32)}

    prompts = draw_realistic(np.random.default_rng(0), make_embedding(0), (5, 640), 32, nothing, earlier_masks=True)
    assert len(prompts) == 32
    assert all(np.isfinite(each.coords).all() for each in prompts)


def test_the_part_that_shows_the_picture() -> None:
    assert picture_part((480, 640)) == (slice(0, 192), slice(0, 256))
    assert picture_part((1000, 10)) == (slice(0, 256), slice(0, 3))
