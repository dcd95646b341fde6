"""The flags of limits, for `compare` and `accuracy`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam.errors import InputError

if TYPE_CHECKING:
    from trt_sam.gate.limits import Limits

__all__ = ["add_limit_arguments", "limits_given", "limits_of", "outputs_limited"]

_FLAGS = {
    "min_mean_iou": ("X", "least mean mask IoU of the selected mask"),
    "min_p5_iou": ("X", "least 5th percentile of it"),
    "min_iou": ("X", "least IoU of any selected mask of 200 pixels or more"),
    "min_mean_iou_four": ("X", "least mean IoU of all four masks"),
    "min_p5_iou_four": ("X", "least 5th percentile of it"),
    "max_clear_flips": ("X", "largest share of prompts with another mask selected and scored more than 0.01 lower"),
    "min_sqnr_db": ("DB", "least signal to noise of the logits"),
}


def add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--limits` and a flag for each limit; what is not given has the default of the candidate's precision."""
    group = parser.add_argument_group("limits (defaults by precision: docs/accuracy.md)")
    group.add_argument("--limits", metavar="F.toml", type=Path, help="a file of limits; flags override it")
    for name, (metavar, text) in _FLAGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, type=float, help=text)
    group.add_argument(
        "--min-levels", metavar="N", type=int, help="least of int8's 127 levels that an activation reaches (default: 25)"
    )
    group.add_argument("--min-prompts", metavar="N", type=int, help="with fewer there is no pass (default: 256)")
    group.add_argument(
        "--tolerance", metavar="OUTPUT=X", action="append", default=[], help="largest relative error of an output; repeatable"
    )


def limits_given(args: argparse.Namespace) -> bool:
    """Whether any limit was asked for."""
    names = ("limits", "min_prompts", "min_levels", *_FLAGS)
    return bool(args.tolerance) or any(getattr(args, name) is not None for name in names)


def outputs_limited(args: argparse.Namespace) -> list[str]:
    """The outputs that a flag or the file has a tolerance for; `limits_of` has checked them."""
    from trt_sam.gate.limits import read_limits

    tables = read_limits(args.limits) if args.limits is not None else {}
    named = [name for table in tables.values() for name in table.get("tolerances", {})]
    return list(dict.fromkeys([*named, *(text.partition("=")[0] for text in args.tolerance)]))


def limits_of(args: argparse.Namespace) -> dict[str, Limits]:
    """The limits by arithmetic that the flags describe: all of `add_limit_arguments`, or `--limits` alone.

    Raises:
        InputError: a file or flag that is no limit, or one for an unknown output.
    """
    from trt_sam.gate.limits import ARITHMETICS, OUTPUTS, limits_for, read_limits

    tables = read_limits(args.limits) if args.limits is not None else {}
    flags: dict[str, Any] = {name: getattr(args, name, None) for name in (*_FLAGS, "min_prompts", "min_levels")}
    flags = {name: value for name, value in flags.items() if value is not None}
    tolerances: dict[str, float] = {}
    for text in getattr(args, "tolerance", ()):
        name, equals, value = text.partition("=")
        try:
            tolerances[name] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(f"--tolerance is {text!r}, must be OUTPUT=X, as low_res_masks=0.01")
        if name not in OUTPUTS:
            raise InputError(f"--tolerance names the output {name!r}; outputs are {', '.join(OUTPUTS)}")
    found = {}
    for arithmetic in ARITHMETICS:
        changes: dict[str, Any] = {}
        for table in (tables.get("", {}), tables.get(arithmetic, {}), flags, {"tolerances": tolerances}):
            joined = {**changes.get("tolerances", {}), **table.get("tolerances", {})}
            changes.update(table)
            changes["tolerances"] = joined
        found[arithmetic] = limits_for(arithmetic, changes)
    return found
