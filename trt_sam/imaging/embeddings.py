"""The embedding file: what the image encoder made of one photo, kept for any number of prompts. numpy only.

An `.npz` with `image_embeddings` float32 [1, 256, 64, 64], `original_size` int64 [2] (height, width of the photo),
`file_name` (the photo's), `encoder_sha256` (which weights made it) and `checkpoint_sha256` (which decoder belongs to them), all
unicode. Nothing in it is ever unpickled.
Of other people's files the first two are enough, the embedding in any float type and without the axis of length 1 too, the
size in any integer type.
"""

from __future__ import annotations

import os
import shlex
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trt_sam._files import atomic_path, existing_file
from trt_sam._lazy import require
from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.errors import InputError
from trt_sam.imaging.photos import read_image

__all__ = [
    "Embedding",
    "Encoder",
    "check_encoder",
    "embed_photo",
    "embed_pixels",
    "embedding_files",
    "load_embedding",
    "save_embedding",
]

_SUFFIXES = (".npz", ".npy", ".safetensors")

_LARGEST_MEMBER = 64 << 20
"""An embedding is 4 MiB; a member that unpacks to more than this is no embedding, perhaps a zip bomb."""


@dataclass(frozen=True)
class Embedding:
    """The image encoder's output for one photo."""

    image_embeddings: npt.NDArray[np.float32]
    """float32 [1, 256, 64, 64]."""
    original_size: tuple[int, int]
    """(height, width) of the photo in pixels."""
    file_name: str = ""
    """Of the photo; where the embedding file does not say, that file's own name without its ending."""
    encoder_sha256: str = ""
    """Hash of the encoder's weights (`ImageEncoder.sha256`); empty where unknown."""
    checkpoint_sha256: str = ""
    """Hash of the decoder's weights of the same checkpoint (`Checkpoint.sha256`); empty where unknown."""


class Encoder(Protocol):
    """An image encoder that knows its weights' hash, such as `Checkpoint.image_encoder()` gives."""

    sha256: str

    def embed(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed uint8 [height, width, 3] RGB to float32 [1, 256, 64, 64]."""


def embed_photo(photo: Path, encoder: Encoder) -> Embedding:
    """Read a photo and embed it; raises InputError where it cannot be read."""
    return embed_pixels(read_image(photo), photo.name, encoder)


def embed_pixels(rgb: npt.NDArray[np.uint8], file_name: str, encoder: Encoder) -> Embedding:
    """Embed uint8 [height, width, 3] RGB under the name of its photo."""
    checkpoint_sha256 = getattr(encoder, "checkpoint_sha256", "")
    return Embedding(encoder.embed(rgb), (rgb.shape[0], rgb.shape[1]), file_name, encoder.sha256, checkpoint_sha256)


def save_embedding(path: str | os.PathLike[str], embedding: Embedding) -> None:
    """Write an embedding file, whole or not at all.

    Raises:
        InputError: `path` does not end in .npz or cannot be written, or the embedding is not one.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"embedding file {path} must end in .npz")
    array = embedding.image_embeddings
    if array.shape != EMBEDDING_SHAPE or array.dtype != np.float32:
        raise InputError(f"the embedding to save is {array.dtype} {list(array.shape)}, must be float32 {list(EMBEDDING_SHAPE)}")
    _checked_array(array, "the embedding to save")
    size = _checked_size(np.asarray(embedding.original_size, dtype=np.int64), "the embedding to save")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            image_embeddings=array,
            original_size=np.array(size, dtype=np.int64),
            file_name=np.array(embedding.file_name, dtype=np.str_),
            encoder_sha256=np.array(embedding.encoder_sha256, dtype=np.str_),
            checkpoint_sha256=np.array(embedding.checkpoint_sha256, dtype=np.str_),
        )


