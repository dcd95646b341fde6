"""What `manifest.json` says of one graph of a set, and of one file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_sam.contract import TensorSpec
from trt_sam.engine import manifest_json as parsing
from trt_sam.engine.layers import KernelSummary
from trt_sam.recipe import GraphOptions

ROLES = ("decode", "decode_mask", "prepare", "decode_prepared", "encode")
"""What a graph does: masks from prompts; the same with an earlier mask; the first in two graphs, what depends on the image
alone and the rest; image to embedding."""


@dataclass(frozen=True)
class FileEntry:
    """A file of the set, in the manifest's own folder."""

    name: str
    sha256: str
    size: int
    """In bytes."""

    @staticmethod
    def of(path: Path) -> FileEntry:
        """Describe the file at `path`."""
        data = path.read_bytes()
        return FileEntry(path.name, hashlib.sha256(data).hexdigest(), len(data))


@dataclass(frozen=True)
class GraphEntry:
    """One graph of the set with its engine."""

    role: str
    onnx: FileEntry
    engine: FileEntry | None
    """None in a set of graphs alone."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limits: Mapping[str, tuple[int, int]]
    """Least and largest value of each dynamic dimension over all profiles."""
    options: GraphOptions
    checkpoint_sha256: str = ""
    kernels: tuple[KernelSummary, ...] = ()
    """One per profile of the recipe; empty where the flavour logs no layer list."""
    layers: FileEntry | None = None
    """What each kernel of the engine is, by `write_layers`; None where TensorRT told nothing, and in older manifests."""
    calibration: str | None = None
    """Fingerprint of the feeds that this graph was calibrated on, where it was: each graph takes prompts of its own."""
    calibrated: Mapping[str, Any] | None = None
    """How: hashes of photos and of embeddings, shares of prompts, seed, strength of the scale, as the graph itself says."""

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The graph, and its engine and the list of its layers where they are there."""
        return tuple(file for file in (self.onnx, self.engine, self.layers) if file is not None)

    @property
    def engine_name(self) -> str:
        """Of the engine's file; empty where there is none."""
        return "" if self.engine is None else self.engine.name


def graph_entry(data: Any, calibration: str | None) -> GraphEntry:
    """One item of the file's list `graphs`; `calibration` is what an older file says for the whole set.

    Raises:
        ValueError: a key is missing or holds what it must not; also TypeError and InputError: the reader makes one
            line of all three.
    """
    return GraphEntry(
        role=parsing.choice(data, "role", ROLES),
        onnx=FileEntry(*parsing.file_fields(parsing.table(data, "onnx"))),
        engine=_engine(data),
        inputs=parsing.specs(data, "inputs"),
        outputs=parsing.specs(data, "outputs"),
        limits=parsing.limits(parsing.table(data, "limits")),
        options=GraphOptions(**parsing.table(data, "options")),
        checkpoint_sha256=parsing.text(data, "checkpoint_sha256", empty=True),
        kernels=tuple(KernelSummary.from_dict(item) for item in parsing.items(data, "kernels")),
        layers=None if data.get("layers") is None else FileEntry(*parsing.file_fields(parsing.table(data, "layers"))),
        # Sets of before had one graph, and said it for the set.
        calibration=parsing.optional_text(data, "calibration") if "calibration" in data else calibration,
        calibrated=None if data.get("calibrated") is None else parsing.table(data, "calibrated"),
    )


def _engine(data: Any) -> FileEntry | None:
    """The engine of a graph; it must be said where there is none."""
    if "engine" in data and data["engine"] is None:
        return None
    return FileEntry(*parsing.file_fields(parsing.table(data, "engine")))
