"""What a comparison is asked on: golden data, photos, stored embeddings with or without their photos, scenes, random noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.accuracy.examples import PromptedImage, embedding_picture, make_examples, photos, scenes, stored
from trt_sam.errors import InputError
from trt_sam.feeds.feeds import Image, random_images
from trt_sam.feeds.realistic import Decode
from trt_sam.gate.comparison import Questions
from trt_sam.gate.fitting import Asked, rows_of
from trt_sam.gate.golden import Golden
from trt_sam.imaging.embeddings import check_encoder, embedding_files, load_embedding

__all__ = ["asked_of", "golden_questions", "noise", "of_embeddings", "of_photos", "of_scenes"]

Embed = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
Array = npt.NDArray[Any]

_PER_CALL = 8
_PER_SCENE = 16
_FRAME = (1024, 1024)


def golden_questions(golden: Golden, prompts: int, *, answered: bool = True) -> Questions:
    """The first `prompts` prompts of golden data, with their answers unless the reference is to give its own."""

    def asked() -> Iterator[Asked]:
        left = prompts
        for example, answer in zip(golden.examples, golden.answers, strict=True):
            if left <= 0:
                return
            part, told = rows_of(example, answer, np.arange(min(left, len(example.kinds))))
            left -= len(part.kinds)
            yield part, told if answered else None

    names = ", ".join(image.name for image in golden.images)
    return Questions(asked(), f"golden data of {golden.checkpoint} on {names} ({Path(golden.path).name})")


def of_scenes(embed: Embed, prompts: int, *, seed: int) -> Questions:
    """Prompts on held-out synthetic scenes, for the stand-ins."""
    count = -(-prompts // _PER_SCENE)
    images = scenes(embed, count)
    return Questions(asked_of(images, count, prompts, None, seed=seed), f"{count} synthetic scenes that it was not trained on")


def of_photos(
    paths: Sequence[Path], embed: Embed, prompts: int, decode: Decode, *, seed: int, earlier_masks: bool
) -> Questions:
    """Prompts on photos, embedded on the way.

    Raises:
        InputError: one cannot be read.
    """
    asked = asked_of(photos(paths, embed), len(paths), prompts, decode, seed=seed, earlier_masks=earlier_masks)
    return Questions(asked, f"{_count(len(paths), prompts)} photos")


def of_embeddings(
    folder: Path,
    pictures: Sequence[Path],
    prompts: int,
    decode: Decode,
    *,
    seed: int,
    earlier_masks: bool,
    encoder_sha256: str,
) -> Questions:
    """Prompts on embedding files; where the photo that one names is among `pictures`, that is what is shown of it.

    Raises:
        InputError: there is none, one cannot be read, or one is of another encoder than `encoder_sha256` ("": unknown), or
            than the others.
    """
    files = embedding_files(folder)
    images = _stored(files, {path.name: path for path in pictures}, encoder_sha256)
    asked = asked_of(images, len(files), prompts, decode, seed=seed, earlier_masks=earlier_masks)
    return Questions(asked, f"{_count(len(files), prompts)} embeddings of {folder}")


def noise(prompts: int, *, seed: int) -> Questions:
    """Prompts on random embeddings: they show arithmetic; their masks mean nothing."""
    count = -(-prompts // _PER_SCENE)
    images = stored((f"noise {i}", image) for i, image in enumerate(random_images(count, seed)))
    asked = asked_of(images, count, prompts, None, seed=seed)
    return Questions(asked, f"{count} random embeddings, whose masks mean nothing", masks_mean_something=False)


def asked_of(
    images: Iterator[PromptedImage],
    count: int,
    prompts: int,
    decode: Decode | None,
    *,
    seed: int,
    earlier_masks: bool = False,
) -> Iterator[Asked]:
    """`prompts` prompts spread over `count` images, those of each image together."""
    if prompts < 1:
        raise InputError(f"--prompts is {prompts}, must be at least 1")
    each, more = divmod(prompts, count)
    for number, image in enumerate(images):
        own = each + (number < more)
        if own == 0:
            return
        examples = make_examples(
            [image], own, prompts_per_call=_PER_CALL, seed=seed + number, decode=decode, earlier_masks=earlier_masks
        )
        for example in examples:
            yield example, None


def _stored(files: Sequence[Path], pictures: dict[str, Path], encoder_sha256: str) -> Iterator[PromptedImage]:
    first: tuple[Path, str] | None = None
    for path in files:
        found = load_embedding(path, original_size=None if path.suffix == ".npz" else _FRAME)
        first = check_encoder(path, found, encoder_sha256, first)
        photo = pictures.get(found.file_name) or pictures.get(path.stem)
        name = found.file_name or path.name
        if photo is None:
            image = Image(found.image_embeddings, found.original_size)
            yield PromptedImage(name, image.embedding, image.original_size, embedding_picture(image.embedding))
        else:
            yield from photos([photo], functools.partial(_known, found.image_embeddings))


def _known(embedding: npt.NDArray[np.float32], _: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return embedding


def _count(images: int, prompts: int) -> int:
    return min(images, prompts)
