"""Images to prompt on (scenes, the user's embeddings, random ones) and seeded prompts on them. numpy only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_SHAPE, FRAME_SIZE, LOW_RES_SIZE
from trt_sam.errors import InputError
from trt_sam.feeds.scenes import HELD_OUT_SEED, make_scene, sample_prompt
from trt_sam.imaging.embeddings import embedding_files, load_embedding
from trt_sam.imaging.photos import frame_shape

__all__ = [
    "Image",
    "draw_earlier_mask",
    "draw_on_object",
    "draw_prompt",
    "join_limits",
    "random_images",
    "scene_images",
    "stored_images",
]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Limits = Mapping[str, tuple[int, int]]

_SIZE = (480, 640)
"""(height, width) of the original image where nothing says it: neither square nor the frame's own size."""


@dataclass(frozen=True)
class Image:
    """An embedding to prompt on."""

    embedding: FloatArray
    """float32 [1, 256, 64, 64]."""
    original_size: tuple[int, int]
    """(height, width)."""
    objects: npt.NDArray[np.bool_] | None = None
    """bool [num_objects, 1024, 1024], what clicks and boxes are drawn from; None draws them anywhere in the picture."""


def scene_images(embed: Callable[[npt.NDArray[np.uint8]], FloatArray], count: int) -> list[Image]:
    """`count` synthetic scenes that no stand-in was trained on, embedded by `embed` (uint8 [1024, 1024, 3] to an embedding)."""
    scenes = [make_scene(HELD_OUT_SEED + 1000 + index) for index in range(count)]
    return [Image(embed(scene.image), (FRAME_SIZE, FRAME_SIZE), scene.masks) for scene in scenes]


def stored_images(folder: str | os.PathLike[str]) -> list[Image]:
    """Every embedding file of a folder, by name; a bare array, which knows no photo, as one of 1024 x 1024.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    frame = (FRAME_SIZE, FRAME_SIZE)
    loaded = (load_embedding(p, original_size=None if p.suffix == ".npz" else frame) for p in embedding_files(Path(folder)))
    return [Image(each.image_embeddings, each.original_size) for each in loaded]


def random_images(count: int, seed: int = 0) -> list[Image]:
    """`count` seeded random embeddings: they show arithmetic, their masks mean nothing."""
    rng = np.random.default_rng(seed)
    return [Image(rng.normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32), _SIZE) for _ in range(count)]


def draw_prompt(rng: np.random.Generator, image: Image, kind: str) -> tuple[FloatArray, FloatArray]:
    """A prompt of kind "click", "clicks" or "box": coordinates float32 [num_points, 2] in the frame, labels [num_points]."""
    if image.objects is not None:
        coords, labels, _ = draw_on_object(rng, image.objects, kind)
        return coords, labels
    height, width = frame_shape(*image.original_size)
    if kind == "box":
        corners = np.sort(rng.uniform(0, (width, height), (2, 2)), axis=0)
        return corners.astype(np.float32), np.array([2, 3], np.float32)
    count = 1 if kind == "click" else int(rng.integers(2, 5))
    points = rng.uniform(0, (width, height), (count, 2))
    labels = np.concatenate([[1.0], rng.integers(0, 2, count - 1), [-1.0]])
    return np.concatenate([points, [(0.0, 0.0)]]).astype(np.float32), labels.astype(np.float32)


def draw_on_object(
    rng: np.random.Generator, objects: npt.NDArray[np.bool_], kind: str
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """A prompt as `draw_prompt` gives it, and the one of `objects` (bool [num_objects, 1024, 1024]) that it means."""
    meant = objects[int(rng.integers(len(objects)))]
    return *sample_prompt(rng, meant, kind, extra_clicks=int(rng.integers(1, 4))), meant


def draw_earlier_mask(rng: np.random.Generator, image: Image) -> FloatArray:
    """Logits [256, 256] as an earlier call could have given: an object of the image, or an ellipse, with soft values."""
    if image.objects is not None:
        step = FRAME_SIZE // LOW_RES_SIZE
        inside = image.objects[int(rng.integers(len(image.objects)))][::step, ::step]
        soft = np.where(inside, 8.0, -8.0) + rng.normal(0, 1.5, inside.shape)
    else:
        y, x = np.mgrid[:LOW_RES_SIZE, :LOW_RES_SIZE] / LOW_RES_SIZE
        (cx, cy), (rx, ry) = rng.uniform(0.2, 0.8, 2), rng.uniform(0.1, 0.4, 2)
        soft = np.clip(10.0 * (1.0 - np.hypot((x - cx) / rx, (y - cy) / ry)), -20.0, 20.0)
    return soft.astype(np.float32)


def join_limits(all_limits: Iterable[Limits]) -> dict[str, tuple[int, int]]:
    """What every side takes.

    Raises:
        InputError: two sides have no size in common.
    """
    joined: dict[str, tuple[int, int]] = {}
    for name, (low, high) in _items(all_limits):
        other_low, other_high = joined.get(name, (low, high))
        joined[name] = (max(low, other_low), min(high, other_high))
        if joined[name][0] > joined[name][1]:
            raise InputError(
                f"one side takes {name} {low} to {high}, the other {other_low} to {other_high}: nothing fits both; "
                "build one of them for a common size"
            )
    return joined


def _items(all_limits: Iterable[Limits]) -> Iterator[tuple[str, tuple[int, int]]]:
    for limits in all_limits:
        yield from limits.items()
