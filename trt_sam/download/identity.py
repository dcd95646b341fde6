"""What a checkpoint's name or path stands for, and which weights, without loading them."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from trt_sam._cache import known_sha256
from trt_sam._files import existing_file
from trt_sam.download.catalogue import CATALOGUE, DATA_FOLDER, STANDINS, nearest_names
from trt_sam.download.fetch import fetch
from trt_sam.errors import CheckpointError, InputError, did_you_mean

__all__ = ["FOLDER_WEIGHTS", "check_source", "weights_sha256"]

FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The weights of a Hugging Face folder, the first that is there; in shards, each with `.index.json` behind it."""

_READ = (".bin", ".json", ".pt", ".pth", ".safetensors")
"""What a loader may read of a folder."""


def check_source(source: str) -> str:
    """Return `source` if it may be a checkpoint: a name of the catalogue, a stand-in, a file, a folder of weights, or a hub id.

    Raises:
        CheckpointError: it is none of them, and the message offers the nearest names; or a file is empty or cannot be read.
    """
    if source in CATALOGUE or source in STANDINS:
        return source
    # A loader would say the same of these, after seconds of importing torch.
    if Path(source).is_dir():
        if not _has_weights(Path(source)):
            raise CheckpointError(
                f"checkpoint {source} is a folder without weights; give a .pth, or a Hugging Face folder, which holds "
                f"config.json and {FOLDER_WEIGHTS[0]}"
            )
        return source
    if Path(source).exists():
        try:
            existing_file(source, "checkpoint")
        except InputError as error:
            raise CheckpointError(str(error)) from error
        return source
    if _looks_like_hub_id(source):
        return source
    near = nearest_names(source)
    meant = did_you_mean(near)
    names = ", ".join((*CATALOGUE, STANDINS[0]))
    raise CheckpointError(
        f"checkpoint not found: {source}; {meant}give a .pth, a Hugging Face folder or id, or a name: {names}"
    )


def weights_sha256(source: str | os.PathLike[str]) -> str | None:
    """A hash over the bytes of everything that `load_checkpoint(source)` may read; a name of the catalogue is fetched.

    None where that cannot be told from files: a hub id, a path with nothing there, or a folder without weights.

    Raises:
        TrtSamError: as `fetch`.
    """
    text = os.fspath(source)
    if text in CATALOGUE:
        fetch(text)
        return CATALOGUE[text].sha256
    path = DATA_FOLDER / "standin" if text in STANDINS else Path(text)
    try:
        if not path.is_dir():
            return known_sha256(path)
        if not _has_weights(path):
            return None
        files = sorted(each for each in path.iterdir() if each.suffix in _READ)
        # The stand-ins share their files; the name tells them apart.
        digest = hashlib.sha256((text if text in STANDINS else "").encode())
        for each in files:
            digest.update(f"\n{each.name} {known_sha256(each)}".encode())
    except OSError:
        return None
    return digest.hexdigest()


def _has_weights(folder: Path) -> bool:
    return any((folder / f"{name}{index}").exists() for name in FOLDER_WEIGHTS for index in ("", ".index.json"))


def _looks_like_hub_id(source: str) -> bool:
    """Whether a source that is no existing path has the form owner/name of the Hugging Face hub."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) is not None and Path(source).suffix not in {
        *(".pth", ".pt", ".bin", ".safetensors", ".onnx", ".ckpt")
    }
