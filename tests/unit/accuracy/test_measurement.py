"""Accuracy figures against numbers worked out by hand, from decoders that say what they are told to."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.fixtures.told import SCORES, SIDE, Told, example, flipped, four, image, three_prompts
from trt_sam.accuracy.examples import EVALUATION_SEED, Example, PromptedImage, embedding_picture, make_examples, scenes
from trt_sam.accuracy.measurement import Measurement, Variant, measure
from trt_sam.accuracy.summary import CLEAR_MARGIN, summarize
from trt_sam.contract import EMBEDDING_SHAPE, LABEL_ABSENT, check_feed, input_specs, output_specs
from trt_sam.errors import InputError
from trt_sam.feeds.scenes import PROMPT_KINDS

if TYPE_CHECKING:
    pass


@pytest.fixture
def measured() -> Measurement:
    return three_prompts()


def test_figures_of_a_variant(measured: Measurement) -> None:
    figures = summarize(measured.variants["other"])
    assert figures.prompts == 3
    assert figures.iou_mean == pytest.approx((1 + 0.8 + 1) / 3)
    assert figures.iou_p5 == pytest.approx(0.8 + 0.1 * 0.2)
    assert figures.iou_min == pytest.approx(0.8)
    assert figures.share_under_095 == pytest.approx(1 / 3)
    assert figures.all_masks_mean == pytest.approx((1 + 0.95 + 1) / 3)
    # The third prompt's own choice is 50 rows instead of 100.
    assert figures.selected_mean == pytest.approx((1 + 0.8 + 0.5) / 3)
    assert (figures.flips, figures.clear_flips) == (1, 0)
    # One of six pairs of the third prompt's scores has changed places.
    assert figures.kendall_tau == pytest.approx((1 + 1 + 4 / 6) / 3)
    # 20 rows of the picture's 192 differ by 2 in one of four masks of one of three prompts; every logit is 1 or -1.
    assert figures.sqnr_db == pytest.approx(10 * math.log10(3 * 4 * 192 / (4 * 20)))
    # Two images: the one that is exact, and the one that is not, whose resamples are 0.9 at worst.
    assert measured.variants["other"]["image"].tolist() == [0, 0, 1]
    assert figures.iou_mean_interval == pytest.approx((0.9, 1.0))
    # At the photo's size the same rows are lost: 80 * 3 of 100 * 3.
    assert figures.full_mean == pytest.approx((1 + 0.8 + 1) / 3, abs=2e-3)
    # Against the truth: selected 1, 0.625 and 0.5; the best of four 1, 1 and 1.
    assert figures.truth_selected == pytest.approx((1 + 50 / 80 + 0.5) / 3)
    assert figures.truth_oracle == pytest.approx(1.0)
    assert measured.reference["truth_selected"].tolist() == pytest.approx([1, 0.5, 1])


def test_the_reference_against_itself_is_perfect(measured: Measurement) -> None:
    figures = summarize(measured.variants["same"])
    assert figures.iou_min == figures.boundary_mean == figures.selected_mean == figures.kendall_tau == 1.0
    assert (figures.flips, figures.share_under_095, figures.sqnr_db) == (0, 0.0, math.inf)


def test_a_flip_is_clear_by_the_scores_of_the_reference() -> None:
    masks = four(10, 100, 50, 20)
    for gap, clear in ((CLEAR_MARGIN / 2, 0), (2 * CLEAR_MARGIN, 1)):
        reference = Told({0: (masks, flipped(2, 0.9 - gap))})
        other = Told({0: (masks, flipped(2, 0.99))})
        figures = summarize(
            measure(reference, [Variant("other", lambda o=other: o)], [example([0], ("click",))]).variants["other"]
        )
        assert (figures.flips, figures.clear_flips) == (1, clear)
        assert figures.truth_selected is None


def test_prompts_by_kind_and_by_size(measured: Measurement) -> None:
    groups = measured.groups()
    assert groups["by_kind"]["click"].tolist() == [True, False, True]
    assert groups["by_kind"]["box"].tolist() == [False, True, False]
    # All three masks have 100 of 256 rows.
    assert {name: rows.tolist() for name, rows in groups["by_size"].items()} == {"large": [True] * 3}
    assert summarize(measured.variants["other"], groups["by_kind"]["box"]).iou_mean == pytest.approx(0.8)


def test_the_worst_masks_are_kept_in_order(measured: Measurement) -> None:
    worst = measured.worst["other"]
    assert [round(each.iou, 6) for each in worst] == [0.8, 1.0]
    assert worst[0].kind == "box"
    assert (int(worst[0].reference.sum()), int(worst[0].other.sum())) == (100 * SIDE, 80 * SIDE)
    # The earlier of equals; without SAM's "not a point".
    assert worst[1].coords.tolist() == [[0.0, 0.0]]
    assert worst[0].image.embedding.size == 0


def test_every_runner_is_closed_again(measured: Measurement) -> None:
    assert Told.open == 0


def test_masks_that_are_not_finite_look_bad() -> None:
    masks = four(10, 100, 50, 20)
    other = Told({0: (np.full_like(masks, np.nan), np.full(4, np.nan, np.float32))})
    figures = summarize(
        measure(Told({0: (masks, SCORES)}), [Variant("nan", lambda: other)], [example([0], ("click",))]).variants["nan"]
    )
    assert (figures.iou_mean, figures.boundary_mean, figures.kendall_tau, figures.sqnr_db) == (0.0, 0.0, 0.0, -math.inf)


def test_what_cannot_be_measured() -> None:
    masks = four(10, 100, 50, 20)
    reference = Told({0: (masks, SCORES)})
    variant = Variant("one", lambda: reference)
    with pytest.raises(InputError, match="no image"):
        measure(reference, [variant], [])
    with pytest.raises(InputError, match="two variants are called one"):
        measure(reference, [variant, variant], [example([0], ("click",))])
    best = Told({0: (masks[:1], SCORES[:1])})
    best.outputs = output_specs(best_mask=True)
    with pytest.raises(InputError, match="selected mask only"):
        measure(reference, [Variant("best", lambda: best)], [example([0], ("click",))])


def test_prompts_are_legal_padded_and_the_same_again() -> None:
    def drawn(images: list[PromptedImage]) -> list[Example]:
        return list(make_examples(images, 7, prompts_per_call=4, seed=3))

    first, second = drawn([image(), image("two")]), drawn([image(), image("two")])
    assert [len(each.kinds) for each in first] == [4, 3, 4, 3]
    assert [kind for each in first[:2] for kind in each.kinds] == [PROMPT_KINDS[i % 3] for i in range(7)]
    for each, again in zip(first, second, strict=True):
        check_feed(each.feed, input_specs(mask_input=True))
        assert all((each.feed[name] == again.feed[name]).all() for name in each.feed)
        assert each.truth is None
    assert (first[0].feed["point_labels"] == LABEL_ABSENT).any()
    assert (first[0].feed["point_coords"][:, :1] != first[2].feed["point_coords"][:, :1]).any()


def test_prompts_stay_those_that_published_figures_were_measured_on() -> None:
    empty = np.zeros(EMBEDDING_SHAPE, np.float32)
    seen = []
    for images in (list(scenes(lambda rgb: empty, 1)), [PromptedImage("a", empty, (480, 640), image().picture)]):
        digest = hashlib.sha256()
        for part in make_examples(images, 9, prompts_per_call=4, seed=5):
            # A sixteenth of a pixel: rounding may differ between machines, another order of drawing moves more.
            digest.update(np.rint(part.feed["point_coords"] * 16).astype("<i4").tobytes())
            digest.update(part.feed["point_labels"].astype("<i4").tobytes())
        seen.append(digest.hexdigest()[:16])
    assert seen == ["924bf4189ece2180", "f8dbad30eb178101"]


def test_scenes_have_the_truth_of_each_prompt() -> None:
    def embed(rgb: Any) -> Any:
        assert rgb.shape == (1024, 1024, 3)
        return np.zeros(EMBEDDING_SHAPE, np.float32)

    (scene,) = scenes(embed, 1)
    assert scene.name == f"scene {EVALUATION_SEED}"
    (part,) = make_examples([scene], 6, prompts_per_call=6)
    assert part.truth is not None
    assert part.truth.shape == (6, SIDE, SIDE)
    for row, kind in enumerate(part.kinds):
        coords = part.feed["point_coords"][row]
        if kind == "box":
            rows, columns = np.nonzero(part.truth[row])
            # Jittered by a few percent of its sides, at most 2 % of the frame.
            assert coords[:2].ravel() == pytest.approx(
                4 * np.array([columns.min(), rows.min(), columns.max(), rows.max()]), abs=32
            )
        else:
            x, y = (coords[0] // 4).astype(int)
            assert part.truth[row][max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].any()


def test_the_picture_of_an_embedding_shows_its_parts() -> None:
    embedding = np.random.default_rng(0).normal(0, 0.1, EMBEDDING_SHAPE).astype(np.float32)
    embedding[0, :100, :, :32] += 1.0
    picture = embedding_picture(embedding)
    assert (picture.shape, picture.dtype) == ((SIDE, SIDE, 3), np.uint8)
    left, right = picture[:, :128, 0].astype(float), picture[:, 128:, 0].astype(float)
    assert abs(left.mean() - right.mean()) > 100
