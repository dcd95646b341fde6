"""Where calibration images come from: embedding files of a folder, or images in memory; checked one at a time. numpy only."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibrators.prompt_file import PromptFile
from calibrators.prompts import from_file
from trt_sam.contract import FRAME_SIZE
from trt_sam.errors import InputError
from trt_sam.feeds.feeds import Image
from trt_sam.feeds.realistic import DrawnPrompt
from trt_sam.imaging.embeddings import Embedding, check_encoder, embedding_files, load_embedding
from trt_sam.runtime.interface import checked_embedding

__all__ = [
    "SourceImage",
    "digest_of",
    "from_files",
    "from_folder",
    "from_memory",
]


@dataclass(frozen=True)
class SourceImage:
    """One image as it was found."""

    name: str
    image: Image = field(repr=False)
    load: Callable[[], Image] = field(repr=False)
    """Gives the image again, so that it need not be kept."""
    prompts: tuple[DrawnPrompt, ...] | None = field(repr=False, default=None)
    """The user's own, perhaps none for this image; None where they are to be drawn."""
    photo: str = ""
    """File name of the photo; "" where unknown."""


def from_memory(images: Sequence[Image]) -> Iterator[SourceImage]:
    """The images, checked.

    Raises:
        InputError: another shape or dtype, NaN, or one value everywhere.
    """
    for number, image in enumerate(images, start=1):
        checked_embedding(image.embedding)
        _check_varies(image.embedding, f"image {number}")
        yield SourceImage(f"image {number}", image, functools.partial(_itself, image))


def from_folder(folder: Path, prompts: PromptFile | None, encoder_sha256: str) -> Iterator[SourceImage]:
    """Every embedding file of `folder`, by name, with the prompts that `prompts` has for it; see `from_files`."""
    return from_files(embedding_files(folder), prompts, encoder_sha256)


def from_files(files: Sequence[Path], prompts: PromptFile | None, encoder_sha256: str) -> Iterator[SourceImage]:
    """The embedding files in their order, each read when it is asked for, with the prompts that `prompts` has for it.

    A bare array (.npy, .safetensors) does not know its photo: it is taken to fill the 1024 frame, unless it has prompts of its
    own, whose file must then say the photo's size.

    Raises:
        InputError: one cannot be read or is no embedding; another encoder's, or one of two; a prompt outside its photo.
    """
    first: tuple[Path, str] | None = None
    for path in files:
        size = None if path.suffix == ".npz" else _bare_size(path, prompts)
        embedding = load_embedding(path, original_size=size)
        first = check_encoder(path, embedding, encoder_sha256, first)
        _check_varies(embedding.image_embeddings, f"embedding file {path} (of {embedding.file_name})")
        own = None if prompts is None else _own_prompts(path, embedding, prompts)
        yield SourceImage(str(path), _image(embedding), functools.partial(_load, path, size), own, embedding.file_name)


def digest_of(embedding: npt.NDArray[Any]) -> bytes:
    """SHA-256 of the values of a float32 embedding."""
    return hashlib.sha256(np.ascontiguousarray(embedding, "<f4").data).digest()


def _bare_size(path: Path, prompts: PromptFile | None) -> tuple[int, int] | None:
    key = prompts.find(path.name, path.stem) if prompts is not None else None
    return (FRAME_SIZE, FRAME_SIZE) if prompts is None or key is None else prompts.sizes.get(key)


def _own_prompts(path: Path, embedding: Embedding, prompts: PromptFile) -> tuple[DrawnPrompt, ...]:
    key = prompts.find(*filter(None, (embedding.file_name, path.stem)))
    if key is None:
        return ()
    known = prompts.sizes.get(key, embedding.original_size)
    if known != embedding.original_size:
        height, width = embedding.original_size
        turned = " (photos are read upright, as their EXIF orientation says)" if known == (width, height) else ""
        raise InputError(
            f"prompt file {prompts.source} says that {key} is {known[1]}x{known[0]}, but the photo that was embedded is "
            f"{width}x{height}{turned}; they must be the same"
        )
    return from_file(prompts.prompts[key], embedding.original_size, f"prompt file {prompts.source}")


def _check_varies(embedding: npt.NDArray[Any], what: str) -> None:
    if embedding.min() == embedding.max():
        raise InputError(f"{what} holds {embedding.flat[0]:g} everywhere; that is no embedding of a photo, embed it again")


def _image(embedding: Embedding) -> Image:
    return Image(embedding.image_embeddings, embedding.original_size)


def _load(path: Path, size: tuple[int, int] | None) -> Image:
    return _image(load_embedding(path, original_size=size))


def _itself(image: Image) -> Image:
    return image
