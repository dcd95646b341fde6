"""The one statement of the decoder's tensors, and the check of a feed against it. numpy only.

Names are those of Meta's ONNX export; the set of inputs is ours (see the README's table). Coordinates are (x, y) in pixels of
the frame whose long side is 1024, the frame that the image encoder sees; a click on a pixel is that pixel's corner, the
encoder adds 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.errors import ContractError, InferenceError

__all__ = [
    "EMBEDDING_BYTES",
    "EMBEDDING_SHAPE",
    "FRAME_SIZE",
    "LABEL_ABSENT",
    "LABEL_BACKGROUND",
    "LABEL_BOX_END",
    "LABEL_BOX_START",
    "LABEL_FOREGROUND",
    "LABEL_NOT_A_POINT",
    "LOW_RES_SIZE",
    "MANIFEST_NAME",
    "NUM_MASKS",
    "PACKED_WIDTH",
    "PREPARED_NAME",
    "TensorSpec",
    "adapt_meta_feed",
    "check_feed",
    "check_image_index",
    "check_scores",
    "encoder_input_specs",
    "encoder_output_specs",
    "input_specs",
    "output_specs",
    "size_of",
    "term_specs",
    "too_many",
]

FRAME_SIZE = 1024
EMBEDDING_SHAPE = (1, 256, 64, 64)
EMBEDDING_BYTES = 4 * prod(EMBEDDING_SHAPE)
LOW_RES_SIZE = 256
NUM_MASKS = 4
MANIFEST_NAME = "manifest.json"
"""Of the file that makes a folder of graphs, and engines, a set."""
PREPARED_NAME = "decoder_prepared.onnx"
"""Of the file of a set's graph `decode_prepared`."""
PACKED_WIDTH = "packed_width"
"""Name of the dimension of `mask_bits` that holds a row of `width` pixels, eight to a byte."""

