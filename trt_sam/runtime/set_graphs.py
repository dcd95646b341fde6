"""The graphs of a set on disk by what they do, each checked against its hash. The standard library alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trt_sam._files import sha256_of
from trt_sam.contract import MANIFEST_NAME
from trt_sam.errors import ManifestError

__all__ = ["graphs_of_set", "is_set"]


def is_set(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder with a manifest, or names a manifest."""
    return Path(path).name == MANIFEST_NAME or Path(path, MANIFEST_NAME).is_file()


def graphs_of_set(path: str | os.PathLike[str]) -> dict[str, Path]:
    """The ONNX graphs of a set of `trt-sam build` or `trt-sam export --encoder`, by role ("decode", "decode_mask", "encode").

    Args:
        path: its folder or its manifest.

    Raises:
        ManifestError: there is no manifest, it is damaged, or a graph is missing or was changed.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    manifest = folder / MANIFEST_NAME
    again = f"write the set again with trt-sam export --encoder --output {folder}"
    try:
        data: Any = json.loads(manifest.read_text(encoding="utf-8"))
        entries = {graph["role"]: (Path(graph["onnx"]["name"]), graph["onnx"]["sha256"]) for graph in data["graphs"]}
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(f"{folder} is no set of graphs: it has no {MANIFEST_NAME}; {again}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{manifest} is damaged ({error!r}); {again}") from None
    graphs = {}
    for role, (name, sha256) in entries.items():
        file = folder / name.name
        if not file.is_file():
            raise ManifestError(f"{name} is missing from the set {folder}; {again}")
        if sha256_of(file) != sha256:
            raise ManifestError(f"{file} is not the graph that the set was written with: its hash differs; {again}")
        graphs[role] = file
    return graphs
