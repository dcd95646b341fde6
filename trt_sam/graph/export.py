"""The decoder from PyTorch to ONNX: types in the graph, dynamic prompts, finished only when it matches PyTorch."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from trt_sam._files import atomic_path
from trt_sam._version import __version__
from trt_sam.contract import LABEL_ABSENT, input_specs, output_specs
from trt_sam.errors import ExportError
from trt_sam.graph.full_resolution import append_full_resolution
from trt_sam.graph.mask_bits import append_mask_bits
from trt_sam.graph.meta_interface import check_for_meta, to_metas_interface
from trt_sam.graph.metadata import options_entry
from trt_sam.graph.parity import PARITY_TOLERANCE, ParityRow, check_parity, cpu_session, random_feed
from trt_sam.graph.tracing import COMPARING, TRACING, name_nodes, trace
from trt_sam.model import SamDecoder
from trt_sam.model.fused import for_target, fuse
from trt_sam.progress import Progress, silent
from trt_sam.recipe import EXPORT_PRECISIONS, GraphOptions

__all__ = ["DecoderGraph", "ExportReport", "SeveralImagesGraph", "Traced", "declare", "export_decoder", "select_best"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    path: str
    options: GraphOptions
    parity: tuple[ParityRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data."""
        return dataclasses.asdict(self)