def load_embedding(path: str | os.PathLike[str], *, original_size: tuple[int, int] | None = None) -> Embedding:
    """Read an embedding file, or a bare `.npy` or `.safetensors` of the same shape.

    Args:
        path: `.npz` as `save_embedding` writes it, or with `image_embeddings` and `original_size` alone; or `.npy`; or
            `.safetensors` with `image_embeddings` or one tensor. Floats of any size, [1, 256, 64, 64] or [256, 64, 64].
        original_size: (height, width) of the photo; required for a bare array, which does not know it.

    Raises:
        InputError: missing, empty, truncated or another kind of file; a key is missing; wrong shape, dtype or size; NaN.
        MissingDependencyError: safetensors is not installed.
    """
    path = existing_file(path, "embedding file")
    if path.suffix == ".npz":
        return _load_npz(path, original_size)
    if path.suffix not in _SUFFIXES:
        raise InputError(f"embedding file {path} ends in {path.suffix!r}, must be .npz, .npy or .safetensors")
    if original_size is None:
        raise InputError(f"{path} does not say how large its photo was; give the original size (height, width)")
    array = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path)
    size = _checked_size(np.asarray(original_size, dtype=np.int64), f"the photo of {path}")
    return Embedding(_checked_array(array, f"embedding file {path}"), size, path.stem)


def _embed(folder: Path) -> str:
    return shlex.join(["trt-sam", "embed", "PHOTOS", "--checkpoint", "CHECKPOINT", "--output", str(folder)])


def embedding_files(folder: Path) -> list[Path]:
    """The embedding files directly in `folder`, at least one, by name; InputError where there is none."""
    if not folder.is_dir():
        raise InputError(f"embeddings folder not found: {folder}; write one with {_embed(folder)}")
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith("."))
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read: {error.strerror}") from error
    if not files:
        kinds = ", ".join(_SUFFIXES)
        raise InputError(f"no embedding file ({kinds}) in {folder}; write some with {_embed(folder)}")
    return files


def check_encoder(path: Path, embedding: Embedding, expected: str, first: tuple[Path, str] | None) -> tuple[Path, str] | None:
    """The first file of a folder that names its encoder, so far; InputError where one is of another encoder.

    Args:
        path: the file.
        embedding: what it holds.
        expected: hash of the checkpoint's encoder, "" where unknown.
        first: what this gave for the file before.
    """
    found = embedding.encoder_sha256
    if not found:
        return first
    if expected and found != expected:
        raise InputError(
            f"embedding file {path} was made by another image encoder ({found[:12]}) than the checkpoint's ({expected[:12]}); "
            "embed the photos with this checkpoint"
        )
    if first is not None and found != first[1]:
        raise InputError(f"embedding files {first[0]} and {path} were made by different image encoders; embed the photos again")
    return first or (path, found)


def _load_npz(path: Path, original_size: tuple[int, int] | None) -> Embedding:
    array, stored_size = (_read_member(path, name) for name in ("image_embeddings", "original_size"))
    size = _checked_size(stored_size, f"embedding file {path}")
    if original_size is not None and tuple(original_size) != size:
        raise InputError(f"embedding file {path} is of a photo of {size} (height, width), not {tuple(original_size)}")
    texts = []
    for name, absent in (("file_name", path.stem), ("encoder_sha256", ""), ("checkpoint_sha256", "")):
        text = _read_member(path, name, np.array(absent))
        if text.dtype.kind != "U" or text.shape != ():
            found = f"{text.dtype} {list(text.shape)}"
            raise InputError(f"embedding file {path}: {name} is {found}, must be one unicode string; write it again")
        texts.append(str(text))
    return Embedding(_checked_array(array, f"embedding file {path}"), size, *texts)


