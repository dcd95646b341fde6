"""A checkpoint's decoder and image encoder as graphs in one folder: what `export --encoder` writes and `serve` caches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._lazy import require_all
from trt_sam.progress import Stages
from trt_sam.recipe import EngineRecipe

if TYPE_CHECKING:
    from trt_sam.engine.manifest import Manifest

__all__ = ["write_encoder_set"]


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
    require_all(("torch", "onnx", "onnxscript", "onnxruntime"), "to export graphs")
    from trt_sam.engine.graph_set import write_graph_set
    from trt_sam.graph.encoder import export_encoder
    from trt_sam.graph.export import export_decoder
    from trt_sam.model.checkpoint import load_checkpoint

    graphs = {"decode": recipe.graph}
    if decode_mask:
        graphs["decode_mask"] = dataclasses.replace(recipe.graph, mask_input=True)
    stages.begin("load", f"loading {source}")
    checkpoint = load_checkpoint(source)
    encoder = checkpoint.image_encoder()
    stages.begin("export", f"exporting in {recipe.graph.precision} and running it beside PyTorch")
    writers: dict[str, Callable[[Path], Any]] = {
        role: partial(export_decoder, checkpoint.decoder, options=options, checkpoint_sha256=checkpoint.sha256)
        for role, options in graphs.items()
    }
    writers["encode"] = partial(
        export_encoder,
        encoder,
        precision=recipe.graph.precision,
        target=recipe.graph.target,
        checkpoint_sha256=checkpoint.sha256,
    )
    return write_graph_set(writers, recipe, output)
