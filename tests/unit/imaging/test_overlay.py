"""What an overlay shows: tint inside, dots at clicks, a box, darker outside."""

from __future__ import annotations

import numpy as np
import pytest

from trt_sam.imaging.overlay import draw_overlay


@pytest.mark.parametrize("size", [(40, 30), (768, 1024)])
def test_overlays(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 128, np.uint8)
    mask = np.zeros(size, np.bool_)
    mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = True
    x, y = size[1] * 0.75, size[0] * 0.75
    drawn = draw_overlay(image, mask, [(x, y, 1), (0, 0, 0)], (1, 1, size[1] - 1, size[0] - 1))
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == 128).all()
    red, green, blue = drawn[size[0] * 3 // 8, size[1] * 3 // 8].astype(int)
    assert blue > green > red, "tinted blue inside"
    red, green, blue = drawn[int(y), int(x)].astype(int)
    assert green > max(red, blue) + 50, "a green dot"
    red, green, blue = drawn[0, 0].astype(int)
    assert red > max(green, blue) + 50, "a red dot, also where it is cut by the edge"
    assert (drawn[size[0] // 2, int(size[1] * 0.62)] < 128).all(), "darker outside"
