"""Golden data: prompts on images and what PyTorch answers in float64, in one file that judges a decoder anywhere. numpy only.

An `.npz`; with N prompts on M images:

| key | holds |
|---|---|
| `about` | JSON text: format, checkpoint with its decoder's hash, versions, `step`, `sha256`; of images name, size, hashes |
| `image_embeddings/0` ... | float32 [1, 256, 64, 64], or float16 in a small file: the answers are those to the rounded one |
| `picture/0` ... | uint8, the bytes of a JPEG of the 256 x 256 frame, for people |
| `image_index` | int32 [N] |
| `kinds` | text [N] |
| `point_coords`, `point_labels` | float32 [N, P, 2], [N, P], padded with absent points |
| `iou_predictions` | float32 [N, 4] |
| `low_res_masks` | float32 [N, 4, 256 / step, 256 / step]: logits at rows and columns `step // 2`, `step // 2 + step`, ... |
| `mask_bits` | uint8 [N, 4, 256, 32]: logits > 0, eight to a byte |

`sha256` is that of every array and of the rest of `about`, so that a file that was cut or changed is found out. Nothing in it
is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._files import atomic_path, existing_file
from trt_sam._lazy import require
from trt_sam.accuracy.examples import Example, PromptedImage, embedding_picture
from trt_sam.contract import EMBEDDING_SHAPE, LABEL_ABSENT, LOW_RES_SIZE
from trt_sam.errors import InputError
from trt_sam.gate.answers import Answer
from trt_sam.graph.advice import WRITE_GOLDEN

__all__ = ["Golden", "digest_of_embedding", "load_golden", "save_golden", "shipped_golden"]

Array = npt.NDArray[Any]

_FORMAT = 2
_SHIPPED = Path(__file__).parents[1] / "data" / "golden"
_PER_CALL = 8
_LARGEST_MEMBER = 4 << 30


@dataclass(frozen=True)
class Golden:
    """Examples and the reference's answers to them."""

    checkpoint: str
    """Name of the checkpoint."""
    checkpoint_sha256: str
    """Of its decoder's weights."""
    examples: tuple[Example, ...] = field(repr=False)
    answers: tuple[Answer, ...] = field(repr=False)
    versions: Mapping[str, str]
    path: str = ""
    sha256: str = ""
    """Of the arrays."""

    @property
    def prompts(self) -> int:
        """How many there are."""
        return sum(len(example.kinds) for example in self.examples)

    @property
    def images(self) -> list[PromptedImage]:
        """The images, each once."""
        found: list[PromptedImage] = []
        for example in self.examples:
            if all(example.image is not image for image in found):
                found.append(example.image)
        return found


def digest_of_embedding(embedding: Array) -> str:
    """SHA-256 of the values of a float32 embedding, as calibration writes it into graphs."""
    return hashlib.sha256(np.ascontiguousarray(embedding, "<f4").data).hexdigest()


