"""A set of graphs alone, for ONNX Runtime: what `build_set` writes, without engines."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._lazy import require
from trt_sam._version import __version__
from trt_sam.engine.engine_set import encoder_options, role_of
from trt_sam.engine.manifest import ONNX_RUNTIME, FileEntry, GraphEntry, Manifest
from trt_sam.engine.set_folder import ENCODER_NAMES, GRAPH_NAMES, PREPARED_NAMES, publish, staging, writing
from trt_sam.graph.metadata import PREPARED_ROLES, GraphInfo, check_decoder, is_encoder, read_graph
from trt_sam.recipe import EngineRecipe, GraphOptions

if TYPE_CHECKING:
    from trt_sam.model import SamDecoder

__all__ = ["GRAPH_FILES", "decoder_writers", "write_graph_set"]

Writer = Callable[[Path], Any]
"""Writes an ONNX graph to a path."""

GRAPH_FILES = {
    "decode": GRAPH_NAMES[0],
    "decode_mask": GRAPH_NAMES[1],
    "prepare": PREPARED_NAMES[0],
    "decode_prepared": PREPARED_NAMES[1],
    "encode": ENCODER_NAMES[0],
}
"""File names by role."""


def decoder_writers(
    decoder: SamDecoder, options: GraphOptions, checkpoint_sha256: str, *, decode_mask: bool = False
) -> dict[str, Writer]:
    """What writes the graphs of a decoder, by role; torch and onnx are needed.

    Args:
        decoder: of a checkpoint.
        options: of the decoder without a mask input.
        checkpoint_sha256: `Checkpoint.sha256`.
        decode_mask: whether a decoder that takes an earlier mask is among them.
    """
    from trt_sam.graph.export import export_decoder
    from trt_sam.graph.prepared import can_be_prepared, export_prepare, export_prepared_decoder

    graphs = {"decode": options}
    if decode_mask:
        graphs["decode_mask"] = replace(options, mask_input=True)
    writers: dict[str, Writer] = {
        role: partial(export_decoder, decoder, options=each, checkpoint_sha256=checkpoint_sha256)
        for role, each in graphs.items()
    }
    if can_be_prepared(options):
        writers["prepare"] = partial(export_prepare, decoder, checkpoint_sha256=checkpoint_sha256)
        prepared = partial(export_prepared_decoder, decoder, options=options, checkpoint_sha256=checkpoint_sha256)
        writers["decode_prepared"] = prepared
    return writers


def write_graph_set(writers: Mapping[str, Writer], recipe: EngineRecipe, output: str | os.PathLike[str]) -> Manifest:
    """Write graphs and `manifest.json` into `output`; an older set in it is replaced only when the new one is whole.

    Args:
        writers: by role ("decode" at least, and others of GRAPH_FILES), each called with a path, writes the ONNX graph there.
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
            options = _options_of(graph, decoder)
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


def _options_of(graph: GraphInfo, decoder: GraphInfo) -> GraphOptions:
    """The options that stand for a graph in the manifest."""
    if is_encoder(graph.metadata):
        return encoder_options(graph, decoder)
    # The halves of the decoder are that decoder.
    return check_decoder(decoder if graph.metadata.get("trt_sam.role") in PREPARED_ROLES else graph)
