"""Resizing in numpy against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_sam.errors import InputError
from trt_sam.imaging.photos import frame_shape
from trt_sam.imaging.resize import bilinear, boxes_to_frame, coords_to_frame, postprocess_masks, postprocess_window

SIDES = st.integers(1, 90)


def torch_bilinear(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    flat = torch.from_numpy(images).reshape(1, -1, *images.shape[-2:])
    resized = torch.nn.functional.interpolate(flat, size, mode="bilinear", align_corners=False)
    return resized.reshape(*images.shape[:-2], *size).numpy()


@settings(deadline=None, max_examples=200)
@given(source=st.tuples(SIDES, SIDES), target=st.tuples(SIDES, SIDES), seed=st.integers(0, 2**32 - 1))
def test_bilinear_equals_torch_up_and_down(source: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    images = np.random.default_rng(seed).normal(0, 1, (2, *source)).astype(np.float32)
    result = bilinear(images, target)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, torch_bilinear(images, target), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080), (1, 3), (37, 1024), (1024, 1024), (1500, 1003), (300, 451)])
def test_postprocess_equals_metas_three_steps(size: tuple[int, int]) -> None:
    masks = np.random.default_rng(1).normal(0, 1, (2, 3, 256, 256)).astype(np.float32)
    height, width = frame_shape(*size)
    expected = torch_bilinear(torch_bilinear(masks, (1024, 1024))[..., :height, :width].copy(), size)
    result = postprocess_masks(masks, size)
    assert result.shape == (2, 3, *size)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


def test_the_largest_sizes_stay_within_tolerance() -> None:
    masks = np.random.default_rng(2).normal(0, 1, (1, 256, 256)).astype(np.float32)
    np.testing.assert_allclose(bilinear(masks, (2999, 4001)), torch_bilinear(masks, (2999, 4001)), rtol=0, atol=1e-5)


def test_any_leading_axes_and_strides() -> None:
    images = np.random.default_rng(3).normal(0, 1, (3, 2, 20, 10)).astype(np.float32)
    np.testing.assert_array_equal(bilinear(images, (7, 30))[1, 0], bilinear(images[1, 0], (7, 30)))
    np.testing.assert_array_equal(bilinear(images[..., ::2], (7, 7)), bilinear(images[..., ::2].copy(), (7, 7)))
    assert bilinear(images[:0], (4, 5)).shape == (0, 2, 4, 5)


def test_the_source_is_not_changed() -> None:
    images = np.random.default_rng(4).normal(0, 1, (9, 9)).astype(np.float32)
    before = images.copy()
    bilinear(images, (9, 9))[:] = 0
    np.testing.assert_array_equal(images, before)


def test_coords_take_the_factor_of_the_rounded_sizes() -> None:
    # 451 x 300 becomes 1024 x int(300 * 1024 / 451 + 0.5) = 681, so the factors of x and y differ.
    coords = coords_to_frame(np.array([[[451, 300], [10, 20]]]), (300, 451))
    assert coords.dtype == np.float32
    np.testing.assert_allclose(coords, [[[1024, 681], [10 * 1024 / 451, 20 * 681 / 300]]], rtol=1e-6)


def test_boxes_become_two_corners() -> None:
    corners = boxes_to_frame(np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), (512, 512))
    np.testing.assert_array_equal(corners, [[[2, 4], [6, 8]], [[10, 12], [14, 16]]])


def test_an_image_that_vanishes_is_refused() -> None:
    with pytest.raises(InputError, match="vanishes"):
        postprocess_masks(np.zeros((1, 256, 256), np.float32), (1, 3000))


def test_a_window_is_a_part_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    for size in ((427, 640), (700, 900), (64, 50), (1500, 200), (1024, 1024), (200, 1024), (7, 5)):
        for kind in range(6):
            low = np.full((256, 256), -9, np.float32)
            side = rng.integers(1, 120)
            y, x = rng.integers(0, 256 - side, 2)
            if kind:
                low[y : y + side, x : x + side] = rng.normal(0, 3, (side, side))
            above = (-12.0, 0.0, -1.0, 1.5)[kind % 4]
            whole = postprocess_masks(low[None], size)[0]
            part, (top, left) = postprocess_window(low, size, above)
            inside = (slice(top, top + part.shape[0]), slice(left, left + part.shape[1]))
            np.testing.assert_array_equal(part, whole[inside] if part.size else part)
            whole[inside] = above
            assert (whole <= above).all()
    assert postprocess_window(np.full((256, 256), -9, np.float32), (40, 50), 0.0)[0].size == 0
