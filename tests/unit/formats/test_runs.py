"""Runs, COCO's text and polygons against pycocotools, on random masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco
from scipy import ndimage

from trt_sam.errors import InputError
from trt_sam.formats.polygons import polygons_of, runs_of_polygons
from trt_sam.formats.records import box_of_pixels, runs_of
from trt_sam.formats.runs import Runs


def masks(count: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(3)
    found = []
    for number in range(count):
        noise = rng.random(rng.integers(1, 24, 2))
        found.append(noise < rng.choice([0, 0.1, 0.5, 0.9, 1.0]) if number % 2 else ndimage.gaussian_filter(noise, 1.5) > 0.5)
    large = rng.random((1500, 2100)) < 0.5
    large[:, 900:1800] = False
    return [*found, large]


def test_runs_are_pycocotools() -> None:
    for mask in masks(300):
        runs = Runs.of(mask)
        packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert runs.compressed() == {"size": list(mask.shape), "counts": packed["counts"].decode()}
        np.testing.assert_array_equal(runs.mask(), mask)
        assert runs.area == mask.sum()
        assert box_of_pixels(runs) == coco.toBbox(packed).tolist()
        for form in (runs.compressed(), runs.uncompressed(), packed, mask, runs):
            np.testing.assert_array_equal(runs_of(form, mask.shape).counts, runs.counts)
        rows, columns = np.nonzero(mask)
        if len(rows):
            assert runs.box == (columns.min(), rows.min(), columns.max(), rows.max())


def test_a_window_is_placed_in_the_mask() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        (height, width), (top, left), (below, right) = rng.integers(1, 8, 2), rng.integers(0, 3, 2), rng.integers(0, 3, 2)
        window = rng.random((height, width)) < 0.6
        whole = np.pad(window, ((top, below), (left, right)))
        runs = Runs.of(window, top=int(top), left=int(left), size=whole.shape)
        np.testing.assert_array_equal(runs.mask(), whole)


def test_lengths_of_zero_join_runs() -> None:
    assert Runs.from_coco({"size": [3, 3], "counts": [0, 0, 2, 0, 3, 4]}).counts.tolist() == [5, 4]
    assert Runs.from_coco({"size": [3, 3], "counts": [0, 9]}).area == 9


def test_polygons_fill_to_the_same_pixels() -> None:
    with_holes = 0
    for mask in masks(300)[:-1]:
        rings = polygons_of(mask)
        assert len(rings) == ndimage.label(mask)[1]
        if not rings:
            continue
        size = (mask.shape[0], mask.shape[1])
        np.testing.assert_array_equal(runs_of_polygons([ring.ravel().tolist() for ring in rings], size).mask(), mask)
        with_holes += int((ndimage.binary_fill_holes(mask) != mask).any())
    assert with_holes > 50


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 3], "counts": "é"}, "a character that COCO's RLE does not have"),
        ({"size": [3, 3], "counts": "0 0"}, "a character that COCO's RLE does not have"),
        ({"size": [3, 3], "counts": "o"}, "cut off in the middle of a number"),
        ({"size": [3, 3], "counts": "oooooooooo0"}, "more than 32 bits"),
        ({"size": [3, 3], "counts": [1, 2]}, "add up to 3, must be those of 3x3 = 9"),
        ({"size": [3, 3], "counts": [20, -11]}, "hold -11, must be 0 or more"),
        ({"size": [3, 3], "counts": [1.5, 7.5]}, "must be whole numbers"),
        ({"size": [3, 3], "counts": None}, "must be whole numbers"),
        ({"size": [3], "counts": [9]}, "must be {size: .height, width., counts}"),
        ({"counts": [9]}, "must be {size"),
        ({"size": [0, 3], "counts": []}, "both must be at least 1"),
        ({"size": [4, 3], "counts": [12]}, "a mask is of 3x4, its image is 3x3"),
        ([], "there is no polygon"),
        ([[0, 0, 1, 1]], "at least three points"),
        ([[0, 0, 1, 1, 2]], "at least three points"),
        ([[0, 0, 1, 1, 2, "x"]], "not a number"),
        ([[0, 0, 1, 1, 2, float("nan")]], "NaN or infinity"),
        (np.zeros((3, 3)), "must be bool"),
        ("text", "a segmentation is str"),
    ],
)
def test_what_is_no_mask(segmentation: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        runs_of(segmentation, (3, 3))
