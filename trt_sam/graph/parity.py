"""Does an exported graph compute what PyTorch does? ONNX Runtime is asked before the graph is given its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trt_sam._lazy import require
from trt_sam.contract import EMBEDDING_SHAPE, FRAME_SIZE, LOW_RES_SIZE, input_specs
from trt_sam.errors import ExportError
from trt_sam.model import SamDecoder
from trt_sam.recipe import GraphOptions

Prepare = Callable[[np.ndarray[Any, Any]], Mapping[str, np.ndarray[Any, Any]]]

PARITY_SHAPES = ((1, 1), (1, 2), (3, 5), (16, 2))
"""(num_prompts, num_points) at which an exported graph is compared with PyTorch."""

PARITY_TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2}
"""Largest |difference| of logits allowed, relative to the largest |logit|, against float32 PyTorch."""


@dataclass(frozen=True)
class ParityRow:
    """The comparison of one feed."""

    num_prompts: int
    num_points: int
    error: float
    """Largest |logit difference| divided by the largest |logit|."""


def check_parity(
    reference: SamDecoder, path: os.PathLike[str], options: GraphOptions, prepare: Prepare | None = None
) -> tuple[ParityRow, ...]:
    """Run the graph at `path` beside `reference` (float32, on the CPU) at each of PARITY_SHAPES.

    `prepare` gives of image_embeddings what the graph takes in their place.

    Raises:
        ExportError: they differ by more than PARITY_TOLERANCE, or a graph's mask bits are not its masks.
    """
    session = cpu_session(path)
    rng = np.random.default_rng(0)
    rows = []
    wanted = [o.name for o in session.get_outputs()] if options.mask_bits else ["low_res_masks", "iou_predictions"]
    for number, (num_prompts, num_points) in enumerate(PARITY_SHAPES):
        feed = random_feed(rng, num_prompts, num_points, options)
        masks, iou = _reference_answer(reference, feed, options)
        if options.full_resolution:
            feed["orig_im_size"][1] += number  # rows that fill their last byte of bits, and that do not
        if prepare is not None:
            feed |= prepare(feed.pop("image_embeddings"))
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


def random_feed(
    rng: np.random.Generator, num_prompts: int, num_points: int, options: GraphOptions
) -> dict[str, np.ndarray[Any, Any]]:
    """A valid random feed for a graph with `options`: every label occurs, the first point of a prompt is a real one."""
    labels = rng.choice([-2, -1, 0, 1, 2, 3], (num_prompts, num_points)).astype(np.float32)
    labels[:, 0] = rng.integers(0, 2, num_prompts)
    feed: dict[str, np.ndarray[Any, Any]] = {
        "image_embeddings": rng.normal(0, 0.5, (options.images, *EMBEDDING_SHAPE[1:])).astype(np.float32),
        "point_coords": rng.uniform(0, FRAME_SIZE, (num_prompts, num_points, 2)).astype(np.float32),
        "point_labels": labels,
    }
    if options.images > 1:
        feed["image_index"] = rng.integers(0, options.images, num_prompts).astype(np.int32)
    if options.mask_input:
        feed["mask_input"] = rng.normal(0, 4, (num_prompts, 1, LOW_RES_SIZE, LOW_RES_SIZE)).astype(np.float32)
        feed["has_mask_input"] = rng.integers(0, 2, num_prompts).astype(np.float32)
    if options.full_resolution:
        feed["orig_im_size"] = np.array([96, 128], np.int64)
    return feed


def _reference_answer(
    reference: SamDecoder, feed: Mapping[str, np.ndarray[Any, Any]], options: GraphOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and scores by PyTorch; of several images each prompt's in a call of its own, which no index can confuse."""
    names = [spec.name for spec in input_specs(mask_input=options.mask_input)]
    tensors = [torch.from_numpy(feed[name]) for name in names]
    with torch.no_grad():
        if options.images == 1:
            masks, iou = reference(*tensors)
            return masks, iou
        images, *prompts = tensors
        found = [
            reference(images[number : number + 1], *(each[row : row + 1] for each in prompts))
            for row, number in enumerate(feed["image_index"].tolist())
        ]
    masks, iou = (torch.cat(parts) for parts in zip(*found, strict=True))
    return masks, iou


def cpu_session(path: os.PathLike[str]) -> Any:
    """ONNX Runtime on the CPU with the graph at `path`, silent but for errors."""
    ort = require("onnxruntime", "to check the exported graph")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    return ort.InferenceSession(os.fspath(path), settings, providers=["CPUExecutionProvider"])


def _check_bits(found: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Raise ExportError where `mask_bits` are not the masks that the graph gives beside them."""
    masks = found.get("masks", found["low_res_masks"])
    if not np.array_equal(found["mask_bits"], np.packbits(masks > 0, axis=-1)):
        raise ExportError(
            f"mask_bits of the graph are not its masks above 0, at shape {list(masks.shape)}; nothing was written"
        )
