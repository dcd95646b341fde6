"""The decoder of a CPU as two graphs: `prepare`, the image's terms once for each image, and `decode_prepared`, masks from them.

See `trt_sam.model.prepared` for the algebra, and `runtime.terms` for when a runner takes them.
"""

from __future__ import annotations

import copy
import functools
import os
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from trt_sam._files import atomic_path
from trt_sam._version import __version__
from trt_sam.contract import EMBEDDING_SHAPE, input_specs, output_specs, term_specs
from trt_sam.errors import ExportError
from trt_sam.graph.export import ExportReport, Traced, declare
from trt_sam.graph.parity import PARITY_TOLERANCE, check_parity, cpu_session
from trt_sam.graph.tracing import COMPARING, TRACING, name_nodes, trace
from trt_sam.model import SamDecoder
from trt_sam.model.prepared import PreparedDecoder, PreparedImage
from trt_sam.progress import Progress, silent
from trt_sam.recipe import GraphOptions

__all__ = ["can_be_prepared", "export_prepare", "export_prepared_decoder"]


def can_be_prepared(options: GraphOptions) -> bool:
    """Whether a decoder with these options has the two graphs: one for the CPU in float32, of one image and no earlier mask."""
    return options.target == "cpu" and options.precision == "fp32" and options.images == 1 and not options.mask_input


def export_prepare(
    decoder: SamDecoder, path: str | os.PathLike[str], *, checkpoint_sha256: str = "", progress: Progress = silent
) -> None:
    """Write the graph `prepare` of a float32 decoder; it appears only when its terms are PyTorch's.

    Raises:
        ExportError: they are not.
        InputError: `path` cannot be written.
    """
    image = _prepared_image(decoder)
    names = [spec.name for spec in term_specs()]
    embedding = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32))
    with atomic_path(path) as temporary:
        progress(0.0, TRACING)
        model = trace(image, (embedding,), ["image_embeddings"], names)
        name_nodes(model)
        metadata = {
            "trt_sam.version": __version__,
            "trt_sam.role": "prepare",
            "trt_sam.checkpoint_sha256": checkpoint_sha256,
        }
        onnx.helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        onnx.save(model, temporary)
        progress(0.5, COMPARING)
        found = cpu_session(temporary).run(names, {"image_embeddings": embedding.numpy()})
        with torch.no_grad():
            expected = image(embedding)
        for name, ours, torchs in zip(names, found, expected, strict=True):
            error = float(np.abs(ours - torchs.numpy()).max() / torchs.abs().max())
            if not error <= PARITY_TOLERANCE["fp32"]:
                raise ExportError(
                    f"{name} of the graph prepare is not PyTorch's, relative error {error:.2g}; nothing was written"
                )


def export_prepared_decoder(
    decoder: SamDecoder,
    path: str | os.PathLike[str],
    options: GraphOptions,
    *,
    checkpoint_sha256: str = "",
    progress: Progress = silent,
) -> ExportReport:
    """Write the graph `decode_prepared` of a float32 decoder; it appears only when its masks are PyTorch's.

    Raises:
        ExportError: they are not, or there is no such graph with `options` (see `can_be_prepared`).
        InputError: `path` cannot be written.
    """
    if not can_be_prepared(options):
        raise ExportError("only a decoder in fp32 for the CPU, of one image and without mask_input, has a prepared form")
    reference = copy.deepcopy(decoder).cpu().float().eval()
    image = _prepared_image(reference)
    graph = _PreparedGraph(PreparedDecoder(reference), best_mask=options.best_mask).eval()
    prompts, points = torch.export.Dim("num_prompts", min=1), torch.export.Dim("num_points", min=1)
    # The exporter makes lists of tuples of shapes, so the terms are a list too.
    terms = list(image(torch.zeros(EMBEDDING_SHAPE)))
    _, coords, labels = (spec.name for spec in input_specs())
    names = [*(spec.name for spec in term_specs()), coords, labels]
    dynamic: dict[str, Any] = {"terms": [{} for _ in terms], coords: {0: prompts, 1: points}, labels: {0: prompts, 1: points}}
    examples = (terms, torch.zeros(3, 2, 2), torch.ones(3, 2))
    with atomic_path(path) as temporary:
        progress(0.0, TRACING)
        model = trace(graph, examples, names, [spec.name for spec in output_specs()], dynamic)
        declare(model, options, checkpoint_sha256, role="decode_prepared")
        onnx.save(model, temporary)
        progress(0.5, COMPARING)
        parity = check_parity(reference, temporary, options, functools.partial(_terms, image))
    return ExportReport(str(path), options, parity)


class _PreparedGraph(Traced):
    """As `DecoderGraph`, from terms in the place of an embedding."""

    def forward(self, terms: list[Tensor], point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `DecoderGraph.forward`."""
        masks, iou = self.decoder(terms, point_coords, point_labels)
        return self.chosen(masks, iou, point_labels)


def _prepared_image(decoder: SamDecoder) -> PreparedImage:
    return PreparedImage(copy.deepcopy(decoder).cpu().float()).eval().requires_grad_(False)


def _terms(image: PreparedImage, image_embeddings: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    with torch.no_grad():
        terms = image(torch.from_numpy(image_embeddings))
    return {spec.name: term.numpy() for spec, term in zip(term_specs(), terms, strict=True)}
