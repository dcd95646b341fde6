"""What accuracy is measured on: images with seeded prompts, the exact masks where they are known, and a picture to show.

Images stream: one is in memory at a time. The prompts of an image go to the decoder several at once, of mixed kinds and padded
with absent points, as a service would send them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.contract import FRAME_SIZE, LABEL_ABSENT, LOW_RES_SIZE
from trt_sam.feeds.feeds import Image, draw_on_object, draw_prompt
from trt_sam.feeds.realistic import Decode, draw_realistic
from trt_sam.feeds.scenes import HELD_OUT_SEED, PROMPT_KINDS, make_scene
from trt_sam.imaging.photos import frame_shape, read_image

__all__ = [
    "EVALUATION_SEED",
    "Example",
    "PromptedImage",
    "embedding_picture",
    "first_prompts",
    "make_examples",
    "photos",
    "scenes",
    "stored",
]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]
Embed = Callable[[npt.NDArray[np.uint8]], FloatArray]

EVALUATION_SEED = HELD_OUT_SEED + 10_000
"""Scenes from here on were used neither to train a stand-in, nor to choose its state, nor for its card."""
_STEP = FRAME_SIZE // LOW_RES_SIZE


@dataclass(frozen=True)
class PromptedImage:
    """An embedding to prompt on, and what is known of its image."""

    name: str
    embedding: FloatArray = field(repr=False)
    """float32 [1, 256, 64, 64]."""
    original_size: tuple[int, int]
    """(height, width)."""
    picture: Picture = field(repr=False)
    """uint8 [256, 256, 3]: the frame that the encoder saw, or where it is not at hand, the embedding in three colours."""
    objects: npt.NDArray[np.bool_] | None = field(repr=False, default=None)
    """bool [num_objects, 1024, 1024], the exact masks; None where nobody knows them."""
    whole_sha256: str = ""
    """Of the embedding before it was rounded for a small file; "" where it is as the encoder gave it."""


@dataclass(frozen=True)
class Example:
    """Several prompts of one image, for one call."""

    feed: dict[str, Array] = field(repr=False)
    """`image_embeddings`, `point_coords`, `point_labels`, and `mask_input` and `has_mask_input` for who takes them, 0 but in
    refinements."""
    kinds: tuple[str, ...]
    """Of each prompt, one of `scenes.PROMPT_KINDS` or `realistic.PATTERN`."""
    image: PromptedImage
    truth: npt.NDArray[np.bool_] | None = field(repr=False, default=None)
    """bool [num_prompts, 256, 256]: the object that each prompt means, pixels that it covers by half or more."""


def first_prompts(example: Example, count: int) -> Example:
    """The same call with its first `count` prompts, or as many as there are."""
    whole = ("image_embeddings", "orig_im_size")
    feed = {name: array if name in whole else array[:count] for name, array in example.feed.items()}
    truth = None if example.truth is None else example.truth[:count]
    return dataclasses.replace(example, feed=feed, kinds=example.kinds[:count], truth=truth)


def make_examples(
    images: Iterable[PromptedImage],
    prompts_per_image: int,
    *,
    prompts_per_call: int = 8,
    seed: int = 0,
    decode: Decode | None = None,
    earlier_masks: bool = False,
    order: Sequence[str] | None = None,
) -> Iterator[Example]:
    """Prompts on each image: clicks, boxes and several clicks in turn, on its objects.

    Where objects are unknown they start from what `decode`, the float32 decoder, segments (`realistic.draw_realistic`, with
    refinements where `earlier_masks` are taken, and the kinds of `order` where it is given), or without it, lie anywhere in the
    picture. An image's prompts depend on `seed`, on its place in `images` and on those masks alone.
    """
    for number, image in enumerate(images):
        rng = np.random.default_rng((seed, number))
        drawn: Sequence[_Prompt]
        if image.objects is None and decode is not None:
            found = draw_realistic(
                rng, image.embedding, image.original_size, prompts_per_image, decode, earlier_masks=earlier_masks, order=order
            )
            drawn = [_Prompt(each.kind, each.coords, each.labels, None, each.mask) for each in found]
        else:
            drawn = [_draw(rng, image, PROMPT_KINDS[i % len(PROMPT_KINDS)]) for i in range(prompts_per_image)]
        for start in range(0, prompts_per_image, prompts_per_call):
            yield _example(image, drawn[start : start + prompts_per_call])


def scenes(embed: Embed, count: int, *, first: int = EVALUATION_SEED) -> Iterator[PromptedImage]:
    """`count` synthetic scenes with their exact masks, embedded by `embed` (uint8 [1024, 1024, 3] to an embedding)."""
    for seed in range(first, first + count):
        scene = make_scene(seed)
        picture = _shrink(scene.image)
        yield PromptedImage(f"scene {seed}", embed(scene.image), (FRAME_SIZE, FRAME_SIZE), picture, scene.masks)


def photos(paths: Sequence[Path], embed: Embed) -> Iterator[PromptedImage]:
    """Photos, embedded by `embed`.

    Raises:
        InputError: one cannot be read.
    """
    pil = require("PIL.Image", "to read images")
    for path in paths:
        rgb = read_image(path)
        height, width = frame_shape(*rgb.shape[:2])
        frame = np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        frame[:height, :width] = np.asarray(pil.fromarray(rgb).resize((width, height), pil.Resampling.BILINEAR))
        yield PromptedImage(path.name, embed(rgb), rgb.shape[:2], _shrink(frame))


def stored(images: Iterable[tuple[str, Image]]) -> Iterator[PromptedImage]:
    """Images of which only the name and the embedding are known: the embedding is their picture."""
    for name, image in images:
        yield PromptedImage(name, image.embedding, image.original_size, embedding_picture(image.embedding))


def embedding_picture(embedding: FloatArray) -> Picture:
    """An embedding [1, 256, 64, 64] for the eye, uint8 [256, 256, 3]: its three principal components as red, green, blue."""
    pixels = embedding.reshape(embedding.shape[1], -1).T.astype(np.float64)
    pixels -= pixels.mean(axis=0)
    _, axes = np.linalg.eigh(pixels.T @ pixels)
    projected = pixels @ axes[:, :-4:-1]
    low, high = np.percentile(projected, (2, 98), axis=0)
    shades = np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1) * 255.0 + 0.5
    side, grown = embedding.shape[2], LOW_RES_SIZE // embedding.shape[2]
    return shades.astype(np.uint8).reshape(side, side, 3).repeat(grown, axis=0).repeat(grown, axis=1)


@dataclass(frozen=True)
class _Prompt:
    kind: str
    coords: FloatArray
    labels: FloatArray
    truth: npt.NDArray[np.bool_] | None
    mask: npt.NDArray[np.float16] | None = None


def _draw(rng: np.random.Generator, image: PromptedImage, kind: str) -> _Prompt:
    if image.objects is not None:
        coords, labels, mask = draw_on_object(rng, image.objects, kind)
        covered = mask.reshape(LOW_RES_SIZE, _STEP, LOW_RES_SIZE, _STEP).mean(axis=(1, 3))
        return _Prompt(kind, coords, labels, covered >= 0.5)
    coords, labels = draw_prompt(rng, Image(image.embedding, image.original_size), kind)
    return _Prompt(kind, coords, labels, None)


def _example(image: PromptedImage, prompts: Sequence[_Prompt]) -> Example:
    longest = max(len(prompt.labels) for prompt in prompts)
    coords = np.zeros((len(prompts), longest, 2), np.float32)
    labels = np.full((len(prompts), longest), LABEL_ABSENT, np.float32)
    for row, prompt in enumerate(prompts):
        coords[row, : len(prompt.labels)], labels[row, : len(prompt.labels)] = prompt.coords, prompt.labels
    feed = {
        "image_embeddings": image.embedding,
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": np.zeros((len(prompts), 1, LOW_RES_SIZE, LOW_RES_SIZE), np.float32),
        "has_mask_input": np.zeros(len(prompts), np.float32),
    }
    for row, prompt in enumerate(prompts):
        if prompt.mask is not None:
            feed["mask_input"][row, 0], feed["has_mask_input"][row] = prompt.mask, 1
    truths = [prompt.truth for prompt in prompts if prompt.truth is not None]
    return Example(feed, tuple(prompt.kind for prompt in prompts), image, np.stack(truths) if truths else None)


def _shrink(frame: Picture) -> Picture:
    """A frame [1024, 1024, 3] at the masks' size, by the mean of 4 x 4 pixels."""
    blocks = frame.reshape(LOW_RES_SIZE, _STEP, LOW_RES_SIZE, _STEP, 3).mean(axis=(1, 3))
    return (blocks + 0.5).astype(np.uint8)
