"""Prompts on several images in one call: which go together, and what a graph of several images is fed. numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_SHAPE, check_image_index
from trt_sam.errors import ContractError

__all__ = ["filled_feed", "image_of_each", "spans"]

Array = npt.NDArray[Any]


def image_of_each(image: int | Sequence[int] | None, count: int) -> list[int] | list[None]:
    """The number of each prompt's image, where a call names one for each or one for all; None for the current one.

    Raises:
        ContractError: as many images as prompts are needed, and they are whole numbers.
    """
    if image is None:
        return [None] * count
    if isinstance(image, int | np.integer):
        return [int(image)] * count
    numbers = np.asarray(image)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ContractError(f"image is {image!r}, must be the number of an image, or a list of them, one to each prompt")
    if len(numbers) != count:
        raise ContractError(f"image names {len(numbers)} images for {count} prompts; give one to each prompt, or one for all")
    found: list[int] = numbers.tolist()
    return found


def spans(images: Sequence[int | None], most: int, most_images: int) -> Iterator[slice]:
    """The rows of prompts on `images` in passes, in order: at most `most` prompts on at most `most_images` images each."""
    start = 0
    seen: set[int | None] = set()
    for row, number in enumerate(images):
        if row - start == most or (number not in seen and len(seen) == most_images):
            yield slice(start, row)
            start, seen = row, set()
        seen.add(number)
    if start < len(images):
        yield slice(start, len(images))


def filled_feed(feed: Mapping[str, Array], images: int) -> dict[str, Array]:
    """A feed for a graph of several images, from one that has fewer, or one image and no `image_index`.

    Raises:
        ContractError: a prompt belongs to an image that is not there, or `image_index` is missing and there are several.
    """
    filled = dict(feed)
    embeddings = np.asarray(feed["image_embeddings"])
    if embeddings.ndim != len(EMBEDDING_SHAPE):
        return filled  # the check of the feed says what is wrong
    coords = feed.get("point_coords")
    if "image_index" not in feed and len(embeddings) == 1 and coords is not None and np.ndim(coords):
        filled["image_index"] = np.zeros(len(coords), np.int32)
    elif "image_index" in feed:
        check_image_index(np.asarray(feed["image_index"]), len(embeddings))
    if 0 < len(embeddings) < images:
        rest = np.zeros((images - len(embeddings), *embeddings.shape[1:]), embeddings.dtype)
        filled["image_embeddings"] = np.concatenate([embeddings, rest])
    return filled