def _read_member(path: Path, name: str, absent: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """One array of an .npz, its packed size checked before it is unpacked; `absent` where it is not there and need not be."""
    try:
        with zipfile.ZipFile(path) as archive:
            try:
                info = archive.getinfo(f"{name}.npy")
            except KeyError:
                if absent is not None:
                    return absent
                held = ", ".join(n.removesuffix(".npy") for n in archive.namelist()[:5]) or "nothing"
                raise InputError(
                    f"embedding file {path} has no {name}, it holds {held}; it must hold image_embeddings "
                    f"{list(EMBEDDING_SHAPE)} and original_size (height, width of the photo)"
                ) from None
            if info.file_size > _LARGEST_MEMBER:
                raise InputError(f"embedding file {path}: {name} unpacks to {info.file_size:,} bytes; this is no embedding")
            with archive.open(info) as member:
                array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
                return array
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"embedding file {path} cannot be read as .npz ({error}); write it again") from None


def _read_npy(path: Path) -> npt.NDArray[Any]:
    try:
        with path.open("rb") as file:
            # mapped, so that a header that claims terabytes reserves none of them
            array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r") if file.read(6) == b"\x93NUMPY" else np.empty(0)
    except (EOFError, OSError, ValueError) as error:
        raise InputError(f"embedding file {path} cannot be read as .npy ({error}); write it again") from None
    if array.size == 0:
        raise InputError(f"embedding file {path} is not an .npy file, or an empty one; write it with numpy.save")
    return array


def _read_safetensors(path: Path) -> npt.NDArray[Any]:
    safetensors = require("safetensors", "to read .safetensors")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            names = list(file.keys())
            name = "image_embeddings" if "image_embeddings" in names or len(names) != 1 else names[0]
            if name not in names:
                raise InputError(f"embedding file {path} has no image_embeddings among its {len(names)} tensors; rename one")
            array: npt.NDArray[Any] = file.get_tensor(name)
            return array
    except (safetensors.SafetensorError, OSError, TypeError) as error:
        raise InputError(f"embedding file {path} cannot be read as safetensors ({error}); write it again") from None


def _checked_array(array: npt.NDArray[Any], what: str) -> npt.NDArray[np.float32]:
    """The embedding as float32 [1, 256, 64, 64], a copy: a mapped file may change under it."""
    shown = f"{what} is {array.dtype} {list(array.shape)}, must be floats {list(EMBEDDING_SHAPE)}"
    if array.dtype.kind != "f" or array.shape not in (EMBEDDING_SHAPE, EMBEDDING_SHAPE[1:]):
        raise InputError(f"{shown}; {_advice(array)}")
    with np.errstate(over="ignore"):  # seen below
        whole = np.array(array, dtype=np.float32, order="C").reshape(EMBEDDING_SHAPE)
    if not np.isfinite(whole).all():
        raise InputError(
            f"{what} holds NaN or infinity as float32; every value must be finite; run the image encoder in float32"
        )
    return whole


def _advice(array: npt.NDArray[Any]) -> str:
    _, channels, height, width = EMBEDDING_SHAPE
    if array.dtype.kind != "f":
        return "store what SAM's image encoder gives, before any scaling to integers"
    if array.shape[-3:] == (height, width, channels):
        return "channels come first; transpose it"
    if array.ndim == 4 and array.shape[1:] == EMBEDDING_SHAPE[1:]:
        return "one file is of one photo; write a file for each"
    if array.size == channels * height * width:
        return f"reshape it to {list(EMBEDDING_SHAPE)}"
    if array.ndim >= 3 and array.shape[-3] == channels:
        return "run the image encoder at 1024 px"
    return "store what SAM's image encoder gives, after its neck"


def _checked_size(size: npt.NDArray[Any], what: str) -> tuple[int, int]:
    if size.dtype.kind not in "iu" or size.shape not in ((2,), (1, 2)) or (size < 1).any():
        found = f"{size.dtype} {size.tolist()}" if size.size <= 4 else f"{size.dtype} of shape {list(size.shape)}"
        raise InputError(f"{what} has original_size {found}, must be two whole numbers (height, width), both at least 1")
    height, width = size.ravel().tolist()
    return height, width
