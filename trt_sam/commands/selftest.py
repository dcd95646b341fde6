"""Try it out on this machine: export, build and compare the stand-in in FP32 and FP16 with every TensorRT installed.

Graphs are compared with PyTorch on a synthetic scene, engines are executed where there is a GPU. Attach the JSON to an issue.
Nothing is left on the disk; takes a minute or two.

Example:
  trt-sam selftest --json selftest.json
"""

from __future__ import annotations

import argparse
import shutil
from typing import TYPE_CHECKING

from trt_sam._lazy import require_all
from trt_sam.commands._options import add_json_argument, write_json

if TYPE_CHECKING:
    from trt_sam.selftest import Step

HELP = "try FP32 and FP16 from checkpoint to engine on this machine, one verdict"

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "PIL")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `selftest`."""
    parser.add_argument("--device", metavar="cpu|cuda:N", help="where engines execute (default: the first GPU, else none)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the steps; 0 when none failed."""
    require_all(_PACKAGES, "for selftest (trt-sam doctor lists what is missing)")
    from trt_sam.selftest import run_selftest

    quiet = args.json == "-"
    report = run_selftest(args.device, on_step=None if quiet else _show)
    if args.json:
        write_json(args.json, report.to_dict())
    if not quiet:
        print(report.verdict())
    return 0 if report.passed else 1


def _show(step: Step) -> None:
    width = shutil.get_terminal_size().columns
    line = f"{step.status:<8} {step.name:<40} {step.seconds:5.1f} s  {step.detail}"
    # A failure is shown whole; other lines give way to the terminal's width.
    print(line if step.status == "failed" or width < 80 else line[: max(width, 160)], flush=True)