LABEL_BACKGROUND = 0
LABEL_FOREGROUND = 1
LABEL_BOX_START = 2
LABEL_BOX_END = 3
LABEL_NOT_A_POINT = -1
"""SAM's padding token: it takes part in attention. Append one where Meta does, after clicks without a box."""
LABEL_ABSENT = -2
"""True padding: masked as a key everywhere, changes no result. A row of nothing else is a prompt without points."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a graph: name, numpy dtype name, and dimensions, a string being a dynamic one."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.dims))}]"


def input_specs(*, mask_input: bool = False, full_resolution: bool = False, images: int = 1) -> tuple[TensorSpec, ...]:
    """The inputs of a decoder graph, in order.

    With `images` above 1 a call has so many embeddings, and `image_index` says from 0 to which of them a prompt belongs.
    """
    specs = [
        TensorSpec("image_embeddings", "float32", (images, *EMBEDDING_SHAPE[1:])),
        TensorSpec("point_coords", "float32", ("num_prompts", "num_points", 2)),
        TensorSpec("point_labels", "float32", ("num_prompts", "num_points")),
    ]
    if images > 1:
        specs.insert(1, TensorSpec("image_index", "int32", ("num_prompts",)))
    if mask_input:
        specs.append(TensorSpec("mask_input", "float32", ("num_prompts", 1, LOW_RES_SIZE, LOW_RES_SIZE)))
        specs.append(TensorSpec("has_mask_input", "float32", ("num_prompts",)))
    if full_resolution:
        specs.append(TensorSpec("orig_im_size", "int64", (2,)))
    return tuple(specs)


def output_specs(
    *, full_resolution: bool = False, best_mask: bool = False, mask_bits: bool = False, dtype: str = "float32"
) -> tuple[TensorSpec, ...]:
    """The outputs of a decoder graph, in order; `dtype` is that of the masks, IoU predictions are always float32.

    `mask_bits` are the masks > 0 (`masks` where there are any, else `low_res_masks`), eight pixels of a row to a byte as
    `numpy.packbits(masks > 0, axis=-1)` packs them: the first in the highest bit, the last byte filled up with zeros.
    """
    num_masks = 1 if best_mask else NUM_MASKS
    specs = [
        TensorSpec("low_res_masks", dtype, ("num_prompts", num_masks, LOW_RES_SIZE, LOW_RES_SIZE)),
        TensorSpec("iou_predictions", "float32", ("num_prompts", num_masks)),
    ]
    if full_resolution:
        specs.insert(0, TensorSpec("masks", dtype, ("num_prompts", num_masks, "height", "width")))
    if mask_bits:
        row = ("height", PACKED_WIDTH) if full_resolution else (LOW_RES_SIZE, LOW_RES_SIZE // 8)
        specs.append(TensorSpec("mask_bits", "uint8", ("num_prompts", num_masks, *row)))
    return tuple(specs)


def encoder_input_specs() -> tuple[TensorSpec, ...]:
    """The inputs of an `encode` graph: the photo in the frame, RGB, and the (height, width) that it has there.

    What lies beyond the photo may hold anything; the graph puts the mean colour there.
    """
    return (
        TensorSpec("image", "uint8", (1, FRAME_SIZE, FRAME_SIZE, 3)),
        TensorSpec("image_size", "int32", (2,)),
    )


def encoder_output_specs(*, dtype: str = "float32") -> tuple[TensorSpec, ...]:
    """The output of an `encode` graph, what a decoder graph takes; float16 in older float16 graphs."""
    return (TensorSpec("image_embeddings", dtype, EMBEDDING_SHAPE),)


def term_specs() -> tuple[TensorSpec, ...]:
    """The image's terms, in order: what a `prepare` graph gives of an embedding, and `decode_prepared` takes in its place.

    They are products of the image with the decoder's weights (`trt_sam.model.prepared`) in blocks 0 and 1, then in what comes
    after them; of no use but to the decoder that they were made for.
    """
    positions = EMBEDDING_SHAPE[2] * EMBEDDING_SHAPE[3]
    by_channel, by_position, row = (8, 16, positions), (8, positions, 16), (1, positions)
    dims: dict[str, tuple[int, ...]] = {}
    for block, products in enumerate((("rows_0",), ("rows_0", "constant", "rows_1"))):
        dims |= {f"keys_{block}": by_channel, f"values_{block}": by_position, f"queries_{block}": by_channel}
        dims |= {f"{name}_in_{block}": row if name == "constant" else by_channel for name in products}
        dims[f"square_{block}"] = (1, *row)
    dims |= {"keys_2": by_channel, "values_2": by_position, "pixels": (2, positions, EMBEDDING_SHAPE[1] // 2)}
    return tuple(TensorSpec(name, "float32", each) for name, each in dims.items())


def size_of(dim: int | str, sizes: Mapping[str, int]) -> int:
    """The size of a dimension where the dynamic ones have these `sizes`; `packed_width` follows from `width`."""
    if isinstance(dim, int):
        return dim
    return -(-sizes["width"] // 8) if dim == PACKED_WIDTH else sizes[dim]


def check_feed(
    feed: Mapping[str, Array], specs: Sequence[TensorSpec], limits: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, Array]:
    """Return the feed as contiguous arrays in the specs' order, or raise.

    Args:
        feed: arrays by name, exactly those of `specs`.
        specs: the graph's inputs.
        limits: least and largest value of each dynamic dimension ("num_prompts": (1, 16)).

    Raises:
        ContractError: a tensor is missing, unknown, of another dtype or shape, beyond a limit or not finite, or a label is
            unknown.
    """
    names = [spec.name for spec in specs]
    for name in feed:
        if name not in names:
            raise ContractError(f"unknown input {name!r}; this graph takes {', '.join(names)}")
    dims: dict[str, int] = {}
    checked: dict[str, Array] = {}
    for spec in specs:
        if spec.name not in feed:
            raise ContractError(f"input {spec.name!r} is missing; this graph takes {', '.join(names)}")
        array = np.asarray(feed[spec.name])
        if array.dtype != spec.dtype:
            raise ContractError(f"{spec.name} is {array.dtype}, must be {spec.dtype}; convert with .astype({spec.dtype!r})")
        _check_dims(spec, array, dims, limits or {})
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ContractError(f"{spec.name} holds NaN or infinity; every value must be finite")
        checked[spec.name] = np.ascontiguousarray(array)
    if "point_labels" in checked:
        _check_labels(checked["point_labels"])
    if "image_index" in checked and "image_embeddings" in checked:
        check_image_index(checked["image_index"], len(checked["image_embeddings"]))
    if "orig_im_size" in checked and (checked["orig_im_size"] < 1).any():
        raise ContractError(f"orig_im_size is {checked['orig_im_size'].tolist()}, must be (height, width), both at least 1")
    return checked


def check_image_index(image_index: Array, num_images: int) -> None:
    """Raise ContractError where a prompt belongs to no image: ONNX Runtime would count a negative number from the end."""
    wrong = image_index[(image_index < 0) | (image_index >= num_images)]
    if wrong.size:
        raise ContractError(f"image_index holds {wrong.flat[0]}, must be 0 to {num_images - 1}: there are {num_images} images")


def check_scores(iou_predictions: Array) -> None:
    """Raise InferenceError where a score is NaN or infinite: its mask would be empty, and look like an answer."""
    if not np.isfinite(iou_predictions).all():
        raise InferenceError(
            "the decoder gives scores that are not numbers: its file is damaged, float16 overflowed in it, or the embedding is "
            "not of this model; export or build it again, and embed the image again"
        )


def adapt_meta_feed(feed: Mapping[str, Array], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Turn a feed made for Meta's ONNX export into one for a graph with `specs`; any other feed passes unchanged.

    Meta always sends `mask_input`, `has_mask_input` and a float `orig_im_size`. What the graph does not take is dropped when
    that changes nothing: the mask where its flag is 0, and the size always.

    Raises:
        ContractError: a mask is to be used, and the graph takes none.
    """
    names = {spec.name for spec in specs}
    adapted = dict(feed)
    if "has_mask_input" in feed and "mask_input" not in names:
        if np.any(np.asarray(feed["has_mask_input"]) != 0):
            raise ContractError("has_mask_input is not 0, but this graph takes no mask_input; export it with --mask-input")
        adapted.pop("has_mask_input")
        adapted.pop("mask_input", None)
    if "orig_im_size" in feed:
        if "orig_im_size" in names:
            adapted["orig_im_size"] = np.asarray(feed["orig_im_size"]).astype(np.int64)
        else:
            adapted.pop("orig_im_size")
    return adapted


