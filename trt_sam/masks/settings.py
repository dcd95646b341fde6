"""The settings of a mask generator: what is possible, and the clicks they mean."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._files import existing_file
from trt_sam.errors import InputError
from trt_sam.masks.crops import point_grid

__all__ = ["OUTPUT_MODES", "check_settings", "point_grids_of", "read_point_grids"]

Array = npt.NDArray[Any]
Points = npt.NDArray[np.float64]

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


def check_settings(
    output_mode: str,
    *,
    points_per_batch: int,
    crop_n_layers: int,
    crop_overlap_ratio: float,
    min_mask_region_area: float,
    thresholds: Mapping[str, float],
) -> None:
    """Raise InputError for an impossible setting of `AutomaticMaskGenerator`, whose arguments these are."""
    if output_mode not in OUTPUT_MODES:
        raise InputError(f"output_mode is {output_mode!r}, must be one of {', '.join(OUTPUT_MODES)}")
    for name, value in thresholds.items():
        if not math.isfinite(value):
            raise InputError(f"{name} is {value}, must be a finite number")
    _check_whole("points_per_batch", points_per_batch, 1)
    _check_whole("crop_n_layers", crop_n_layers, 0)
    if not 0 <= crop_overlap_ratio < 1:
        raise InputError(f"crop_overlap_ratio is {crop_overlap_ratio}, must be at least 0 and below 1")
    if not min_mask_region_area >= 0:
        raise InputError(f"min_mask_region_area is {min_mask_region_area}, must be at least 0")


def point_grids_of(side: int | None, given: Sequence[Array] | None, layers: int, factor: int) -> list[Points]:
    """The clicks of each layer, [k, 2] from 0 to 1: `side` x `side`, divided by `factor` in each layer; or those `given`.

    Raises:
        InputError: both or neither is given, or a layer would have no clicks.
    """
    if (side is None) == (given is None):
        raise InputError("give either points_per_side or point_grids, and None for the other")
    if given is None:
        assert side is not None
        _check_whole("points_per_side", side, 1)
        if not factor >= 1:
            raise InputError(f"crop_n_points_downscale_factor is {factor}, must be at least 1")
        sides = [int(side / factor**layer) for layer in range(layers + 1)]
        if sides[-1] < 1:
            raise InputError(
                f"layer {layers} has no clicks: points_per_side {side} / {factor}^{layers} is below 1; lower one of them"
            )
        return [point_grid(each) for each in sides]
    grids = [np.asarray(grid, np.float64) for grid in given]
    if len(grids) <= layers:
        raise InputError(f"point_grids has {len(grids)} grids, but there are {layers + 1} layers with the whole image")
    for grid in grids:
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid) or not ((grid >= 0) & (grid <= 1)).all():
            raise InputError(f"a grid of point_grids has shape {list(grid.shape)}, must be [k, 2] of numbers from 0 to 1")
    return grids


def read_point_grids(path: str | os.PathLike[str]) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Meta's `point_grids` from a JSON file: a list of clicks [x, y] from 0 to 1 for the whole image, and one for each layer.

    Raises:
        InputError: the file is missing, or holds something else; how many layers there must be is not looked at.
    """
    path = existing_file(path, "file of point grids")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); it must hold a list of lists of [x, y]") from None
    try:
        grids = tuple(tuple((float(x), float(y)) for x, y in grid) for grid in data)
        point_grids_of(None, [np.array(grid) for grid in grids], 0, 1)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{path} must hold a list of lists of [x, y], numbers from 0 to 1, one for each layer") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return grids


def _check_whole(name: str, value: int, least: int) -> None:
    if int(value) != value or value < least:
        raise InputError(f"{name} is {value}, must be a whole number of at least {least}")
