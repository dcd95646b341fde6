"""One photo to its masks, by a grid of clicks or by prompts: what a worker does, and `trt-sam segment` on one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.errors import InputError
from trt_sam.formats.records import Photo
from trt_sam.imaging.inside import check_prompt_inside
from trt_sam.imaging.photos import read_image
from trt_sam.masks import AutomaticMaskGenerator
from trt_sam.masks.prompted import PhotoPrompt, prompted_records
from trt_sam.masks.settings import check_settings, grids_left_over, point_grids_of
from trt_sam.progress import Progress
from trt_sam.runtime.interface import Runner
from trt_sam.runtime.predictor import Predictor

__all__ = ["Embed", "Everything", "Prompts", "Task", "segmented"]

Embed = Callable[[Path | None, npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""The embedding float32 [1, 256, 64, 64] of a photo, by its file and its pixels; of a part of one, which has no file."""


@dataclass(frozen=True)
class Everything:
    """All masks that the decoder is sure of; the settings of `AutomaticMaskGenerator`, checked when this is made."""

    points_per_side: int | None = 32
    """None where `point_grids` gives the clicks."""
    least_iou: float = 0.88
    """Its `pred_iou_thresh`."""
    least_stability: float = 0.95
    """Its `stability_score_thresh`."""
    points_per_batch: int = 64
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    point_grids: tuple[tuple[tuple[float, float], ...], ...] | None = field(default=None, repr=False)
    """Clicks (x, y) from 0 to 1 of the whole image, then of each layer of crops."""

    def __post_init__(self) -> None:
        check_settings(
            "coco_rle",
            points_per_batch=self.points_per_batch,
            crop_n_layers=self.crop_n_layers,
            crop_overlap_ratio=self.crop_overlap_ratio,
            min_mask_region_area=self.min_mask_region_area,
            thresholds={
                "pred_iou_thresh": self.least_iou,
                "stability_score_thresh": self.least_stability,
                "stability_score_offset": self.stability_score_offset,
                "box_nms_thresh": self.box_nms_thresh,
                "crop_nms_thresh": self.crop_nms_thresh,
            },
        )
        point_grids_of(self.points_per_side, self._grids, self.crop_n_layers, self.crop_n_points_downscale_factor)
        if left_over := grids_left_over(len(self.point_grids or ()), self.crop_n_layers):
            raise InputError(left_over)
        if self.min_mask_region_area:
            require("scipy.ndimage", "to find the regions of masks")

    @property
    def num_prompts(self) -> int:
        """Clicks on a whole photo."""
        return len(self.point_grids[0]) if self.point_grids is not None else (self.points_per_side or 0) ** 2

    @property
    def _grids(self) -> list[npt.NDArray[np.float64]] | None:
        return None if self.point_grids is None else [np.array(grid, np.float64) for grid in self.point_grids]

    def records(
        self,
        runner: Runner,
        image: npt.NDArray[np.uint8],
        embedding: npt.NDArray[np.float32],
        embed: Embed,
        told: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """The masks of `image`, whose `embedding` is there, as records with COCO RLE; `embed` embeds crops, if any.

        Raises:
            InputError: a crop that is too narrow.
            InferenceError: execution failed.
        """
        generator = AutomaticMaskGenerator(
            runner,
            self.points_per_side,
            self.points_per_batch,
            self.least_iou,
            self.least_stability,
            self.stability_score_offset,
            self.box_nms_thresh,
            self.crop_n_layers,
            self.crop_nms_thresh,
            self.crop_overlap_ratio,
            self.crop_n_points_downscale_factor,
            point_grids=self._grids,
            min_mask_region_area=self.min_mask_region_area,
            output_mode="coco_rle",
            image_encoder=_EncoderOfParts(image, embedding, embed),
        )
        return generator.generate(image, told)


class _EncoderOfParts:
    """Embeds parts of an image whose own embedding is there."""

    def __init__(self, image: npt.NDArray[np.uint8], embedding: npt.NDArray[np.float32], embed: Embed) -> None:
        self._shape, self._embedding, self._embed = image.shape, embedding, embed

    def embed(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return self._embedding if rgb.shape == self._shape else self._embed(None, rgb)


@dataclass(frozen=True)
class Prompts:
    """The best mask of each prompt."""

    by_photo: Mapping[str, Sequence[PhotoPrompt]] = field(repr=False)
    """By the file's name."""
    source: str
    """The file that they are from, for messages."""

    def of(self, names: Sequence[str]) -> Prompts:
        """Those of some photos."""
        return Prompts({name: self.by_photo[name] for name in names if name in self.by_photo}, self.source)


Task = Everything | Prompts


def asks_of(task: Task, name: str) -> bool:
    """Whether anything is to be found in the photo of this file name: a file of prompts need not name them all."""
    return isinstance(task, Everything) or name in task.by_photo


def segmented(
    runner: Runner, embed: Embed, path: Path, task: Task, told: Progress | None = None
) -> tuple[Photo, list[dict[str, Any]]]:
    """Read a photo and find its masks, as records of a mask generator.

    Raises:
        InputError: the file cannot be read, or it has no prompts, or one that is not on it.
        InferenceError: execution failed.
    """
    image = read_image(path)
    photo = Photo(path.name, (image.shape[0], image.shape[1]))
    if isinstance(task, Everything):
        return photo, task.records(runner, image, embed(path, image), embed, told)
    prompts = task.by_photo.get(path.name)
    if prompts is None:
        raise InputError(f"{task.source} has no prompts of it; name it there, or move the photo away")
    for prompt in prompts:
        where = f"prompt file {task.source}: {prompt.where}"
        check_prompt_inside(where, prompt.points, prompt.box, height=photo.size[0], width=photo.size[1])
    predictor = Predictor(runner)
    predictor.set_image_embedding(embed(path, image), photo.size)
    return photo, prompted_records(predictor, prompts)