def too_many(dim: str, size: int) -> str:
    """What to do where a dimension is larger than an engine takes: the points of one prompt cannot be split."""
    if dim == "num_points":
        return f"build the engine for more, with build's --max-points {size}, or num_points in the recipe's [[profiles]]"
    return "split the call"


def _check_dims(spec: TensorSpec, array: Array, dims: dict[str, int], limits: Mapping[str, tuple[int, int]]) -> None:
    expected = f"[{', '.join(map(str, spec.dims))}]"
    if array.ndim != len(spec.dims):
        raise ContractError(f"{spec.name} has shape {list(array.shape)}, must be {expected}")
    for seen, dim in zip(array.shape, spec.dims, strict=True):
        if isinstance(dim, int):
            if seen != dim:
                raise ContractError(f"{spec.name} has shape {list(array.shape)}, must be {expected}")
            continue
        if dims.setdefault(dim, seen) != seen:
            raise ContractError(f"{spec.name} has {dim} = {seen}, but another input has {dims[dim]}; they must agree")
        low, high = limits.get(dim, (1, np.iinfo(np.int32).max))
        if not low <= seen <= high:
            padding = "pad with label -2" if dim == "num_points" else f"give at least {low}"
            advice = too_many(dim, seen) if seen > high else padding
            raise ContractError(f"{spec.name} has {dim} = {seen}, this graph takes {low} to {high}; {advice}")


def _check_labels(labels: Array) -> None:
    allowed = (LABEL_ABSENT, LABEL_NOT_A_POINT, LABEL_BACKGROUND, LABEL_FOREGROUND, LABEL_BOX_START, LABEL_BOX_END)
    wrong = labels[~np.isin(labels, allowed)]
    if wrong.size:
        raise ContractError(
            f"point_labels holds {wrong.flat[0]:g}; allowed are 1 foreground, 0 background, 2 and 3 box corners, "
            "-1 not a point, -2 absent"
        )
