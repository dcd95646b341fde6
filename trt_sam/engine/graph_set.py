"""A set of graphs alone, for ONNX Runtime: what `build_set` writes, without engines."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trt_sam._lazy import require
from trt_sam._version import __version__
from trt_sam.engine.engine_set import encoder_options, role_of
from trt_sam.engine.manifest import ONNX_RUNTIME, FileEntry, GraphEntry, Manifest
from trt_sam.engine.set_folder import ENCODER_NAMES, GRAPH_NAMES, publish, staging, writing
from trt_sam.graph.metadata import check_decoder, is_encoder, read_graph
from trt_sam.recipe import EngineRecipe

__all__ = ["GRAPH_FILES", "write_graph_set"]

GRAPH_FILES = {"decode": GRAPH_NAMES[0], "decode_mask": GRAPH_NAMES[1], "encode": ENCODER_NAMES[0]}
"""File names by role."""


def write_graph_set(
    writers: Mapping[str, Callable[[Path], Any]], recipe: EngineRecipe, output: str | os.PathLike[str]
) -> Manifest:
    """Write graphs and `manifest.json` into `output`; an older set in it is replaced only when the new one is whole.

    Args:
        writers: by role ("decode" at least; "decode_mask", "encode"), each called with a path, writes the ONNX graph there.
        recipe: what the graphs were exported by.
        output: the folder, made where it is missing.

    Raises:
        BuildError: the graphs are of different checkpoints, or another build is writing into the folder.
        GraphError: a graph is not one of this package.
        InputError: the folder cannot be written, or the disk is full.
    """
    folder = Path(output)
    with writing(folder), staging(folder) as stage:
        entries = []
        for role in (role for role in GRAPH_FILES if role in writers):
            path = stage / GRAPH_FILES[role]
            writers[role](path)
            graph = read_graph(path)
            decoder = read_graph(stage / GRAPH_FILES["decode"])
            options = encoder_options(graph, decoder) if is_encoder(graph.metadata) else check_decoder(graph)
            assert role_of(graph, options) == role
            entries.append(
                GraphEntry(
                    role=role,
                    onnx=FileEntry.of(path),
                    engine=None,
                    inputs=graph.inputs,
                    outputs=graph.outputs,
                    limits={},
                    options=options,
                    checkpoint_sha256=graph.checkpoint_sha256,
                )
            )
        manifest = Manifest(
            folder=folder,
            graphs=tuple(entries),
            recipe=recipe,
            flavour=ONNX_RUNTIME,
            flavour_version=require("onnxruntime", "to say what the graphs were checked with").__version__,
            target=entries[0].options.target,
            created={
                "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "trt_sam": __version__,
                "machine": f"{platform.system()} {platform.machine()}",
            },
        )
        publish(stage, folder, manifest)
    return manifest
