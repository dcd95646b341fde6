"""The decoder from PyTorch to ONNX: types in the graph, dynamic prompts, finished only when it matches PyTorch."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from trt_sam._files import atomic_path
from trt_sam._lazy import require
from trt_sam._version import __version__
from trt_sam.contract import EMBEDDING_SHAPE, FRAME_SIZE, LABEL_ABSENT, LOW_RES_SIZE, input_specs, output_specs
from trt_sam.errors import ExportError
from trt_sam.graph.full_resolution import append_full_resolution
from trt_sam.graph.mask_bits import append_mask_bits
from trt_sam.graph.meta_interface import check_for_meta, to_metas_interface
from trt_sam.graph.metadata import options_entry
from trt_sam.model import SamDecoder
from trt_sam.model.fused import for_target, fuse
from trt_sam.recipe import EXPORT_PRECISIONS, GraphOptions

__all__ = ["PARITY_SHAPES", "PARITY_TOLERANCE", "DecoderGraph", "ExportReport", "ParityRow", "export_decoder"]

OPSET = 20
"""The first with Gelu; at least 19 is needed for float16 scales of QuantizeLinear."""

PARITY_SHAPES = ((1, 1), (1, 2), (3, 5), (16, 2))
"""(num_prompts, num_points) at which an exported graph is compared with PyTorch."""

PARITY_TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2}
"""Largest |difference| of logits allowed, relative to the largest |logit|, against float32 PyTorch."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParityRow:
    """The comparison of one feed."""

    num_prompts: int
    num_points: int
    error: float
    """Largest |logit difference| divided by the largest |logit|."""


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

    Raises:
        ExportError: the graph does not match PyTorch, or `options` ask for int8 or fp8, which need calibration.
        InputError: `path` cannot be written, or `options` do not go with Meta's interface.
    """
    if metas_interface:
        check_for_meta(options)
    if options.precision not in EXPORT_PRECISIONS:
        raise ExportError(
            f"precision {options.precision} needs calibrated scales; use trt-sam calibrate --precision {options.precision}, "
            f"or export one of {', '.join(EXPORT_PRECISIONS)}"
        )
    reference = copy.deepcopy(decoder).cpu().float().eval()
    graph = DecoderGraph(_decoder_form(reference, options), best_mask=options.best_mask).eval()
    with atomic_path(path) as temporary:
        model = _trace(graph, options)
        name_nodes(model)
        if options.full_resolution:
            append_full_resolution(model)
        if options.mask_bits:
            append_mask_bits(model)
        _declare(model, options, checkpoint_sha256)
        onnx.checker.check_model(model)
        onnx.save(model, temporary)
        parity = _check_parity(reference, temporary, options)
        if metas_interface:
            _write_for_meta(model, temporary, options)
    for row in parity:
        _log.debug("%s: %s", path, row)
    return ExportReport(str(path), options, parity)


class DecoderGraph(nn.Module):
    """The module that is traced: a form of the decoder and, if asked for, the choice of the best mask."""

    def __init__(self, decoder: nn.Module, *, best_mask: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.best_mask = best_mask

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
        if self.best_mask:
            masks, iou = select_best(masks, iou, point_labels)
        return masks, iou


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


def _trace(graph: DecoderGraph, options: GraphOptions) -> onnx.ModelProto:
    inputs = [s.name for s in input_specs(mask_input=options.mask_input)]
    feed = random_feed(np.random.default_rng(0), 3, 2, options)
    prompts, points = torch.export.Dim("num_prompts", min=1), torch.export.Dim("num_points", min=1)
    dynamic = {"image_embeddings": None, "point_coords": {0: prompts, 1: points}, "point_labels": {0: prompts, 1: points}}
    dynamic |= {"mask_input": {0: prompts}, "has_mask_input": {0: prompts}}
    with quiet_export():
        program = torch.onnx.export(
            graph,
            tuple(torch.from_numpy(feed[name]) for name in inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=[s.name for s in output_specs()],
            dynamic_shapes={name: dynamic[name] for name in inputs},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def name_nodes(model: onnx.ModelProto) -> None:
    """Name nodes after their module, and drop the exporter's notes, which hold file paths of this machine."""
    seen: dict[str, int] = {}
    for node in model.graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = [s for s in json.loads(notes.get("pkg.torch.onnx.name_scopes", "[]").replace("'", '"')) if s]
        scope = scopes[-2].removeprefix("decoder").lstrip(".") if len(scopes) > 1 else ""
        name = f"{scope}/{node.op_type}".lstrip("/")
        seen[name] = seen.get(name, 0) + 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]


def _declare(model: onnx.ModelProto, options: GraphOptions, checkpoint_sha256: str) -> None:
    """Give outputs the contract's dimension names, and the model its metadata."""
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
    }
    onnx.helper.set_model_props(model, metadata)


