"""Prompts for calibration: drawn with a seed in fixed proportions, or the user's, brought to the 1024 frame. numpy only.

Drawn ones are on known objects, or on what the float32 decoder segments (`feeds.realistic`), or anywhere in the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from calibrators.prompt_file import FilePrompt
from trt_sam.contract import LABEL_ABSENT, LABEL_BOX_END, LABEL_BOX_START, LABEL_NOT_A_POINT
from trt_sam.feeds.feeds import Image, draw_prompt
from trt_sam.feeds.realistic import CALIBRATION, Decode, DrawnPrompt, draw_realistic
from trt_sam.imaging.inside import check_prompt_inside
from trt_sam.imaging.resize import boxes_to_frame, coords_to_frame

__all__ = ["PATTERN", "from_file", "sample_prompts"]

FloatArray = npt.NDArray[np.float32]

PATTERN = ("click", "box", "clicks", "click", "padded", "box", "click", "clicks")
"""Kinds in turn where they are on known objects, or anywhere: of eight prompts three are one click, two are boxes, two are
several clicks, and one has absent points behind it, as a row of a batch has where another row is longer. Each image begins at
another place."""

_MOST_ABSENT = 3


def sample_prompts(
    rng: np.random.Generator, image: Image, count: int, *, decode: Decode | None = None, earlier_masks: bool = False
) -> tuple[DrawnPrompt, ...]:
    """Draw `count` prompts on the image's objects, or where they are unknown, on what `decode` (float32) segments.

    With neither they lie anywhere in the picture, boxes too. `earlier_masks`: whether `decode`'s masks are refined as well.
    """
    if image.objects is None and decode is not None:
        order = CALIBRATION if earlier_masks else None
        return draw_realistic(
            rng, image.embedding, image.original_size, count, decode, earlier_masks=earlier_masks, order=order
        )
    start = int(rng.integers(len(PATTERN)))
    return tuple(_sample(rng, image, PATTERN[(start + i) % len(PATTERN)]) for i in range(count))


def from_file(prompts: Sequence[FilePrompt], original_size: tuple[int, int], where: str) -> tuple[DrawnPrompt, ...]:
    """The user's prompts for an image of `original_size` (height, width), as `Predictor` would send them.

    Raises:
        InputError: a point or box lies outside the image; the message begins with `where`, the file.
    """
    return tuple(_to_frame(prompt, original_size, f"{where}: {prompt.where}") for prompt in prompts)


def _sample(rng: np.random.Generator, image: Image, kind: str) -> DrawnPrompt:
    if kind != "padded":
        return DrawnPrompt(kind, *draw_prompt(rng, image, kind))
    coords, labels = draw_prompt(rng, image, "click")
    absent = int(rng.integers(1, _MOST_ABSENT + 1))
    padding = np.zeros((absent, 2), np.float32), np.full(absent, LABEL_ABSENT, np.float32)
    return DrawnPrompt(kind, np.concatenate([coords, padding[0]]), np.concatenate([labels, padding[1]]))


def _to_frame(prompt: FilePrompt, original_size: tuple[int, int], where: str) -> DrawnPrompt:
    height, width = original_size
    check_prompt_inside(where, prompt.points, prompt.box, height=height, width=width)
    coords = coords_to_frame(np.array(prompt.points, np.float64).reshape(-1, 2), original_size)
    if prompt.box is not None:
        coords = np.concatenate([coords, boxes_to_frame(np.array(prompt.box), original_size)])
        labels = [*prompt.labels, LABEL_BOX_START, LABEL_BOX_END]
    else:
        coords = np.concatenate([coords, np.zeros((1, 2), np.float32)])
        labels = [*prompt.labels, LABEL_NOT_A_POINT]
    return DrawnPrompt("file", coords, np.array(labels, np.float32))