def export_decoder(
    decoder: SamDecoder,
    path: str | os.PathLike[str],
    options: GraphOptions,
    *,
    checkpoint_sha256: str = "",
    metas_interface: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Write `decoder` (float32, any device: a copy is taken to the CPU) as an ONNX graph with the contract's tensors.

    FP16 graphs take float32 inputs and give float16 masks and float32 IoU predictions; weights and activations are float16 but
    for coordinates, LayerNorm statistics, softmax and the IoU head's last layer. The file appears only when ONNX Runtime
    agrees with PyTorch on it.

    Args:
        decoder: what is written.
        path: of the file.
        options: what the graph computes.
        checkpoint_sha256: `Checkpoint.sha256`, for the metadata.
        metas_interface: give it the inputs and outputs of Meta's own ONNX export (`meta_interface`), for programs made for that
            one; our runners and TensorRT do not take such a graph.
        progress: told what is done.

    Raises:
        ExportError: the graph does not match PyTorch, or `options` ask for int8 or fp8, which need calibration.
        InputError: `path` cannot be written, or `options` do not go with Meta's interface.
    """
    if metas_interface:
        check_for_meta(options)
    if options.precision not in EXPORT_PRECISIONS:
        raise ExportError(
            f"precision {options.precision} needs calibrated scales; use calibrate --precision {options.precision}, "
            f"or export one of {', '.join(EXPORT_PRECISIONS)}"
        )
    reference = copy.deepcopy(decoder).cpu().float().eval()
    kind = DecoderGraph if options.images == 1 else SeveralImagesGraph
    graph = kind(_decoder_form(reference, options), best_mask=options.best_mask).eval()
    with atomic_path(path) as temporary:
        progress(0.0, TRACING)
        model = _trace(graph, options)
        declare(model, options, checkpoint_sha256)
        onnx.save(model, temporary)
        progress(0.5, COMPARING)
        parity = check_parity(reference, temporary, options)
        if metas_interface:
            _write_for_meta(model, temporary, options)
    for row in parity:
        _log.debug("%s: %s", path, row)
    return ExportReport(str(path), options, parity)


class Traced(nn.Module):
    """A form of the decoder and, if asked for, the choice of the best mask."""

    def __init__(self, decoder: nn.Module, *, best_mask: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.best_mask = best_mask

    def chosen(self, masks: Tensor, iou: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the graph gives of them."""
        return select_best(masks, iou, point_labels) if self.best_mask else (masks, iou)


class DecoderGraph(Traced):
    """The module that is traced: a form of the decoder and, if asked for, the choice of the best mask."""

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `SamDecoder.forward`; with `best_mask` only the selected mask, [num_prompts, 1, ...]."""
        masks, iou = self.decoder(image_embeddings, point_coords, point_labels, mask_input, has_mask_input)
        return self.chosen(masks, iou, point_labels)


class SeveralImagesGraph(Traced):
    """As `DecoderGraph`, of several images: `image_index` int32 [num_prompts] says to which of them a prompt belongs."""

    def forward(
        self,
        image_embeddings: Tensor,
        image_index: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `DecoderGraph.forward`, with image_embeddings [images, 256, 64, 64]."""
        masks, iou = self.decoder(image_embeddings, point_coords, point_labels, mask_input, has_mask_input, image_index)
        return self.chosen(masks, iou, point_labels)


def select_best(masks: Tensor, iou: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
    """SAM's rule: mask 0 from three points on, else the highest scored of masks 1 to 3; absent points do not count.

    Takes masks [n, 4, h, w], iou [n, 4], point_labels [n, num_points]; returns [n, 1, h, w] and [n, 1]. Source: `select_masks`
    in Meta's onnx.py, which counts every token, SAM's "not a point" included.
    """
    num_points = (point_labels != LABEL_ABSENT).to(iou.dtype).sum(dim=1, keepdim=True)
    prefer_single = torch.tensor([1000.0, 0.0, 0.0, 0.0], dtype=iou.dtype)
    best = (iou + (num_points - 2.5) * prefer_single).argmax(dim=1)
    flat = best + torch.arange(masks.shape[0]) * masks.shape[1]
    return masks.flatten(0, 1).index_select(0, flat).unsqueeze(1), iou.flatten().index_select(0, flat).unsqueeze(1)


def _decoder_form(reference: SamDecoder, options: GraphOptions) -> nn.Module:
    form = fuse(reference, for_target(options.target, mask_input=options.mask_input))
    return form.to_half() if options.precision == "fp16" else form


def _trace(graph: nn.Module, options: GraphOptions) -> onnx.ModelProto:
    inputs = [s.name for s in input_specs(mask_input=options.mask_input, images=options.images)]
    feed = random_feed(np.random.default_rng(0), 3, 2, options)
    prompts, points = torch.export.Dim("num_prompts", min=1), torch.export.Dim("num_points", min=1)
    dynamic = {"image_embeddings": None, "point_coords": {0: prompts, 1: points}, "point_labels": {0: prompts, 1: points}}
    dynamic |= {"mask_input": {0: prompts}, "has_mask_input": {0: prompts}, "image_index": {0: prompts}}
    arguments = tuple(torch.from_numpy(feed[name]) for name in inputs)
    return trace(graph, arguments, inputs, [s.name for s in output_specs()], {name: dynamic[name] for name in inputs})


def declare(model: onnx.ModelProto, options: GraphOptions, checkpoint_sha256: str, role: str = "") -> None:
    """Make a traced decoder the graph of `options`: its further outputs, the contract's names of dimensions, metadata.

    `role` is that in a set, for a graph that is of no use alone.
    """
    name_nodes(model)
    if options.full_resolution:
        append_full_resolution(model)
    if options.mask_bits:
        append_mask_bits(model)
    dtype = "float16" if options.precision == "fp16" else "float32"
    specs = output_specs(
        full_resolution=options.full_resolution, best_mask=options.best_mask, mask_bits=options.mask_bits, dtype=dtype
    )
    del model.graph.output[:]
    for spec in specs:
        element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        model.graph.output.append(onnx.helper.make_tensor_value_info(spec.name, element, list(spec.dims)))
    model.producer_name, model.producer_version = "trt_sam", __version__
    metadata = {
        "trt_sam.version": __version__,
        **options_entry(options),
        "trt_sam.checkpoint_sha256": checkpoint_sha256,
        **({"trt_sam.role": role} if role else {}),
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)


def _write_for_meta(model: onnx.ModelProto, path: os.PathLike[str], options: GraphOptions) -> None:
    """Overwrite the graph at `path`, found good, by one with Meta's interface that gives the same, or raise ExportError."""
    feed = random_feed(np.random.default_rng(1), 1, 3, options)
    names = ["masks", "iou_predictions", "low_res_masks"]
    expected = cpu_session(path).run(names, feed)
    to_metas_interface(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    found = cpu_session(path).run(None, feed | {"orig_im_size": feed["orig_im_size"].astype(np.float32)})
    for name, ours, metas in zip(names, expected, found, strict=True):
        if not np.allclose(ours, metas, rtol=0, atol=PARITY_TOLERANCE["fp32"] * float(np.abs(ours).max())):
            raise ExportError(f"{name} of the graph with Meta's interface differ from the same graph's with ours; a bug")