def _session(path: os.PathLike[str]) -> Any:
    ort = require("onnxruntime", "to check the exported graph")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    return ort.InferenceSession(os.fspath(path), settings, providers=["CPUExecutionProvider"])


def _check_parity(reference: SamDecoder, path: os.PathLike[str], options: GraphOptions) -> tuple[ParityRow, ...]:
    session = _session(path)
    rng = np.random.default_rng(0)
    rows = []
    wanted = [o.name for o in session.get_outputs()] if options.mask_bits else ["low_res_masks", "iou_predictions"]
    for number, (num_prompts, num_points) in enumerate(PARITY_SHAPES):
        feed = random_feed(rng, num_prompts, num_points, options)
        tensors = [torch.from_numpy(feed[s.name]) for s in input_specs(mask_input=options.mask_input)]
        with torch.no_grad():
            masks, iou = reference(*tensors)
        if options.full_resolution:
            feed["orig_im_size"][1] += number  # rows that fill their last byte of bits, and that do not
        found = dict(zip(wanted, session.run(wanted, feed), strict=True))
        low_res, scores = found["low_res_masks"], found["iou_predictions"]
        if options.mask_bits:
            _check_bits(found)
        if options.best_mask:
            # Two scores may tie within the tolerance: compare with the mask that the graph chose.
            chosen = np.abs(iou.numpy() - scores).argmin(axis=1)
            masks, iou = masks[torch.arange(num_prompts), chosen][:, None], iou[torch.arange(num_prompts), chosen][:, None]
        error = float(np.abs(low_res.astype(np.float32) - masks.numpy()).max() / np.abs(masks.numpy()).max())
        rows.append(ParityRow(num_prompts, num_points, error))
        tolerance = PARITY_TOLERANCE[options.precision]
        iou_error = float(np.abs(scores - iou.numpy()).max() / max(1.0, float(iou.abs().max())))
        if not (error <= tolerance and iou_error <= tolerance):
            raise ExportError(
                f"the {options.precision} graph does not match PyTorch at {num_prompts} prompts of {num_points} points: "
                f"relative error {error:.2g} of masks, {iou_error:.2g} of IoU, allowed {tolerance:g}; nothing was written"
            )
    return tuple(rows)


def _write_for_meta(model: onnx.ModelProto, path: os.PathLike[str], options: GraphOptions) -> None:
    """Overwrite the graph at `path`, found good, by one with Meta's interface that gives the same, or raise ExportError."""
    feed = random_feed(np.random.default_rng(1), 1, 3, options)
    names = ["masks", "iou_predictions", "low_res_masks"]
    expected = _session(path).run(names, feed)
    to_metas_interface(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    found = _session(path).run(None, feed | {"orig_im_size": feed["orig_im_size"].astype(np.float32)})
    for name, ours, metas in zip(names, expected, found, strict=True):
        if not np.allclose(ours, metas, rtol=0, atol=PARITY_TOLERANCE["fp32"] * float(np.abs(ours).max())):
            raise ExportError(f"{name} of the graph with Meta's interface differ from the same graph's with ours; a bug")


def _check_bits(found: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Raise ExportError where `mask_bits` are not the masks that the graph gives beside them."""
    masks = found.get("masks", found["low_res_masks"])
    if not np.array_equal(found["mask_bits"], np.packbits(masks > 0, axis=-1)):
        raise ExportError(
            f"mask_bits of the graph are not its masks above 0, at shape {list(masks.shape)}; nothing was written"
        )


def random_feed(
    rng: np.random.Generator, num_prompts: int, num_points: int, options: GraphOptions
) -> dict[str, np.ndarray[Any, Any]]:
    """A valid random feed for a graph with `options`: every label occurs, the first point of a prompt is a real one."""
    labels = rng.choice([-2, -1, 0, 1, 2, 3], (num_prompts, num_points)).astype(np.float32)
    labels[:, 0] = rng.integers(0, 2, num_prompts)
    feed: dict[str, np.ndarray[Any, Any]] = {
        "image_embeddings": rng.normal(0, 0.5, EMBEDDING_SHAPE).astype(np.float32),
        "point_coords": rng.uniform(0, FRAME_SIZE, (num_prompts, num_points, 2)).astype(np.float32),
        "point_labels": labels,
    }
    if options.mask_input:
        feed["mask_input"] = rng.normal(0, 4, (num_prompts, 1, LOW_RES_SIZE, LOW_RES_SIZE)).astype(np.float32)
        feed["has_mask_input"] = rng.integers(0, 2, num_prompts).astype(np.float32)
    if options.full_resolution:
        feed["orig_im_size"] = np.array([96, 128], np.int64)
    return feed


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Silence the exporter's log and warnings about itself; errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
