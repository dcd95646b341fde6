"""The searches of `auto` and `sensitivity`, over decoders whose accuracy is planted: no graph runs here.

The real thing is run by tests/integration/test_sensitivity.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import calibrators.auto
import calibrators.sensitivity
from calibrators.auto import TOLERANCE, Choice, better, choose
from calibrators.sensitivity import Goal, SensitivityReport, rank_groups
from calibrators.trials import Score, trial_feeds
from calibrators.variants import VariantName, parse_variant
from trt_sam.errors import InputError
from trt_sam.quantize.share import Product

GROUPS = {"one": "A", "two": "A", "three": "B", "four": "B"}
PRODUCTS = tuple(Product(f"{g}/MatMul", tier, g, f"{g} input", f"{g} weight", None, 100) for g, tier in GROUPS.items())
RANGES = {
    "entropy": {f"{group} input": 1.0 for group in GROUPS},
    "mse": {f"{group} input": 1.001 for group in GROUPS},
    "max": {f"{group} input": 2.0 for group in GROUPS},
}


class Planted:
    """Stands for both the graph and its trials: the IoU is 1 less a cost per quantized group and range."""

    def __init__(self, costs: Mapping[str, Mapping[float, float]], flips: Mapping[str, int] | None = None) -> None:
        self.costs, self.flips = costs, flips or {}
        self.runs = 0
        self.seen: list[dict[str, float]] = []

    def score(self, quantized: dict[str, float]) -> Score:
        self.runs += 1
        self.seen.append(quantized)
        iou = 1.0 - sum(self.costs[group].get(amax, 0.0) for group, amax in quantized.items())
        flips = sum(self.flips.get(group, 0) for group in quantized)
        return Score(iou, iou - 0.01, flips, flips, 100)


@pytest.fixture(autouse=True)
def _quantized_graphs_are_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def insert(
        model: Any, products: tuple[Product, ...], amax: Mapping[str, float], precision: str, **_: Any
    ) -> dict[str, float]:
        assert precision == "int8"
        return {product.group: amax[product.activation] for product in products}

    for module in (calibrators.auto, calibrators.sensitivity):
        monkeypatch.setattr(module, "insert_qdq", insert)


def chosen(costs: Mapping[str, Mapping[float, float]]) -> tuple[Choice, Planted]:
    planted = Planted(costs)
    return choose(None, PRODUCTS, RANGES, planted), planted  # type: ignore[arg-type]


def test_each_group_gets_the_range_that_serves_it() -> None:
    wide = {1.0: 0.002, 1.001: 0.002, 2.0: 0.0}
    narrow = {1.0: 0.0, 1.001: 0.0, 2.0: 0.0015}
    choice, planted = chosen({"one": wide, "two": narrow, "three": narrow, "four": wide})
    assert {each.group: each.calibrator for each in choice.groups} == {
        "one": "max",
        "two": "entropy",
        "three": "entropy",
        "four": "max",
    }
    assert choice.amax == {"one input": 2.0, "two input": 1.0, "three input": 1.0, "four input": 2.0}
    assert choice.score.mean_iou == 1.0
    assert choice.left_out == ()
    assert choice.trials == planted.runs
    # Ranges that hardly differ are tried once per group, and once for all groups alike.
    assert sum(1.001 in seen.values() for seen in planted.seen) == 1


def test_equals_go_to_the_first_calibrator() -> None:
    choice, _ = chosen({group: {1.0: 0.00002, 1.001: 0.0, 2.0: 0.00001} for group in GROUPS})
    assert {each.calibrator for each in choice.groups} == {"entropy"}


@pytest.mark.parametrize(
    ("changes", "wins"),
    [
        ({"noise": 0.016}, True),
        ({"noise": 0.0175}, False),  # a tie
        ({"noise": 0.03, "mean_iou": 1.0, "p5_iou": 1.0}, False),  # one unstable mask that happened to hold
        ({"noise": 0.016, "mean_iou": 0.9985}, True),  # one that happened not to
        ({"noise": 0.016, "mean_iou": 0.99}, False),  # masks are lost
        ({"noise": 0.016, "clear_flips": 1}, False),
        ({"noise": None, "mean_iou": 1.0}, True),
    ],
)
def test_less_noise_at_the_edges_is_better_where_masks_take_no_harm(changes: dict[str, Any], wins: bool) -> None:
    incumbent = Score(0.999, 0.995, 0, 0, 32, 0.99, 0.02)
    assert better(dataclasses.replace(incumbent, **changes), incumbent) is wins
    assert not better(incumbent, incumbent)


def test_a_group_that_costs_too_much_stays_float16() -> None:
    dear = dict.fromkeys((1.0, 1.001, 2.0), TOLERANCE + 0.001)
    cheap = dict.fromkeys((1.0, 1.001, 2.0), TOLERANCE / 2)
    choice, _ = chosen({"one": cheap, "two": dear, "three": cheap, "four": {}})
    assert choice.left_out == ("two",)
    assert "two input" not in choice.amax
    assert choice.score.mean_iou == pytest.approx(1 - TOLERANCE)
    assert [each.cost for each in choice.groups] == pytest.approx([TOLERANCE / 2, TOLERANCE + 0.001, TOLERANCE / 2, 0.0])
    assert {product.group for product in choice.kept(PRODUCTS)} == {"one", "three", "four"}
    assert "two stays in float16" in choice.notes[0]


@pytest.mark.parametrize(
    ("work", "noise", "left_out"),
    [
        (5, 0.09, ("four",)),
        (100, 0.09, ()),  # too much of the work
        (5, 0.01, ()),  # no louder than the others
    ],
)
def test_a_small_group_that_makes_most_of_the_noise_stays_float16(work: int, noise: float, left_out: tuple[str, ...]) -> None:
    class Noisy(Planted):
        def score(self, quantized: dict[str, float]) -> Score:
            loudness = {"one": 0.01, "two": 0.01, "three": 0.01, "four": noise}
            total = sum(loudness[group] ** 2 for group in quantized) ** 0.5
            return dataclasses.replace(super().score(quantized), noise=total)

    products = (*PRODUCTS[:3], dataclasses.replace(PRODUCTS[3], multiply_adds=work))
    choice = choose(None, products, RANGES, Noisy({group: {} for group in GROUPS}))  # type: ignore[arg-type]
    assert choice.left_out == left_out
    assert [note.split()[:3] for note in choice.notes] == [["four", "stays", "in"] for _ in left_out]


def test_a_tier_goes_when_its_groups_together_cost_too_much() -> None:
    half = dict.fromkeys((1.0, 1.001, 2.0), 0.6 * TOLERANCE)
    choice, _ = chosen({"one": half, "two": half, "three": half, "four": half})
    # Tier A, the first, is never asked to go: what is left is A.
    assert choice.left_out == ("three", "four")
    assert "tier B stays in float16" in choice.notes[0]


def test_the_last_group_stays_whatever_it_costs() -> None:
    choice, _ = chosen(dict.fromkeys(GROUPS, dict.fromkeys((1.0, 1.001, 2.0), 0.1)))
    assert len(choice.left_out) == 3
    assert "as the last group" in choice.notes[-1]


def ranked(costs: Mapping[str, float], flips: Mapping[str, int] | None = None, goal: Goal | None = None) -> SensitivityReport:
    planted = Planted({group: {1.0: cost} for group, cost in costs.items()}, flips)
    return rank_groups(None, PRODUCTS, RANGES["entropy"], planted, goal=goal)  # type: ignore[arg-type]


def test_groups_are_ranked_by_cost_then_flips() -> None:
    report = ranked({"one": 0.001, "two": 0.004, "three": 0.001, "four": 0.0}, {"three": 1})
    assert [row.group for row in report.groups] == ["two", "three", "one", "four"]
    assert [row.cost for row in report.groups] == pytest.approx([0.004, 0.001, 0.001, 0.0])
    worst = report.groups[0]
    assert (worst.alone.mean_iou, worst.left_out.mean_iou if worst.left_out else None) == pytest.approx((0.996, 0.998))
    assert report.all_groups.mean_iou == pytest.approx(0.994)
    assert (report.keep_fp16, report.goal_reached) == ((), True)


def test_groups_are_given_back_until_the_goal_is_reached() -> None:
    report = ranked({"one": 0.02, "two": 0.006, "three": 0.005, "four": 0.001}, goal=Goal(0.993, 0.9, 1.0))
    assert report.keep_fp16 == ("one", "two")
    assert report.goal_reached
    assert report.kept is not None
    assert report.kept.mean_iou == pytest.approx(0.994)


def test_flips_count_for_the_goal() -> None:
    report = ranked({"one": 0.002, "two": 0.0, "three": 0.0, "four": 0.0}, {"one": 2}, Goal(0.9, 0.9, 0.01))
    assert report.keep_fp16 == ("one",)


def test_a_goal_beyond_reach_says_so() -> None:
    report = ranked(dict.fromkeys(GROUPS, 0.02), goal=Goal(0.999, 0.9, 1.0))
    assert set(report.keep_fp16) == set(GROUPS)
    assert (report.kept, report.goal_reached) == (None, False)


def feed(image: int, labels: list[list[float]]) -> dict[str, Any]:
    shape = (1, 256, 64, 64)
    rows = len(labels)
    return {
        "image_embeddings": np.full(shape, image, np.float32),
        "point_coords": np.zeros((rows, len(labels[0]), 2), np.float32),
        "point_labels": np.array(labels, np.float32),
    }


def test_trial_feeds_take_some_of_every_feed_of_an_image() -> None:
    clicks, boxes = [[1, -1]] * 6, [[1, 0, -1]] * 2
    feeds = [feed(0, clicks), feed(0, boxes), feed(1, clicks), feed(2, clicks)]
    cut = trial_feeds([(each, (768, 1024)) for each in feeds], images=2, prompts=5)
    assert [(float(each["image_embeddings"].flat[0]), len(each["point_labels"])) for each, _ in cut] == [(0, 3), (0, 2), (1, 5)]
    assert {size for _, size in cut} == {(768, 1024)}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("int8-entropy-A", VariantName("int8", "entropy", ("A",))),
        ("fp8-max-BA-plain", VariantName("fp8", "max", ("A", "B"), True)),
    ],
)
def test_variant_names(text: str, name: VariantName) -> None:
    assert parse_variant(text) == name
    assert parse_variant(str(name)) == name
    assert (name.quantization.shift, name.quantization.smooth_alpha is None) == (not name.plain, name.plain)


@pytest.mark.parametrize(
    "text", ["int8", "int4-max-A", "int8-best-A", "int8-max-", "int8-max-AA", "int8-max-D", "int8-max-A-fast"]
)
def test_names_that_are_no_variants(text: str) -> None:
    with pytest.raises(InputError, match="is unknown; write"):
        parse_variant(text)


def test_progress_never_promises_too_little() -> None:
    told: list[tuple[int, int]] = []

    def progress(phase: str, done: int, most: int) -> None:
        told.append((done, most))

    planted = Planted({group: {1.0: 0.001, 2.0: 0.001} for group in GROUPS})
    choose(None, PRODUCTS, RANGES, planted, progress=progress)  # type: ignore[arg-type]
    assert [done for done, _ in told] == list(range(1, planted.runs + 1))
    assert told[-1][0] <= told[-1][1]
