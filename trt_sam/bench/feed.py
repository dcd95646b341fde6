"""The calls that every benchmark times: one seeded embedding, and prompts of one click each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_SHAPE, FRAME_SIZE, LABEL_FOREGROUND, LABEL_NOT_A_POINT

__all__ = ["IMAGE_SIZE", "NUM_POINTS", "WHAT", "make_feed"]

NUM_POINTS = 2
WHAT = (
    "each prompt is a click and SAM's padding token (2 points), on one random embedding; the embedding is set before the timed "
    "calls; a call takes prompts from numpy arrays and gives the logits of all masks at 256 x 256 and their scores in host "
    "memory; what else each side's time includes stands under Sides"
)
IMAGE_SIZE = (1080, 1920)
"""Height and width of the image, for graphs that give masks at its size."""


def make_feed(num_prompts: int) -> dict[str, npt.NDArray[Any]]:
    """`image_embeddings`, `point_coords` and `point_labels` for `num_prompts` prompts; always the same ones."""
    rng = np.random.default_rng(0)
    embedding = rng.normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32)
    coords = np.zeros((num_prompts, NUM_POINTS, 2), np.float32)
    coords[:, 0] = rng.uniform(0, FRAME_SIZE, (num_prompts, 2))
    labels = np.full((num_prompts, NUM_POINTS), LABEL_NOT_A_POINT, np.float32)
    labels[:, 0] = LABEL_FOREGROUND
    return {"image_embeddings": embedding, "point_coords": coords, "point_labels": labels}
