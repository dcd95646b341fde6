"""A checkpoint's graphs in one folder: with its image encoder, as `export --encoder` writes them, or its decoder alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._lazy import require_all
from trt_sam.progress import Stages, part
from trt_sam.recipe import EngineRecipe

if TYPE_CHECKING:
    from trt_sam.engine.manifest import Manifest
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["write_decoder_set", "write_encoder_set"]

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


def write_encoder_set(source: str, recipe: EngineRecipe, output: Path, stages: Stages, *, decode_mask: bool) -> Manifest:
    """Export the checkpoint `source` into the folder `output`, each graph checked against PyTorch.

    Args:
        source: a checkpoint's name or path.
        recipe: of the decoder without a mask input, in fp32 or fp16.
        output: the folder.
        stages: with "load" and "export".
        decode_mask: whether a decoder that takes an earlier mask goes in as well.

    Raises:
        TrtSamError: a package is missing, the checkpoint cannot be used, or a graph does not match PyTorch.
    """
    require_all(_PACKAGES, "to export graphs")
    from trt_sam.engine.graph_set import GRAPH_FILES, decoder_writers, write_graph_set
    from trt_sam.graph.encoder import export_encoder
    from trt_sam.model.checkpoint import load_checkpoint

    stages.begin("load", f"loading {source}")
    checkpoint = load_checkpoint(source)
    encoder = checkpoint.image_encoder()
    tell = stages.begin("export", f"exporting in {recipe.graph.precision}", phases=True)
    writers = decoder_writers(checkpoint.decoder, recipe.graph, checkpoint.sha256, decode_mask=decode_mask)
    writers["encode"] = partial(
        export_encoder,
        encoder,
        precision=recipe.graph.precision,
        target=recipe.graph.target,
        checkpoint_sha256=checkpoint.sha256,
    )
    exports: Iterable[tuple[str, Callable[..., Any]]] = list(writers.items())
    for place, (role, export) in enumerate(exports):
        writers[role] = partial(export, progress=part(tell, place, len(writers), GRAPH_FILES[role]))
    named = replace(recipe, checkpoint=source)  # by the manifest
    return write_graph_set(writers, named, output)


def write_decoder_set(checkpoint: Checkpoint, recipe: EngineRecipe, output: Path) -> Manifest:
    """As `write_encoder_set`, of a checkpoint that is loaded, and without its image encoder and a decoder with masks."""
    require_all(_PACKAGES, "to export graphs")
    from trt_sam.engine.graph_set import decoder_writers, write_graph_set

    return write_graph_set(decoder_writers(checkpoint.decoder, recipe.graph, checkpoint.sha256), recipe, output)
