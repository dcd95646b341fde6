"""One photo to its masks, by a grid of clicks or by prompts: what a worker does, and `trt-sam segment` on one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.errors import InputError
from trt_sam.formats.records import Photo
from trt_sam.imaging.inside import check_inside
from trt_sam.imaging.photos import read_image
from trt_sam.masks import AutomaticMaskGenerator
from trt_sam.masks.prompted import PhotoPrompt, prompted_records
from trt_sam.progress import Progress
from trt_sam.runtime.interface import Runner
from trt_sam.runtime.predictor import Predictor

__all__ = ["Embed", "Everything", "Prompts", "Task", "segmented"]

Embed = Callable[[Path, npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""The embedding float32 [1, 256, 64, 64] of a photo, by its file and its pixels."""


@dataclass(frozen=True)
class Everything:
    """All masks that the decoder is sure of."""

    points_per_side: int = 32
    least_iou: float = 0.88
    least_stability: float = 0.95

    def generator(self, runner: Runner) -> AutomaticMaskGenerator:
        """What finds them."""
        return AutomaticMaskGenerator(
            runner,
            self.points_per_side,
            pred_iou_thresh=self.least_iou,
            stability_score_thresh=self.least_stability,
            output_mode="coco_rle",
        )


@dataclass(frozen=True)
class Prompts:
    """The best mask of each prompt."""

    by_photo: Mapping[str, Sequence[PhotoPrompt]] = field(repr=False)
    """By the file's name."""
    source: str
    """Where they are from, for messages."""

    def of(self, names: Sequence[str]) -> Prompts:
        """Those of some photos."""
        return Prompts({name: self.by_photo[name] for name in names if name in self.by_photo}, self.source)


Task = Everything | Prompts


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
        return photo, task.generator(runner).generate_from_embedding(embed(path, image), photo.size, told)
    prompts = task.by_photo.get(path.name)
    if prompts is None:
        raise InputError(f"{task.source} has no prompts of it; name it there, or move the photo away")
    for prompt in prompts:
        clicks = [(x, y, label) for (x, y), label in zip(prompt.points, prompt.labels, strict=True)]
        check_inside(clicks, prompt.box, height=photo.size[0], width=photo.size[1])
    predictor = Predictor(runner)
    predictor.set_image_embedding(embed(path, image), photo.size)
    return photo, prompted_records(predictor, prompts)
