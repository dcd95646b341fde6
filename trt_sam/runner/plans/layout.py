"""Buckets: the shapes that a runner executes, and where their tensors lie in a slot's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import TensorSpec, size_of, too_many
from trt_sam.errors import ContractError
from trt_sam.runner.engine import Limits
from trt_sam.runner.plans.unpack import SCRATCH_PER_BYTE

__all__ = ["Bucket", "Buckets", "Layout", "extent", "rows_view", "scratch_extent", "shape_of", "sizes_of", "view"]

Array = npt.NDArray[Any]

_ALIGNMENT = 256
"""What TensorRT asks of tensor addresses."""
_INPUTS = ("point_coords", "point_labels", "has_mask_input", "orig_im_size", "mask_input")
"""Order in the input block: what a call always sends first, the large mask last."""
_OUTPUTS = ("mask_bits", "iou_predictions", "low_res_masks", "masks")
"""Order in the output block: the scores between bits and logits, so that a call that wants either makes one copy."""


@dataclass(frozen=True)
class Bucket:
    """Shapes that are executed, by a profile that takes them; smaller calls are filled up with absent prompts and points."""

    num_prompts: int
    num_points: int
    profile: int


class Buckets:
    """The buckets of an engine: powers of two between the limits of each profile, and the limits themselves.

    Args:
        profiles: limits by profile.
        prompts: sizes to use instead of powers of two; the largest of a profile is always among them.
        points: the same for points.
    """

    def __init__(
        self, profiles: Sequence[Limits], prompts: Sequence[int] | None = None, points: Sequence[int] | None = None
    ) -> None:
        self._profiles = tuple(profiles)
        for name, asked in (("num_prompts", prompts), ("num_points", points)):
            high = max(limits[name][1] for limits in profiles)
            if asked is not None and not (isinstance(asked, Sequence) and all(n in range(1, high + 1) for n in asked)):
                raise ContractError(f"buckets of {name} are {asked!r}, must be a list of numbers from 1 to {high}")
        self.all = tuple(
            Bucket(n, p, index)
            for index, limits in enumerate(profiles)
            for n in _sizes(limits["num_prompts"], prompts)
            for p in _sizes(limits["num_points"], points)
        )
        self._chosen: dict[tuple[tuple[str, int], ...], Bucket] = {}

    def fitting(self, sizes: Mapping[str, int]) -> Bucket:
        """The bucket with the least work that takes a call of these sizes, raises ContractError where none does."""
        prompts, points = sizes["num_prompts"], sizes["num_points"]
        others = {dim: size for dim, size in sizes.items() if dim not in ("num_prompts", "num_points")}
        taking = [
            bucket
            for bucket in self.all
            if bucket.num_prompts >= prompts
            and bucket.num_points >= points
            and all(low <= others.get(dim, low) <= high for dim, (low, high) in self._profiles[bucket.profile].items())
        ]
        if taking:
            # A prompt has some five tokens beside its points.
            return min(taking, key=lambda bucket: (bucket.num_prompts * (bucket.num_points + 5), bucket.profile))
        asked = ", ".join(f"{dim} = {size}" for dim, size in sizes.items())
        taken = "; or ".join(", ".join(f"{dim} {low} to {high}" for dim, (low, high) in p.items()) for p in self._profiles)
        longer = points > max(limits["num_points"][1] for limits in self._profiles)
        advice = too_many("num_points", points) if longer else "split the call, or use decode_many"
        raise ContractError(f"no profile of this engine takes {asked}; it takes {taken}; {advice}")


@dataclass(frozen=True)
class Layout:
    """Offsets of a bucket's tensors: inputs in the input block, outputs in the output block."""

    shapes: Mapping[str, tuple[int, ...]]
    offsets: Mapping[str, int]

    @classmethod
    def of(
        cls, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], sizes: Mapping[str, int], limits: Limits
    ) -> Layout:
        """Lay out tensors, image embeddings excepted; `sizes` are those of the dynamic dimensions, `limits` the engine's.

        Offsets are the same for every image size, with room for the largest: a bucket's context is told addresses once.
        """
        shapes, offsets = {}, {}
        room = {**sizes, **{dim: limits[dim][1] for dim in ("height", "width") if dim in limits}}
        for specs, order in ((inputs, _INPUTS), (outputs, _OUTPUTS)):
            at = 0
            for spec in sorted((s for s in specs if s.name in order), key=lambda s: order.index(s.name)):
                shapes[spec.name] = shape_of(spec, sizes)
                offsets[spec.name] = at
                at += _aligned(_nbytes(spec, room))
        return cls(shapes, offsets)


def extent(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> int:
    """Bytes that a block for these tensors needs."""
    return sum(_aligned(_nbytes(spec, sizes)) for spec in specs)


def scratch_extent(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> int:
    """Bytes of host memory in which calls check a mask input, and make bool masks of the logits or of packed bits."""
    count = {spec.name: prod(shape_of(spec, sizes)) for spec in (*inputs, *outputs)}
    packed = count.get("mask_bits")
    bits = count.get("masks", count["low_res_masks"]) if packed is None else SCRATCH_PER_BYTE * packed
    return max(bits, count.get("mask_input", 0))


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a tensor where the dynamic dimensions have these sizes."""
    return tuple(size_of(dim, sizes) for dim in spec.dims)


def view(block: Array, layout: Layout, name: str, dtype: str, rows: int | None = None) -> Array:
    """A numpy view of a tensor in a page-locked block, of its first `rows` rows if given."""
    return rows_view(
        block, layout.offsets[name], (*(() if rows is None else (rows,)), *layout.shapes[name][rows is not None :]), dtype
    )


def rows_view(block: Array, at: int, shape: Sequence[int], dtype: str) -> Array:
    """A numpy view of the bytes from `at` on."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return block[at : at + nbytes].view(dtype).reshape(tuple(shape))


def sizes_of(bucket: Bucket, height_width: tuple[int, int] | None) -> Mapping[str, int]:
    """Sizes of the dynamic dimensions."""
    sizes = {"num_prompts": bucket.num_prompts, "num_points": bucket.num_points}
    if height_width is not None:
        sizes |= {"height": height_width[0], "width": height_width[1]}
    return sizes


def _sizes(limits: tuple[int, int], asked: Sequence[int] | None) -> list[int]:
    low, high = limits
    inside = asked if asked is not None else [2**k for k in range(high.bit_length())]
    return sorted({high, *(size for size in inside if low <= size <= high), *([low] if asked is None else [])})


def _nbytes(spec: TensorSpec, sizes: Mapping[str, int]) -> int:
    return prod(shape_of(spec, sizes)) * np.dtype(spec.dtype).itemsize


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
