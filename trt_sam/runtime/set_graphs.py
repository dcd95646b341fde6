"""The graphs of a set on disk by what they do, each checked against its hash. The standard library alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trt_sam._files import sha256_of
from trt_sam.contract import MANIFEST_NAME, PREPARED_NAME
from trt_sam.errors import InputError, ManifestError
from trt_sam.graph.advice import NEW_SET, command_of_set

__all__ = ["check_is_set", "graphs_of_set", "is_set", "prepared_of_set"]


def is_set(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder with a manifest, or names a manifest."""
    return Path(path).name == MANIFEST_NAME or Path(path, MANIFEST_NAME).is_file()


def check_is_set(path: str | os.PathLike[str]) -> None:
    """Raise InputError where `path`, which has to be a set, is none."""
    path = Path(path)
    if is_set(path):
        return
    if path.is_file() and is_set(path.parent):
        raise InputError(f"{path} is a file of a set, and no set with a manifest itself; give its folder, {path.parent}")
    why = f"it has no {MANIFEST_NAME}" if path.is_dir() else "it is a file" if path.exists() else "it does not exist"
    raise InputError(f"{path} is no set with a manifest: {why}; give a set's folder, or write one with {NEW_SET}")


def graphs_of_set(path: str | os.PathLike[str]) -> dict[str, Path]:
    """The ONNX graphs of a set of `trt-sam build` or `trt-sam export --encoder`, by role ("decode", "decode_mask", "encode").

    Args:
        path: its folder or its manifest.

    Raises:
        ManifestError: there is no manifest, it is damaged, or a graph is missing or was changed.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    manifest = folder / MANIFEST_NAME
    try:
        data: Any = json.loads(manifest.read_text(encoding="utf-8"))
        entries = {graph["role"]: (Path(graph["onnx"]["name"]), graph["onnx"]["sha256"]) for graph in data["graphs"]}
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(f"{folder} is no set of graphs: it has no {MANIFEST_NAME}; write one with {NEW_SET}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{manifest} is damaged ({error!r}); write the set again with {command_of_set(folder, None)}"
        ) from None
    again = f"write the set again with {command_of_set(folder, data)}"
    graphs = {}
    for role, (name, sha256) in entries.items():
        file = folder / name.name
        if not file.is_file():
            raise ManifestError(f"{name} is missing from the set {folder}; {again}")
        if sha256_of(file) != sha256:
            raise ManifestError(f"{file} is not the graph that the set was written with: its hash differs; {again}")
        graphs[role] = file
    return graphs


def prepared_of_set(path: str | os.PathLike[str]) -> dict[str, Path] | None:
    """The decoder in two graphs and in one, by role, where `path` names the second of the two in its set; else None.

    Raises:
        ManifestError: as `graphs_of_set`.
    """
    path = Path(path)
    if not path.is_file() or path.name != PREPARED_NAME or not is_set(path.parent):
        return None
    graphs = graphs_of_set(path.parent)
    roles = ("decode", "prepare", "decode_prepared")
    return {role: graphs[role] for role in roles} if graphs.get("decode_prepared") == path else None
