"""Feeds against the decoder's tensors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_sam.contract import TensorSpec, adapt_meta_feed, check_feed, input_specs, output_specs, size_of
from trt_sam.errors import ContractError

Feed = dict[str, np.ndarray]
SPECS = input_specs()
ALL_SPECS = input_specs(mask_input=True, full_resolution=True)


def feed(prompts: int = 2, points: int = 3) -> Feed:
    return {
        "image_embeddings": np.zeros((1, 256, 64, 64), np.float32),
        "point_coords": np.full((prompts, points, 2), 5, np.float32),
        "point_labels": np.ones((prompts, points), np.float32),
    }


def full_feed(prompts: int = 2, points: int = 3) -> Feed:
    return feed(prompts, points) | {
        "mask_input": np.zeros((prompts, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(prompts, np.float32),
        "orig_im_size": np.array([300, 451], np.int64),
    }


def meta_feed(*, flag: float = 0) -> Feed:
    return full_feed(1) | {"has_mask_input": np.array([flag], np.float32), "orig_im_size": np.array([300, 451], np.float32)}


@pytest.mark.parametrize(("specs", "good"), [(SPECS, feed()), (ALL_SPECS, full_feed())], ids=["plain", "everything"])
def test_a_good_feed_passes_in_the_specs_order(specs: tuple[TensorSpec, ...], good: Feed) -> None:
    checked = check_feed(dict(reversed(good.items())), specs)
    assert list(checked) == [spec.name for spec in specs]
    for name, array in checked.items():
        np.testing.assert_array_equal(array, good[name])


def test_every_array_becomes_contiguous() -> None:
    given_feed = feed() | {"point_coords": np.ones((2, 6, 2), np.float32)[:, ::2]}
    assert check_feed(given_feed, SPECS)["point_coords"].flags.c_contiguous


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"point_coords": None}, "'point_coords' is missing; this graph takes image_embeddings, point_coords, point_labels"),
        ({"points": np.zeros(1)}, "unknown input 'points'; this graph takes"),
        ({"point_coords": np.zeros((2, 3, 2))}, r"point_coords is float64, must be float32; convert with .astype\('float32'\)"),
        ({"point_labels": np.ones((2, 3), np.int64)}, "point_labels is int64, must be float32"),
        ({"point_coords": np.zeros((2, 3, 3), np.float32)}, r"shape \[2, 3, 3\], must be \[num_prompts, num_points, 2\]"),
        ({"point_coords": np.zeros((3, 2), np.float32)}, r"shape \[3, 2\], must be \[num_prompts, num_points, 2\]"),
        ({"image_embeddings": np.zeros((1, 256, 32, 32), np.float32)}, r"must be \[1, 256, 64, 64\]"),
        ({"point_labels": np.ones((2, 4), np.float32)}, "num_points = 4, but another input has 3; they must agree"),
        ({"point_labels": np.ones((1, 3), np.float32)}, "num_prompts = 1, but another input has 2; they must agree"),
        ({"point_labels": np.full((2, 3), 4, np.float32)}, "point_labels holds 4; allowed are 1 foreground, 0 background"),
        ({"point_labels": np.full((2, 3), 0.5, np.float32)}, "point_labels holds 0.5"),
        ({"point_labels": np.full((2, 3), -3, np.float32)}, "point_labels holds -3"),
        ({"point_coords": np.full((2, 3, 2), np.nan, np.float32)}, "point_coords holds NaN or infinity"),
        ({"point_coords": np.full((2, 3, 2), -np.inf, np.float32)}, "point_coords holds NaN or infinity"),
        ({"point_labels": np.full((2, 3), np.nan, np.float32)}, "point_labels holds NaN or infinity"),
    ],
)
def test_a_bad_feed_says_what_and_what_is_allowed(change: dict[str, np.ndarray | None], message: str) -> None:
    bad = {name: array for name, array in (feed() | change).items() if array is not None}
    with pytest.raises(ContractError, match=message) as caught:
        check_feed(bad, SPECS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_input": np.zeros((2, 1, 128, 128), np.float32)}, r"mask_input has shape \[2, 1, 128, 128\]"),
        ({"mask_input": np.full((2, 1, 256, 256), np.inf, np.float32)}, "mask_input holds NaN or infinity"),
        ({"has_mask_input": np.zeros((2, 1), np.float32)}, r"has_mask_input has shape \[2, 1\], must be \[num_prompts\]"),
        ({"orig_im_size": np.array([300.0, 451.0], np.float32)}, "orig_im_size is float32, must be int64"),
        ({"orig_im_size": np.array([0, 451])}, r"orig_im_size is \[0, 451\], must be \(height, width\), both at least 1"),
        ({"orig_im_size": np.array([300, 451, 3])}, r"orig_im_size has shape \[3\], must be \[2\]"),
    ],
)
def test_bad_masks_and_sizes(change: Feed, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_feed(full_feed() | change, ALL_SPECS)


@pytest.mark.parametrize(
    ("prompts", "points", "message"),
    [
        (5, 3, "num_prompts = 5, this graph takes 1 to 4; split the call"),
        (2, 9, "num_points = 9, this graph takes 2 to 8; build the engine for more, with build's --max-points 9"),
        (2, 1, "num_points = 1, this graph takes 2 to 8; pad with label -2"),
        (0, 3, "num_prompts = 0, this graph takes 1 to 4"),
    ],
)
def test_limits(prompts: int, points: int, message: str) -> None:
    limits = {"num_prompts": (1, 4), "num_points": (2, 8)}
    with pytest.raises(ContractError, match=message):
        check_feed(feed(prompts, points), SPECS, limits)
    assert check_feed(feed(4, 8), SPECS, limits)
    assert check_feed(feed(1, 2), SPECS, limits)


def test_no_prompts_and_no_points_are_refused_without_limits() -> None:
    for prompts, points in ((0, 3), (2, 0)):
        with pytest.raises(ContractError, match="= 0"):
            check_feed(feed(prompts, points), SPECS)


@settings(max_examples=200, deadline=None)
@given(
    prompts=st.integers(1, 5),
    points=st.integers(1, 5),
    labels=st.lists(st.sampled_from([-3, -2, -1, 0, 1, 2, 3, 4, 0.5]), min_size=25, max_size=25),
    coords=st.lists(st.floats(width=32), min_size=50, max_size=50),
)
def test_exactly_finite_coordinates_and_known_labels_pass(
    prompts: int, points: int, labels: list[float], coords: list[float]
) -> None:
    specs = SPECS[1:]
    given_feed = {
        "point_coords": np.array(coords[: prompts * points * 2], np.float32).reshape(prompts, points, 2),
        "point_labels": np.array(labels[: prompts * points], np.float32).reshape(prompts, points),
    }
    good = all(np.isfinite(coords[: prompts * points * 2])) and set(labels[: prompts * points]) <= {-2, -1, 0, 1, 2, 3}
    if good:
        assert check_feed(given_feed, specs).keys() == given_feed.keys()
    else:
        with pytest.raises(ContractError):
            check_feed(given_feed, specs)


def test_metas_feed_fits_every_graph_when_its_mask_is_off() -> None:
    for mask_input in (False, True):
        for full_resolution in (False, True):
            specs = input_specs(mask_input=mask_input, full_resolution=full_resolution)
            adapted = check_feed(adapt_meta_feed(meta_feed(), specs), specs)
            if full_resolution:
                assert adapted["orig_im_size"].dtype == np.int64
                assert adapted["orig_im_size"].tolist() == [300, 451]


def test_metas_mask_is_kept_where_the_graph_takes_one() -> None:
    specs = input_specs(mask_input=True)
    adapted = check_feed(adapt_meta_feed(meta_feed(flag=1), specs), specs)
    assert adapted["has_mask_input"].tolist() == [1]


def test_a_mask_that_counts_is_never_dropped() -> None:
    with pytest.raises(ContractError, match="export it with --mask-input"):
        adapt_meta_feed(meta_feed(flag=1), SPECS)


def test_a_mask_without_its_flag_is_not_dropped() -> None:
    without_flag = {name: array for name, array in meta_feed().items() if name not in ("has_mask_input", "orig_im_size")}
    with pytest.raises(ContractError, match="unknown input 'mask_input'"):
        check_feed(adapt_meta_feed(without_flag, SPECS), SPECS)


def test_adapting_leaves_the_callers_feed_and_our_own_feeds_alone() -> None:
    original = meta_feed()
    names = list(original)
    adapt_meta_feed(original, SPECS)
    assert list(original) == names
    assert original["orig_im_size"].dtype == np.float32
    ours = feed()
    assert adapt_meta_feed(ours, SPECS) == ours


def test_the_specs_of_each_kind_of_graph() -> None:
    assert [str(s) for s in output_specs(full_resolution=True, best_mask=True, dtype="float16")] == [
        "masks: float16 [num_prompts, 1, height, width]",
        "low_res_masks: float16 [num_prompts, 1, 256, 256]",
        "iou_predictions: float32 [num_prompts, 1]",
    ]
    assert str(output_specs(mask_bits=True)[-1]) == "mask_bits: uint8 [num_prompts, 4, 256, 32]"
    full = output_specs(full_resolution=True, best_mask=True, mask_bits=True)[-1]
    assert str(full) == "mask_bits: uint8 [num_prompts, 1, height, packed_width]"
    sizes = {"num_prompts": 3, "height": 20, "width": 33}
    assert [size_of(dim, sizes) for dim in full.dims] == [3, 1, 20, 5]
    assert [s.name for s in ALL_SPECS] == [*feed(), "mask_input", "has_mask_input", "orig_im_size"]
