"""Compare two decoders on the same prompts: a checkpoint in PyTorch, an ONNX graph, an engine where it can execute.

A is the reference. Prompts are clicks, boxes, several clicks, padded rows, and earlier masks where both sides take them. They
are put on your embeddings with --embeddings, else on synthetic scenes where a side is the stand-in, else on random embeddings.
An FP16 graph is compared through an emulation that rounds every FP16 tensor. Exit code 1 when a tolerance fails.

Example:
  trt-sam compare standin engines/built/standin/decoder.onnx --prompts 48 --json report.json
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from trt_sam._lazy import require
from trt_sam.commands._options import add_cache_argument, add_json_argument, gpu_number, write_json
from trt_sam.errors import InputError
from trt_sam.progress import Stages

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from trt_sam.accuracy.compare import ComparisonReport
    from trt_sam.accuracy.sides import Side
    from trt_sam.feeds.feeds import Image

    Embed = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]

HELP = "errors and mask IoU between a checkpoint, a graph and an engine"

DEFAULT_PROMPTS = 24
_PROMPTS_PER_IMAGE = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `compare`."""
    what = "mobile_sam, standin or another checkpoint, a .onnx graph, or an engine set's folder"
    parser.add_argument("reference", metavar="A", help=f"the reference: {what}")
    parser.add_argument("other", metavar="B", help=what)
    add_cache_argument(parser)
    parser.add_argument("--prompts", metavar="N", type=int, default=DEFAULT_PROMPTS, help="how many (default: %(default)s)")
    parser.add_argument("--embeddings", metavar="DIR", type=Path, help="put them on the embeddings in DIR")
    parser.add_argument("--device", metavar="cuda:N", default="cuda:0", help="GPU for engines (default: %(default)s)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Compare; 0 when every tolerance holds, 1 when one does not."""
    if args.prompts < 1:
        raise InputError(f"--prompts is {args.prompts}, must be at least 1")
    device = gpu_number(args.device)
    require("polygraphy", "to compare")
    from trt_sam.accuracy.compare import compare_sides
    from trt_sam.accuracy.sides import open_side
    from trt_sam.feeds.feeds import common_feeds, stored_images

    images = stored_images(args.embeddings) if args.embeddings is not None else []
    with Stages({"A": 1, "B": 1, "compare": 4}) as stages, contextlib.ExitStack() as stack:
        sides = []
        for name, source in (("A", args.reference), ("B", args.other)):
            stages.begin(name, f"opening {source}")
            sides.append(open_side(source, device=device))
            stack.callback(sides[-1].runner.close)
        reference, other = sides
        data, meaningful = f"{len(images)} embeddings of {args.embeddings}", True
        if not images:
            images, data, meaningful = _default_images(reference, other, -(-args.prompts // _PROMPTS_PER_IMAGE))
        stages.begin("compare", f"comparing both on {args.prompts} prompts")
        feeds = common_feeds(images, args.prompts, [side.runner for side in sides])
        report = compare_sides(reference, other, feeds, data=data, masks_mean_something=meaningful)
    if args.json:
        write_json(args.json, report.to_dict())
    if args.json != "-":
        print("\n".join(table(report)))
    return 0 if report.passed else 1


def table(report: ComparisonReport) -> list[str]:
    """The report as lines for people."""
    lines = [
        f"A (reference)  {report.reference}, {report.executed_by[0]}",
        f"B              {report.other}, {report.executed_by[1]}",
        f"{report.prompts} prompts in {report.feeds} feeds on {report.data}; tolerances for {report.arithmetic}",
        "",
        f"{'output':<18} {'relative error':>14} {'tolerance':>10} {'SQNR':>9}",
    ]
    for output in report.outputs:
        verdict = "ok" if output.passed else "FAILED"
        lines.append(f"{output.name:<18} {output.error:>14.1e} {output.tolerance:>10.0e} {output.sqnr_db:>6.1f} dB  {verdict}")
    masks = report.masks
    limit = f"{masks.least_mean_iou:>10.4g}" if masks.least_mean_iou is not None else f"{'none':>10}"
    lines += [
        f"{'mean mask IoU':<18} {masks.mean_iou:>14.5f} {limit} {'':>9}  {'ok' if masks.passed else 'FAILED'}",
        "",
        f"{masks.masks} masks; lowest IoU of a mask of 200 pixels or more {masks.lowest_iou:.4f}; another best mask for "
        f"{100 * masks.flip_rate:.1f} % of the prompts, {masks.wrong_choices} of them beyond the tolerance of the scores",
        *(f"note: {note}" for note in report.notes),
        "agree" if report.passed else "DIFFER: a tolerance failed",
    ]
    return lines


def _default_images(reference: Side, other: Side, count: int) -> tuple[list[Image], str, bool]:
    """Stand-in scenes where a side is the stand-in and its encoder can run, else random embeddings."""
    from trt_sam.feeds.feeds import random_images, scene_images

    embed = _standin_encoder(reference, other)
    if embed is None:
        return random_images(count), f"{count} seeded random embeddings, whose masks mean nothing", False
    return scene_images(embed, count), f"{count} synthetic scenes, embedded by the stand-in", True


def _standin_encoder(reference: Side, other: Side) -> Embed | None:
    if any(importlib.util.find_spec(package) is None for package in ("torch", "safetensors", "PIL")):
        return None
    from trt_sam.model.checkpoint import STANDINS, load_checkpoint

    hashes = {side.checkpoint_sha256 for side in (reference, other)}
    for name in STANDINS:
        standin = load_checkpoint(name)
        if standin.sha256 in hashes:
            return standin.image_encoder().embed
    return None
