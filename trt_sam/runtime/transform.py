"""`FrameTransform`: images, points and boxes to SAM's 1024 frame; call-compatible with Meta's `ResizeLongestSide`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.contract import FRAME_SIZE
from trt_sam.imaging.photos import frame_shape

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FrameTransform"]

Array = npt.NDArray[Any]


class FrameTransform:
    """Scales by the factors that bring an image's long side to 1024, per axis, of the rounded sizes."""

    target_length = FRAME_SIZE

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int = FRAME_SIZE) -> tuple[int, int]:
        """(height, width) of an image of `oldh` rows and `oldw` columns once its long side is `long_side_length`.

        Raises:
            InputError: a side below 1, or an image so narrow that its short side would vanish.
        """
        if long_side_length == FRAME_SIZE:
            return frame_shape(oldh, oldw)
        scale = long_side_length / max(oldh, oldw)
        return int(oldh * scale + 0.5), int(oldw * scale + 0.5)

    def apply_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Scale uint8 [height, width, 3] as the image encoder wants it, by Pillow's bilinear filter."""
        image_module = require("PIL.Image", "to resize images")
        height, width = frame_shape(*image.shape[:2])
        return np.array(image_module.fromarray(image).resize((width, height), image_module.Resampling.BILINEAR))

    def apply_coords(self, coords: Array, original_size: Sequence[int]) -> npt.NDArray[np.float64]:
        """Scale points [..., 2], (x, y) in pixels of an image of `original_size` (height, width), to float64 in the frame."""
        return np.asarray(coords, np.float64) * self._factors(original_size)

    def apply_boxes(self, boxes: Array, original_size: Sequence[int]) -> npt.NDArray[np.float64]:
        """Scale boxes [B, 4] (or [4]), (x0, y0, x1, y1) in pixels of the image, to float64 [B, 4] in the frame."""
        return self.apply_coords(np.asarray(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Tensor, original_size: Sequence[int]) -> Tensor:
        """As `apply_coords`, for a tensor on any device; float32."""
        x, y = self._factors(original_size)
        scaled = coords.float().clone()
        scaled[..., 0] *= x
        scaled[..., 1] *= y
        return scaled

    def apply_boxes_torch(self, boxes: Tensor, original_size: Sequence[int]) -> Tensor:
        """As `apply_boxes`, for a tensor on any device; float32."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """Scale floats [B, 3, height, width], with antialiasing; close to `apply_image`, which is what SAM was trained with."""
        functional = require("torch.nn.functional", "to resize tensors")
        size = frame_shape(*image.shape[-2:])
        resized: Tensor = functional.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
        return resized

    def _factors(self, original_size: Sequence[int]) -> tuple[float, float]:
        """Of x and y."""
        height, width = original_size
        new_height, new_width = frame_shape(height, width)
        return new_width / width, new_height / height
