"""FP16, INT8 and FP8 of the real decoder (MobileSAM's, which is SAM ViT-H's weight for weight) on real photographs.

Photographs and their split are those of benchmarks/mobile_sam_photos.py: some to calibrate with, some that defaults were tuned
on, and others, which neither saw, to judge by. Prompts are as people give them (trt_sam/feeds/realistic.py). Graphs are judged
as they are delivered, in ONNX Runtime on the CPU, against PyTorch in FP32.

Each step runs in a process of its own and is kept in --work, so that an interrupted run goes on where it stopped. A prompt
costs 0.1 s of one core per INT8 variant and 0.35 s for FP16, of which the metrics are a hundredth: 100 prompts on each of 20
photographs and all variants take an hour of two cores. Variants modelopt-METHOD-NODES are NVIDIA's ModelOpt (see
modelopt_ptq.py) on the same FP32 graph and feeds, METHOD max or entropy, NODES "own" for its own choice or our tiers. With
--few some variants are judged by the first prompts of each photograph alone, and a second table compares all variants on
these.

Example:
  python benchmarks/accuracy_mobile_sam.py --work /tmp/mobile_sam --output benchmarks/results/accuracy_mobile_sam.json \
      --prompts-per-image 52 --few 26=fp16,int8-mse-A,int8-max-ABC
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from accuracy_mobile_sam_steps import Work, names_in
from script import finish, say

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = (
    *("fp16", "int8-auto-A", "int8-max-A", "int8-entropy-A", "int8-mse-A", "int8-percentile-A"),
    *("int8-auto-AB", "int8-max-AB", "int8-max-ABC", "fp8-max-A"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 when the table was written."""
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps photographs, graphs and rows")
    parser.add_argument("--output", type=Path, required=True, metavar="F.json", help="F.md is written beside it")
    parser.add_argument("--checkpoint", default="mobile_sam", metavar="C", help="default: %(default)s")
    parser.add_argument("--variants", default=",".join(VARIANTS), metavar="LIST", help="default: %(default)s")
    parser.add_argument("--graph", action="append", default=[], metavar="NAME=F.onnx", help="judge this graph too; repeatable")
    parser.add_argument("--prompts-per-image", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--modelopt-python", type=Path, metavar="PATH", help="Python with nvidia-modelopt[onnx], for modelopt-*"
    )
    parser.add_argument("--few", default="", metavar="N=LIST", help="judge these by the first N prompts of each photograph")
    parser.add_argument(
        "--kinds", default="", metavar="LIST", help="judge by prompts of these kinds in turn: refinement, box, ..."
    )
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="of one graph (default: the cores there are)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts (default: 0)")
    parser.add_argument("--split", type=int, default=0, metavar="N", help="seed of the split of photographs (default: 0)")
    parser.add_argument("--note", default="", metavar="TEXT", help="stands in the head of the report")
    parser.add_argument("--step", nargs=2, metavar=("STEP", "NAME"), help=argparse.SUPPRESS)
    return finish("accuracy_mobile_sam", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """What the flags ask for."""
    from trt_sam.errors import InputError
    from trt_sam.feeds.realistic import PATTERN

    if args.output.suffix != ".json":
        raise InputError(f"--output is {str(args.output)!r}, must end in .json")
    if unknown := set(names_in(args.kinds)) - set(PATTERN):
        raise InputError(f"--kinds names {', '.join(sorted(unknown))}, must be of {', '.join(sorted(set(PATTERN)))}")
    work = Work(args)
    if args.step:
        {"prepare": work.prepare, "calibrate": work.calibrate, "measure": work.measure}[args.step[0]](args.step[1])
        return 0
    given = dict(text.split("=", 1) for text in args.graph)
    names = names_in(args.variants)
    _in_process(args.work, "prepare", "all")
    for name in [*names, *given]:
        if work.rows(name).exists():
            continue
        if name in given:
            work.graph(name).write_bytes(Path(given[name]).read_bytes())
        elif name != "fp16" and not work.graph(name).exists():
            # Those that share statistics and histograms are made together.
            like = [name] if "-auto-" in name else [each for each in names if _shared(each) == _shared(name)]
            _in_process(args.work, "calibrate", ",".join(each for each in like if not work.graph(each).exists()))
        _in_process(args.work, "measure", name)
    work.report([*names, *given])
    return 0


def _in_process(folder: Path, step: str, name: str) -> None:
    from trt_sam.errors import TrtSamError

    say(f"{step} {name}")
    command = [sys.executable, __file__, *sys.argv[1:], "--step", step, name]
    if code := subprocess.run(command, check=False).returncode:
        raise TrtSamError(f"step {step} {name} ended with status {code}; what was finished is kept in {folder}")


def _shared(name: str) -> tuple[str, ...]:
    """What decides a variant's statistics and histograms: its name without the calibrator."""
    precision, *rest = name.split("-")
    return (precision, *rest[1:]) if rest[:1] != ["auto"] else (name,)


if __name__ == "__main__":
    sys.exit(main())
