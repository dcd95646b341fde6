"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trt_sam.accuracy.metrics import (
    best_masks,
    boundary_iou,
    decibels,
    flip_rate,
    kendall_tau,
    mask_boundary,
    mask_iou,
    powers,
    relative_error,
    selection_scores,
    sqnr_db,
)

NAN, INF = float("nan"), float("inf")


def test_iou_is_counted_per_mask_above_the_threshold() -> None:
    first = np.array([[[1, 1], [-1, 0]], [[-1, -1], [-1, -1]], [[3, -1], [-1, -1]]], np.float32)
    second = np.array([[[1, -1], [-1, 2]], [[-2, -1], [-1, 0]], [[-1, 3], [-1, -1]]], np.float32)
    # 1 of 3 pixels; both empty (0 itself is outside); disjoint.
    assert mask_iou(first, second).tolist() == [1 / 3, 1.0, 0.0]
    assert mask_iou(first, second, threshold=-5.0).tolist() == [1.0, 1.0, 1.0]
    assert mask_iou(first[:1], np.full((1, 2, 2), NAN)).tolist() == [0.0]


def test_relative_error_is_in_terms_of_the_largest_reference() -> None:
    reference = np.array([-8.0, 1.0], np.float32)
    assert relative_error(reference, np.array([-8.0, 3.0], np.float32)) == 0.25
    assert relative_error(reference, reference) == 0.0
    assert relative_error(np.array([0.5]), np.array([0.75]), floor=1.0) == 0.25
    assert relative_error(np.zeros(2), np.zeros(2)) == 0.0
    assert relative_error(np.zeros(2), np.ones(2)) == INF


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_is_never_a_small_error(bad: float) -> None:
    good = np.array([1.0, 2.0])
    assert relative_error(good, np.array([1.0, bad])) == INF
    assert relative_error(np.array([1.0, bad]), good) == INF
    assert relative_error(np.array([1.0, bad]), np.array([1.0, bad])) == INF
    assert sqnr_db(good, np.array([1.0, bad])) == -INF


def test_half_precision_differences_do_not_overflow() -> None:
    big = np.array([60000.0], np.float16)
    assert relative_error(big, -big) == 2.0
    assert sqnr_db(big, np.array([54016.0], np.float16)) == pytest.approx(20.0, abs=0.1)


def test_sqnr_is_ten_times_the_logarithm_of_the_power_ratio() -> None:
    reference = np.array([3.0, 4.0])
    assert sqnr_db(reference, reference + np.array([0.03, 0.04])) == pytest.approx(40.0)
    assert sqnr_db(reference, reference) == INF
    assert sqnr_db(np.zeros(2), reference) == -INF


def test_selection_follows_the_rule_of_sam() -> None:
    scores = np.array([[0.9, 0.1, 0.5, 0.2]] * 3, np.float32)
    labels = np.array([[1, -1, -2, -2], [1, 0, 1, -2], [2, 3, -2, -2]], np.float32)
    assert best_masks(scores, labels).tolist() == [2, 0, 2]
    assert selection_scores(scores, labels)[1].tolist() == pytest.approx([500.9, 0.1, 0.5, 0.2])


def test_the_exported_rule_selects_the_same() -> None:
    torch = pytest.importorskip("torch")
    from trt_sam.graph.export import select_best

    rng = np.random.default_rng(4)
    scores = rng.uniform(-0.2, 1.1, (200, 4)).astype(np.float32)
    labels = rng.choice([-2, -1, 0, 1, 2, 3], (200, 6)).astype(np.float32)
    masks = np.arange(800, dtype=np.float32).reshape(200, 4, 1, 1)
    chosen, _ = select_best(*(torch.from_numpy(a) for a in (masks, scores, labels)))
    assert (chosen.flatten().numpy() - 4 * np.arange(200)).tolist() == best_masks(scores, labels).tolist()


def test_flip_rate_is_a_share_of_prompts() -> None:
    assert flip_rate(np.array([1, 2, 3, 0]), np.array([1, 3, 3, 0])) == 0.25


@pytest.mark.parametrize("function", [mask_iou, relative_error, sqnr_db, flip_rate, boundary_iou, kendall_tau, powers])
def test_other_shapes_are_refused_instead_of_broadcast(function) -> None:
    with pytest.raises(ValueError, match="must be equal"):
        function(np.zeros((2, 1, 4, 4)), np.zeros((2, 4, 4, 4)))
    with pytest.raises(ValueError, match="not empty"):
        function(np.zeros((0, 1, 4, 4)), np.zeros((0, 1, 4, 4)))


def test_infinity_in_both_is_not_agreement() -> None:
    assert math.isinf(relative_error(np.array([INF]), np.array([INF])))


def test_the_boundary_is_what_a_square_erosion_takes_away() -> None:
    """Against the paper's procedure done literally: a ring of zeros, then d erosions by 3 x 3."""
    rng = np.random.default_rng(3)
    coarse = rng.random((3, 2, 8, 6)) > 0.3
    masks = coarse.repeat(9, axis=-2).repeat(9, axis=-1)
    masks[0] = True
    height, width = masks.shape[-2:]
    reach = round(0.05 * float(np.hypot(height, width)))
    assert reach == 4
    for index in np.ndindex(3, 2):
        eroded = np.pad(masks[index], 1)
        for _ in range(reach):
            wide = np.pad(eroded, 1, constant_values=True)
            eroded = np.all([wide[y : y + height + 2, x : x + width + 2] for y in range(3) for x in range(3)], axis=0)
        np.testing.assert_array_equal(mask_boundary(masks, 0.05)[index], masks[index] & ~eroded[1:-1, 1:-1])


def test_boundary_iou_sees_an_edge_that_mask_iou_forgives() -> None:
    reference = np.full((1, 256, 256), -1.0, np.float32)
    reference[:, 28:228, 28:228] = 1.0
    other = np.full_like(reference, -1.0)
    other[:, 30:226, 30:226] = 1.0
    assert boundary_iou(reference, reference).tolist() == [1.0]
    assert mask_iou(reference, other)[0] == pytest.approx(196**2 / 200**2)
    # Rings of 7 pixels (2 % of 362): [28, 35) and [30, 37) from each side.
    first, second = 200**2 - 186**2, 196**2 - 182**2
    common = 196**2 - 186**2
    assert boundary_iou(reference, other)[0] == pytest.approx(common / (first + second - common))
    assert boundary_iou(-reference, -reference, threshold=2.0).tolist() == [1.0]


def test_kendall_tau_counts_pairs_of_scores() -> None:
    reference = np.array([[1.0, 2.0, 3.0, 4.0]] * 5)
    other = np.array([[1, 2, 3, 4], [4, 3, 2, 1], [2, 1, 3, 4], [1, 1, 3, 4], [NAN, 2, 3, 4]])
    assert kendall_tau(reference, other).tolist() == pytest.approx([1.0, -1.0, 4 / 6, 5 / 6, 3 / 6])


def test_powers_are_those_of_each_row() -> None:
    reference = np.array([[[3.0, 4.0]], [[1.0, 0.0]], [[1.0, 1.0]]], np.float32)
    other = np.array([[[3.0, 5.0]], [[1.0, 0.0]], [[1.0, NAN]]], np.float32)
    signal, noise = powers(reference, other)
    assert (signal.tolist(), noise.tolist()) == ([25.0, 1.0, 0.0], [1.0, 0.0, INF])
    assert decibels(float(signal[:2].sum()), float(noise[:2].sum())) == pytest.approx(sqnr_db(reference[:2], other[:2]))
