"""Feeds for comparisons: seeded prompts of every kind on scenes, on the user's embeddings or on random ones. numpy only.

Kinds go round: one click, a box, several clicks, and rows of unequal length padded with absent points. Where the graph takes
masks, every second prompt brings one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_SHAPE, FRAME_SIZE, LABEL_ABSENT, LOW_RES_SIZE, TensorSpec
from trt_sam.errors import InputError
from trt_sam.feeds.scenes import HELD_OUT_SEED, make_scene, sample_prompt
from trt_sam.imaging.embeddings import embedding_files, load_embedding
from trt_sam.imaging.photos import frame_shape
from trt_sam.runtime.interface import Runner

__all__ = [
    "FEED_KINDS",
    "Image",
    "common_feeds",
    "draw_earlier_mask",
    "draw_on_object",
    "draw_prompt",
    "join_limits",
    "make_feeds",
    "random_images",
    "scene_images",
    "stored_images",
]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Limits = Mapping[str, tuple[int, int]]

FEED_KINDS = ("click", "box", "clicks", "padded")
_BATCHES = (1, 4, 2, 5)
"""Prompts per feed, in turn: odd, even and one."""
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


def make_feeds(
    images: Sequence[Image], num_prompts: int, inputs: Sequence[TensorSpec], limits: Limits, *, seed: int = 0
) -> list[dict[str, Array]]:
    """Feeds with `num_prompts` prompts in total, spread over the images in turn.

    Args:
        images: at least one; they take turns.
        num_prompts: from 1; the last feed gets more where `limits` ask for it.
        inputs: what the feeds must have: those of the contract's inputs that any side takes.
        limits: least and largest "num_prompts", "num_points", "height" and "width"; absent ones are free.
        seed: of the prompts.
    """
    rng = np.random.default_rng(seed)
    names = {spec.name for spec in inputs}
    least, most = limits.get("num_prompts", (1, 1 << 30))
    feeds: list[dict[str, Array]] = []
    left = num_prompts
    while left > 0:
        turn = len(feeds)
        image = images[(turn // len(FEED_KINDS)) % len(images)]
        size = int(np.clip(min(_BATCHES[turn % len(_BATCHES)], left), least, most))
        feed = {"image_embeddings": image.embedding, **_prompts(rng, image, FEED_KINDS[turn % len(FEED_KINDS)], size, limits)}
        if "mask_input" in names:
            feed["has_mask_input"] = ((np.arange(size) + turn) % 2).astype(np.float32)
            feed["mask_input"] = np.stack([draw_earlier_mask(rng, image) for _ in range(size)])[:, None]
        if "orig_im_size" in names:
            bounds = (limits.get("height", (1, 1 << 30)), limits.get("width", (1, 1 << 30)))
            clipped = [int(np.clip(n, low, high)) for n, (low, high) in zip(image.original_size, bounds, strict=True)]
            feed["orig_im_size"] = np.array(clipped, np.int64)
        feeds.append(feed)
        left -= size
    return feeds


def common_feeds(images: Sequence[Image], num_prompts: int, runners: Sequence[Runner]) -> list[dict[str, Array]]:
    """Feeds (as `make_feeds`) with every input that any of the runners takes, within the limits of all.

    Earlier masks are used only where every runner takes them; elsewhere their flag is 0.

    Raises:
        InputError: the runners have no size in common.
    """
    specs = {spec.name: spec for runner in runners for spec in runner.inputs}
    feeds = make_feeds(images, num_prompts, list(specs.values()), join_limits(runner.limits for runner in runners))
    if not all(any(spec.name == "mask_input" for spec in runner.inputs) for runner in runners):
        for feed in feeds:
            if "has_mask_input" in feed:
                feed["has_mask_input"][:] = 0
    return feeds


def _prompts(rng: np.random.Generator, image: Image, kind: str, size: int, limits: Limits) -> dict[str, Array]:
    fewest, most = limits.get("num_points", (1, 1 << 30))
    kinds = [kind] * size if kind != "padded" else [FEED_KINDS[i % 3] for i in range(size)]
    # Where an engine takes few points the end goes first: SAM's "not a point", then later clicks.
    drawn = [tuple(part[:most] for part in draw_prompt(rng, image, each)) for each in kinds]
    longest = max(len(labels) for _, labels in drawn)
    width = max(fewest, min(most, longest + 1) if kind == "padded" else longest)
    coords = np.zeros((size, width, 2), np.float32)
    labels = np.full((size, width), LABEL_ABSENT, np.float32)
    for row, (own_coords, own_labels) in enumerate(drawn):
        coords[row, : len(own_labels)], labels[row, : len(own_labels)] = own_coords, own_labels
    return {"point_coords": coords, "point_labels": labels}


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