def shipped_golden(checkpoint_sha256: str) -> Path | None:
    """The golden data in the package for a decoder of this hash; None where there are none."""
    for path in sorted(_SHIPPED.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            if json.loads(str(file["about"]))["checkpoint_sha256"] == checkpoint_sha256:
                return path
    return None


def save_golden(path: str | os.PathLike[str], golden: Golden, *, half: bool = False) -> None:
    """Write golden data, whole or not at all; with `half` embeddings are stored in float16, which must hold them exactly.

    Raises:
        InputError: `path` does not end in .npz or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"golden data {path} must end in .npz")
    images = golden.images
    longest = max(example.feed["point_labels"].shape[1] for example in golden.examples)
    arrays: dict[str, Array] = {}
    for number, image in enumerate(images):
        arrays[f"image_embeddings/{number}"] = image.embedding.astype(np.float16) if half else image.embedding
        arrays[f"picture/{number}"] = _jpeg(image.picture)
    rows = [(number, e) for e in golden.examples for number, image in enumerate(images) if image is e.image]
    arrays["image_index"] = np.concatenate([np.full(len(e.kinds), number, np.int32) for number, e in rows])
    arrays["kinds"] = np.array([kind for e in golden.examples for kind in e.kinds])
    arrays["point_coords"] = np.concatenate([_padded(e.feed["point_coords"], longest, 0.0) for e in golden.examples])
    arrays["point_labels"] = np.concatenate([_padded(e.feed["point_labels"], longest, LABEL_ABSENT) for e in golden.examples])
    arrays["iou_predictions"] = np.concatenate([a.scores for a in golden.answers])
    arrays["low_res_masks"] = np.concatenate([a.logits for a in golden.answers])
    arrays["mask_bits"] = np.packbits(np.concatenate([a.inside for a in golden.answers]), axis=-1)
    about: dict[str, Any] = {
        "format": _FORMAT,
        "checkpoint": golden.checkpoint,
        "checkpoint_sha256": golden.checkpoint_sha256,
        "versions": dict(golden.versions),
        "step": golden.answers[0].step,
        "images": [
            {
                "name": i.name,
                "original_size": list(i.original_size),
                "embedding_sha256": digest_of_embedding(i.embedding),
                "whole_sha256": i.whole_sha256,
            }
            for i in images
        ],
    }
    about["sha256"] = _hash(arrays, about)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]


def load_golden(path: str | os.PathLike[str]) -> Golden:
    """Read golden data.

    Raises:
        InputError: missing, cut short, changed, of another format or no golden data at all.
    """
    path = existing_file(path, "golden data")
    again = f"write it again with {WRITE_GOLDEN}"
    try:
        with path.open("rb") as head:
            begins = head.read(2)
        if begins not in (b"PK", b"\x93N"):
            raise InputError(
                f"{path} is no golden data of trt-sam golden (it is no .npz, or its beginning is damaged); {again}"
            )
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise InputError(f"{path} is no golden data of trt-sam golden (it is one array); {again}")
        with opened as file:
            if "about" not in file.files:
                raise InputError(f"{path} is no golden data of trt-sam golden (it has no `about`); {again}")
            for member in file.zip.infolist() if file.zip is not None else ():
                if member.file_size > _LARGEST_MEMBER:
                    raise InputError(f"{path}: {member.filename} unpacks to {member.file_size} bytes: no golden data; {again}")
            about = json.loads(str(file["about"]))
            arrays = {name: file[name] for name in file.files if name != "about"}
    except InputError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read as golden data, it is cut short or damaged ({_line(error)}); {again}"
        ) from None
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise InputError(f"{path} is golden data of format {found}, this version reads {_FORMAT}; {again}")
    if _hash(arrays, about) != about.get("sha256"):
        raise InputError(f"{path} was changed after it was written (it has another hash than it says); {again}")
    return _assembled(path, about, arrays)


def _assembled(path: Path, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> Golden:
    step = int(about["step"])
    images = []
    for number, each in enumerate(about["images"]):
        embedding = np.asarray(arrays[f"image_embeddings/{number}"], np.float32)
        if embedding.shape != EMBEDDING_SHAPE:
            raise InputError(f"{path}: image_embeddings/{number} is {list(embedding.shape)}, must be {list(EMBEDDING_SHAPE)}")
        height, width = each["original_size"]
        picture = _picture(arrays.get(f"picture/{number}"), embedding)
        whole = str(each.get("whole_sha256", ""))
        images.append(PromptedImage(each["name"], embedding, (height, width), picture, whole_sha256=whole))
    examples, answers = [], []
    for rows, number in _calls(arrays["image_index"]):
        labels = arrays["point_labels"][rows]
        width = max(1, int((labels != LABEL_ABSENT).sum(axis=1).max()))
        count = len(labels)
        feed = {
            "image_embeddings": images[number].embedding,
            "point_coords": np.ascontiguousarray(arrays["point_coords"][rows][:, :width]),
            "point_labels": np.ascontiguousarray(labels[:, :width]),
            "mask_input": np.zeros((count, 1, LOW_RES_SIZE, LOW_RES_SIZE), np.float32),
            "has_mask_input": np.zeros(count, np.float32),
            "orig_im_size": np.array(images[number].original_size, np.int64),
        }
        examples.append(Example(feed, tuple(arrays["kinds"][rows].tolist()), images[number]))
        inside = np.unpackbits(arrays["mask_bits"][rows], axis=-1, count=LOW_RES_SIZE).astype(np.bool_)
        answers.append(Answer(arrays["iou_predictions"][rows], inside, arrays["low_res_masks"][rows], step))
    return Golden(
        about["checkpoint"],
        about["checkpoint_sha256"],
        tuple(examples),
        tuple(answers),
        about["versions"],
        str(path),
        about["sha256"],
    )


def _calls(image_index: Array) -> Iterator[tuple[slice, int]]:
    """Rows of one image, a few at a time."""
    start = 0
    while start < len(image_index):
        number = int(image_index[start])
        same = int(np.argmax(image_index[start:] != number)) or len(image_index) - start
        stop = start + min(same, _PER_CALL)
        yield slice(start, stop), number
        start = stop


def _padded(array: Array, width: int, value: float) -> Array:
    pad = [(0, 0), (0, width - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
    return np.pad(array, pad, constant_values=value)


def _hash(arrays: Mapping[str, Array], about: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in about.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def _jpeg(picture: Array) -> Array:
    buffer = io.BytesIO()
    require("PIL.Image", "to keep a picture").fromarray(picture).save(buffer, "JPEG", quality=85)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _picture(stored: Array | None, embedding: Array) -> npt.NDArray[np.uint8]:
    """The stored picture where Pillow is there, else the embedding in three colours."""
    try:
        from PIL import Image
    except ImportError:
        return embedding_picture(embedding)
    if stored is None:
        return embedding_picture(embedding)
    return np.asarray(Image.open(io.BytesIO(stored.tobytes())).convert("RGB"), np.uint8)


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
