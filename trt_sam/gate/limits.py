"""What a decoder must hold to pass: limits by precision, from a TOML file and from flags. numpy is not needed here.

The defaults come from the real decoder's table; `docs/accuracy.md` says from which figures.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trt_sam._files import existing_file
from trt_sam._toml import tomllib
from trt_sam.errors import InputError

__all__ = ["ARITHMETICS", "DEFAULTS", "LARGE_MASK", "OUTPUTS", "Limits", "limits_for", "read_limits"]

ARITHMETICS = ("fp32", "tf32", "fp16", "quantized")
"""Finest first."""

OUTPUTS = ("masks", "low_res_masks", "iou_predictions", "mask_bits")
"""Outputs that a tolerance can be set for."""

LARGE_MASK = 200
"""Pixels at 256 x 256 from which a mask counts for `min_iou`: one pixel of a tiny mask says nothing."""


@dataclass(frozen=True)
class Limits:
    """Every limit; all must hold."""

    min_mean_iou: float
    """Mean mask IoU of the mask that SAM's rule selects by the reference's scores."""
    min_p5_iou: float
    """Its 5th percentile."""
    min_iou: float
    """The least, of masks of LARGE_MASK pixels or more."""
    min_mean_iou_four: float
    """Mean mask IoU of all masks of a prompt, index by index."""
    min_p5_iou_four: float
    max_clear_flips: float
    """Share of prompts for which another mask is selected, which the reference scores more than 0.01 lower."""
    min_sqnr_db: float
    """Signal to noise of all logits."""
    min_levels: int = 25
    """Of the 127 levels on either side of zero, the least that the largest value of an int8 activation reaches on the hardest
    calls; a range that is more than five times too large fails."""
    min_prompts: int = 256
    """With fewer there is no verdict but a failure."""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """By output, the largest error: of masks relative to the largest |logit| of a feed, of scores to 1 or the largest score; of
    `mask_bits` the share of pixels that are not those of the side's own masks."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if name in ("tolerances", "min_prompts", "min_sqnr_db", "min_levels"):
                continue
            if not 0.0 <= value <= 1.0:
                raise InputError(f"limit {name} is {value}, must be from 0 to 1")
        if math.isnan(self.min_sqnr_db):
            raise InputError("limit min_sqnr_db is nan, must be a number of decibels")
        if not 0 <= self.min_levels <= 127:
            raise InputError(f"limit min_levels is {self.min_levels}, must be from 0 to 127")
        if self.min_prompts < 1:
            raise InputError(f"limit min_prompts is {self.min_prompts}, must be at least 1")
        for name, value in self.tolerances.items():
            if name not in OUTPUTS:
                raise InputError(f"there is a limit for the output {name!r}; outputs are {', '.join(OUTPUTS)}")
            if not value >= 0.0:
                raise InputError(f"the tolerance of {name} is {value}, must be at least 0")


_BITS = 1e-6
"""Both come from one tensor: only a logit that float16 rounds to 0 may lie on the other side."""


def _limits(mean: float, p5: float, least: float, four: tuple[float, float], flips: float, sqnr: float, error: float) -> Limits:
    scores = min(error, 0.3)
    return Limits(
        mean,
        p5,
        least,
        *four,
        flips,
        sqnr,
        tolerances={"masks": error, "low_res_masks": error, "iou_predictions": scores, "mask_bits": _BITS},
    )


DEFAULTS: Mapping[str, Limits] = {
    "fp32": _limits(0.9999, 0.999, 0.99, (0.9998, 0.998), 0.0, 80.0, 1e-4),
    "tf32": _limits(0.998, 0.99, 0.95, (0.997, 0.985), 0.01, 45.0, 2e-2),
    "fp16": _limits(0.998, 0.99, 0.95, (0.997, 0.985), 0.01, 45.0, 3e-2),
    "quantized": _limits(0.994, 0.97, 0.9, (0.99, 0.96), 0.02, 30.0, 0.5),
}
"""By the coarser arithmetic of the two sides. "tf32" has never been measured on a GPU."""


def limits_for(arithmetic: str, changes: Mapping[str, Any] | None = None) -> Limits:
    """The defaults of an arithmetic with `changes` (names of `Limits`; `tolerances` by output are added to the defaults).

    Raises:
        InputError: an unknown name or an impossible value.
    """
    base = DEFAULTS[arithmetic]
    known = {each.name for each in dataclasses.fields(Limits)}
    given = dict(changes or {})
    for name in given:
        if name not in known:
            raise InputError(f"there is no limit {name!r}; limits are {', '.join(sorted(known))}")
    if "tolerances" in given:
        if not isinstance(given["tolerances"], Mapping):
            raise InputError(f"tolerances is {given['tolerances']!r}, must be a table of outputs, as {{low_res_masks = 0.01}}")
        given["tolerances"] = {**base.tolerances, **given["tolerances"]}
    return dataclasses.replace(base, **given)


def read_limits(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read limits from a TOML file: changes to the defaults for every arithmetic ("") and for single ones.

    The file has names of `Limits` at its top, and tables [fp32], [tf32], [fp16], [quantized] with the same names; a table
    `tolerances` in any of them has outputs:

        min_mean_iou = 0.995
        [quantized]
        max_clear_flips = 0.01
        [quantized.tolerances]
        iou_predictions = 0.1

    Raises:
        InputError: not TOML, an unknown name, or a value of another kind.
    """
    path = existing_file(path, "file of limits")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML ({error}); see docs/accuracy.md for an example") from error
    tables = {"": {name: value for name, value in data.items() if name not in ARITHMETICS}}
    for name in ARITHMETICS:
        table = data.get(name, {})
        if not isinstance(table, dict):
            raise InputError(f"{path}: {name} must be a table [{name}] of limits")
        tables[name] = table
    for name, table in tables.items():
        for key, value in table.items():
            if isinstance(value, dict) and key != "tolerances":
                raise InputError(f"{path}: there is no table [{key}]; tables are {', '.join(ARITHMETICS)} and tolerances")
            _check_kind(path, key, value)
        try:
            limits_for(name or "fp32", table)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return tables


def _check_kind(path: os.PathLike[str], key: str, value: Any) -> None:
    if key not in {each.name for each in dataclasses.fields(Limits)}:
        return
    values = value.values() if key == "tolerances" and isinstance(value, dict) else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, int | float):
            raise InputError(f"{os.fspath(path)}: limit {key} is {each!r}, must be a number")
    if key in ("min_prompts", "min_levels") and not isinstance(value, int):
        raise InputError(f"{os.fspath(path)}: limit {key} is {value!r}, must be a whole number")
