"""Accuracy figures against numbers worked out by hand, from decoders that say what they are told to."""

from __future__ import annotations

import hashlib
import html.parser
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from trt_sam.accuracy.examples import EVALUATION_SEED, Example, PromptedImage, embedding_picture, make_examples, scenes
from trt_sam.accuracy.measurement import Measurement, Variant, measure
from trt_sam.accuracy.page import accuracy_page, worst_strip
from trt_sam.accuracy.report import make_report, markdown
from trt_sam.accuracy.summary import CLEAR_MARGIN, summarize
from trt_sam.contract import EMBEDDING_SHAPE, LABEL_ABSENT, check_feed, input_specs, output_specs
from trt_sam.errors import InputError
from trt_sam.feeds.scenes import PROMPT_KINDS

if TYPE_CHECKING:
    from typing_extensions import Self

SIDE = 256
SCORES = np.array([0.1, 0.9, 0.5, 0.3], np.float32)
"""SAM's rule takes mask 1 here, for up to two points."""


class Told:
    """A runner whose answer to a prompt is looked up by the prompt's x coordinate; counts how often it is open."""

    open = 0

    def __init__(self, answers: Mapping[int, tuple[Any, Any]]) -> None:
        self.inputs, self.outputs = input_specs(), output_specs()
        self._answers = answers

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        picked = [self._answers[int(x)] for x in feed["point_coords"][:, 0, 0]]
        return {"low_res_masks": np.stack([m for m, _ in picked]), "iou_predictions": np.stack([s for _, s in picked])}

    def __enter__(self) -> Self:
        Told.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        Told.open -= 1


def mask(rows: int) -> Any:
    """Logits [256, 256] that are above 0 in the first `rows` rows."""
    return np.where(np.arange(SIDE)[:, None] < rows, 1.0, -1.0).astype(np.float32).repeat(SIDE, axis=1)


def four(*rows: int) -> Any:
    return np.stack([mask(each) for each in rows])


def image(name: str = "one") -> PromptedImage:
    return PromptedImage(name, np.zeros(EMBEDDING_SHAPE, np.float32), (768, 1024), np.zeros((SIDE, SIDE, 3), np.uint8))


def example(places: list[int], kinds: tuple[str, ...], truth: Any = None) -> Example:
    coords = np.zeros((len(places), 2, 2), np.float32)
    coords[:, 0, 0] = places
    labels = np.tile(np.array([1, -1], np.float32), (len(places), 1))
    return Example({"point_coords": coords, "point_labels": labels}, kinds, image(), truth)


def flipped(to: int, score: float) -> Any:
    scores = SCORES.copy()
    scores[to] = score
    return scores


@pytest.fixture
def measured() -> Measurement:
    """Three prompts: one exact, one with a smaller mask, one that selects mask 2 instead of mask 1."""
    masks = four(10, 100, 50, 20)
    reference = Told({0: (masks, SCORES), 1: (masks, SCORES), 2: (masks, flipped(2, 0.895))})
    other = Told({0: (masks, SCORES), 1: (four(10, 80, 50, 20), SCORES), 2: (masks, flipped(2, 0.95))})
    truth = np.stack([mask(100) > 0, mask(50) > 0, mask(100) > 0])
    parts = [example([0, 1], ("click", "box"), truth[:2]), example([2], ("click",), truth[2:])]
    return measure(
        reference, [Variant("same", lambda: reference), Variant("other", lambda: other)], parts, block=1, keep_worst=2
    )


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


class Tags(html.parser.HTMLParser):
    """Whether every tag is closed, and what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.pictures += tag == "img"
        for name, value in attrs:
            if name in ("src", "href", "data") and not str(value).startswith("data:"):
                self.fetched.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(measured: Measurement) -> str:
    pytest.importorskip("PIL")
    report = make_report(measured, title="A <b>title</b>", conditions={"a & b": "<script>"}, descriptions={"other": "x < y"})
    return accuracy_page(report, measured.worst)


def test_the_page_is_whole_and_fetches_nothing(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert (tags.open, tags.fetched, tags.pictures) == ([], [], 4)
    assert "<script" not in page
    assert "url(" not in page
    assert "x &lt; y" in page
    assert page.count("<svg") == 3
    assert "nan" not in page.lower().replace("nano", "")


def test_the_report_is_strict_json_and_a_table(measured: Measurement) -> None:
    report = make_report(measured, title="Accuracy", conditions={"checkpoint": "none"}, facts={"other": {"ranges": {"x": 1.0}}})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(json.dumps(report.to_dict()), parse_constant=refuse)
    same, other = data["variants"]
    assert same["overall"]["sqnr_db"] == "inf"
    assert other["overall"]["iou_min"] == pytest.approx(0.8)
    assert other["by_kind"]["box"]["prompts"] == 1
    assert other["facts"] == {"ranges": {"x": 1.0}}
    assert other["curve"][-1] == pytest.approx(0.8)
    assert len(other["curve"]) == len(data["curve_percentiles"])
    text = markdown(report)
    assert "| other | 0.9333 | 0.9000 to 1.0000 | 0.8200 | 0.804 | 0.800 | 33.3 % |" in text
    assert "selected 0.8333, oracle 1.0000" in text
    assert "\n- Truth: mean IoU with the exact mask" in text


def test_the_method_explains_no_column_that_is_not_there() -> None:
    masks = Told({0: (four(10, 100, 50, 20), flipped(2, 0.9))})
    known = measure(masks, [Variant("same", lambda: masks)], [example([0], ("click",))])
    text = markdown(make_report(known, title="Accuracy", conditions={}))
    assert "truth" not in text.lower()


def test_the_strip_shows_what_was_lost(measured: Measurement) -> None:
    pytest.importorskip("PIL")
    strip = worst_strip(measured.worst["other"][0])
    assert strip.shape == (SIDE, 4 * SIDE + 3 * 8, 3)
    difference = strip[:, -SIDE:]
    red = (difference == (215, 65, 60)).all(axis=-1)
    assert int(red.sum()) == 20 * SIDE
    assert red[80:100].all()
