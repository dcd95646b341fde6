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

__all__ = ["OUTPUT_MODES", "check_settings", "grids_left_over", "point_grids_of", "read_point_grids"]

Array = npt.NDArray[Any]
Points = npt.NDArray[np.float64]

_MOST_POINTS_PER_SIDE = 1024
"""A click on every pixel of the frame that the image encoder sees."""
_MOST_CROP_LAYERS = 6
"""Of 4,096 crops in the last one, each of some 16 pixels a side in that frame."""

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
    _check_whole("crop_n_layers", crop_n_layers, 0, _MOST_CROP_LAYERS)
    for name in ("box_nms_thresh", "crop_nms_thresh"):
        if not 0 <= thresholds.get(name, 0) <= 1:
            raise InputError(f"{name} is {thresholds[name]}, must be an IoU from 0 to 1; 1 keeps all masks")
    offset = thresholds.get("stability_score_offset", 0)
    if offset < 0:
        raise InputError(f"stability_score_offset is {offset}, must be at least 0: below that every mask would count as steady")
    if not 0 <= crop_overlap_ratio < 1:
        raise InputError(f"crop_overlap_ratio is {crop_overlap_ratio}, must be at least 0 and below 1")
    if not min_mask_region_area >= 0:
        raise InputError(f"min_mask_region_area is {min_mask_region_area}, must be at least 0")


def point_grids_of(
    side: int | None, given: Sequence[Array] | None, layers: int, factor: int, *, name: str = "point_grids"
) -> list[Points]:
    """The clicks of each layer, [k, 2] from 0 to 1: `side` x `side`, divided by `factor` in each layer; or those `given`.

    Messages call these `name`.

    Raises:
        InputError: both or neither is given, or a layer would have no clicks.
    """
    if (side is None) == (given is None):
        raise InputError("give either points_per_side or point_grids, and None for the other")
    if given is None:
        assert side is not None
        _check_whole("points_per_side", side, 1, _MOST_POINTS_PER_SIDE)
        if not factor >= 1:
            raise InputError(f"crop_n_points_downscale_factor is {factor}, must be at least 1")
        sides = [int(side / factor**layer) for layer in range(layers + 1)]
        if sides[-1] < 1:
            raise InputError(
                f"points_per_side is {side}, must be at least {math.ceil(factor**layers)}: it is divided by "
                f"crop_n_points_downscale_factor {factor} in each of crop_n_layers {layers}, and layer {layers} has no clicks; "
                "raise it, or lower one of these"
            )
        return [point_grid(each) for each in sides]
    grids = [np.asarray(grid, np.float64) for grid in given]
    if len(grids) <= layers:
        needed = "one for the whole image" + (f" and one for each of {layers} layers of crops" if layers else "")
        raise InputError(f"{name} has {len(grids)} grids, must have {layers + 1}: {needed}")
    for number, grid in enumerate(grids):
        _check_grid(name, number, grid)
    return grids


def grids_left_over(count: int, layers: int) -> str:
    """What is to be said where `count` grids came for fewer layers, else ""; Meta's generator passes over the rest."""
    if count <= layers + 1:
        return ""
    return (
        f"point_grids has {count} grids, of which only {layers + 1} are used: the first is for the whole image, each "
        f"further one for a layer of crops; give crop_n_layers {count - 1}, or fewer grids"
    )


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
        point_grids_of(None, [np.array(grid) for grid in grids], 0, 1, name=str(path))
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{path} must hold a list of lists of [x, y], numbers from 0 to 1, one for each layer") from None
    return grids


def _check_grid(name: str, number: int, grid: Points) -> None:
    if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
        raise InputError(f"grid {number} of {name} has shape {list(grid.shape)}, must be [k, 2] of numbers from 0 to 1")
    bad = ~((grid >= 0) & (grid <= 1))
    if bad.any():
        click = int(bad.any(axis=1).argmax())
        seen = grid[click].tolist()
        raise InputError(f"click {click} in grid {number} of {name} is {seen}, must be (x, y), numbers from 0 to 1")


def _check_whole(name: str, value: int, least: int, most: int | None = None) -> None:
    if not math.isfinite(value) or int(value) != value or value < least:
        raise InputError(f"{name} is {value}, must be a whole number of at least {least}")
    if most is not None and value > most:
        raise InputError(f"{name} is {value}, must be a whole number from {least} to {most}")
