"""`--point` and `--box`: clicks and a box in pixels of the image."""

from __future__ import annotations

import argparse
import math

from trt_sam.errors import InputError
from trt_sam.imaging.overlay import Box, Click

__all__ = ["add_prompt_arguments", "prompt_of"]


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--point` (as often as wanted) and `--box`."""
    parser.add_argument(
        "--point", action="append", default=[], metavar="X,Y[,0|1]", help="a click in image pixels: 1 on it (default), 0 off it"
    )
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help="a box in image pixels")


def prompt_of(args: argparse.Namespace) -> tuple[list[Click], Box | None]:
    """The clicks and the box that the flags give; raises InputError where there is neither, or one cannot be read."""
    clicks = [_parse_click(text) for text in args.point]
    box = None if args.box is None else _parse_box(args.box)
    if not clicks and box is None:
        raise InputError("no prompt: give --point X,Y or --box X0,Y0,X1,Y1")
    return clicks, box


def _parse_click(text: str) -> Click:
    fields = text.split(",")
    if len(fields) not in (2, 3):
        raise InputError(f"--point is {text!r}, must be X,Y or X,Y,LABEL: two numbers in image pixels, then 1 or 0")
    x, y = (_number(field, "--point", text) for field in fields[:2])
    label = fields[2].strip() if len(fields) == 3 else "1"
    if label not in ("0", "1"):
        raise InputError(f"--point {text}: the label is {label!r}, must be 1 (on the object) or 0 (off it)")
    return x, y, int(label)


def _parse_box(text: str) -> Box:
    fields = text.split(",")
    if len(fields) != 4:
        raise InputError(f"--box is {text!r}, must be X0,Y0,X1,Y1: four numbers in image pixels")
    x0, y0, x1, y1 = (_number(field, "--box", text) for field in fields)
    if not (x0 < x1 and y0 < y1):
        raise InputError(f"--box {text} is empty: X1 must be above X0, and Y1 above Y0")
    return x0, y0, x1, y1


def _number(field: str, flag: str, text: str) -> float:
    try:
        value = float(field)
    except ValueError:
        raise InputError(f"{flag} is {text!r}: {field.strip()!r} is not a number; give image pixels") from None
    if not math.isfinite(value):
        raise InputError(f"{flag} is {text!r}: {field.strip()} is not finite; give image pixels")
    return value
