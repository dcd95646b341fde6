"""Engines beside PyTorch and Meta's graph on this machine's GPU; `make bench-gpu`. Leaves with the reason where there is none.

Builds the stand-in and Meta's graph in FP32 and FP16 with the TensorRT that is installed; stops where Meta's, which ours is
compared with, cannot be built. Writes <gpu>.json, <gpu>.md and <gpu>.svg.

Example:
  python benchmarks/gpu.py --output benchmarks/results
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.script import finish, say  # noqa: E402
from trt_sam import cli  # noqa: E402
from trt_sam._files import write_atomically  # noqa: E402
from trt_sam._lazy import install_command, require, require_all  # noqa: E402
from trt_sam.bench.benchmark import Plan, SideSpec, run_benchmark  # noqa: E402
from trt_sam.bench.report import markdown, plot_svg  # noqa: E402
from trt_sam.engine.flavour import available_flavours, choose_flavour  # noqa: E402
from trt_sam.errors import BuildError, InputError, TrtSamError  # noqa: E402
from trt_sam.machine.driver import examine_driver  # noqa: E402

_PROFILES = ("[1, 1, 4]", "[5, 64, 256]")
"""Of num_prompts: one tuned for one prompt, one for many."""
_SIDES = "trt_sam.bench.sides"
_BASELINE = "Meta's graph, TensorRT FP16"


def main(argv: list[str] | None = None) -> int:
    """Measure; 0 also where this machine cannot, with the reason; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME=DIR", help="an engine set to time as well")
    parser.add_argument("--prompts", default="1,4,16,64,256", metavar="LIST", help="prompts per call (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="timed calls in all (default: %(default)g)")
    parser.add_argument(
        "--side-by-side", action="store_true", help="sides take turns, all in the GPU's memory; else one after the other"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    args = parser.parse_args(argv)
    reason = why_not()
    if reason:
        print(f"bench-gpu: skipped: {reason}")
        return 0
    return finish("bench-gpu", run, args)


def why_not() -> str:
    """Why this machine cannot run the benchmark; empty where it can."""
    driver = examine_driver()
    if not driver.gpus:
        return driver.error or "no GPU"
    if not available_flavours():
        return f"no TensorRT is installed; {install_command(['tensorrt', 'pycuda'])}"
    try:
        require_all(("pycuda", "matplotlib", "torch", "onnx"), "for the benchmark")
    except TrtSamError as error:
        return str(error)
    return ""


def run(args: argparse.Namespace) -> int:
    """What the flags ask for."""
    if not all(part.isdecimal() for part in args.prompts.split(",")):
        raise InputError(f"--prompts is {args.prompts!r}, must be numbers, as 1,16")
    own = [each.partition("=") for each in args.engine]
    if not all(name and folder for name, _, folder in own):
        raise InputError(f"--engine is {args.engine}, must be NAME=DIR")
    plan = Plan(
        prompts=tuple(map(int, args.prompts.split(","))),
        seconds=args.seconds,
        rounds=args.rounds,
        threads=1,
        warmup_s=0.5,
        alone=not args.side_by_side,
    )
    with tempfile.TemporaryDirectory(prefix="trt-sam-bench-gpu-") as folder:
        sides = [*torch_sides(), *engine_sides(Path(folder))]
        sides += [_engine(name, Path(directory).resolve()) for name, _, directory in own]
        report = run_benchmark(sides, plan, title="SAM mask decoder on a GPU", baseline=_BASELINE, progress=say)
    note = (
        "Meta's graph has no mask branch here. Ratios are to its FP16 engine, so that they are not those of the precisions; "
        "TensorRT may use TF32 for FP32 products."
    )
    report = dataclasses.replace(report, notes=(*report.notes, note))
    name = re.sub(r"[^a-z0-9]+", "-", examine_driver().gpus[0].name.lower()).strip("-")
    files = {"json": json.dumps(report.to_dict(), indent=2) + "\n", "md": markdown(report), "svg": plot_svg(report)}
    for suffix, data in files.items():
        write_atomically(args.output / f"{name}.{suffix}", data)
    print(markdown(report).partition("\n## Machine")[0])
    return 0


def torch_sides() -> list[SideSpec]:
    """PyTorch in FP16 on the GPU, eager and compiled in two ways."""
    torch = require("torch", "for the benchmark")
    lacking = "" if torch.cuda.is_available() else f"this torch ({torch.__version__}) has no CUDA"
    settings = {"checkpoint": "standin", "device": "cuda:0", "precision": "fp16", "threads": 1}
    return [
        SideSpec(name, f"{_SIDES}:open_torch", settings | {"compiled": compiled}, not_here=lacking)
        for name, compiled in (
            ("PyTorch FP16, eager", False),
            ("PyTorch FP16, torch.compile", True),
            ("PyTorch FP16, torch.compile max-autotune", "max-autotune"),
        )
    ]


def engine_sides(folder: Path) -> list[SideSpec]:
    """Build Meta's graph and ours below `folder`; what of ours cannot be built keeps its reason.

    Raises:
        BuildError: Meta's cannot, and there is nothing to compare with.
    """
    from benchmarks.peer_sides import export_meta_as_ours

    meta, half = folder / "meta.onnx", folder / "meta_fp16.onnx"
    export_meta_as_ours(meta)
    export_meta_as_ours(half, half=True)
    backend = os.environ.get("TRT_SAM_GPU_BACKEND") or choose_flavour(None).backend
    jobs = {
        _BASELINE: ["--onnx", str(half)],
        "Meta's graph, TensorRT FP32": ["--onnx", str(meta)],
        "trt-sam, TensorRT FP32": ["--checkpoint", "standin", "--precision", "fp32"],
        "trt-sam, TensorRT FP16": ["--checkpoint", "standin", "--precision", "fp16"],
        # Its one mask a prompt is chosen, thresholded and packed on the GPU: 8 KiB of it are copied.
        "trt-sam, TensorRT FP16, best mask as bits": [
            *("--checkpoint", "standin", "--precision", "fp16", "--best-mask", "--mask-bits")
        ],
    }
    sides = []
    for index, (name, source) in enumerate(jobs.items()):
        say(f"building {name}")
        target = folder / f"engine{index}"
        try:
            build(source, target, backend)
        except BuildError as error:
            if name.startswith("Meta"):
                raise BuildError(f"{name} cannot be built, and there is nothing to compare with: {error}") from error
            sides.append(SideSpec(name, "", not_here=str(error)))
        else:
            sides.append(_engine(name, target))
    return sides


def build(source: list[str], target: Path, backend: str) -> None:
    """`trt-sam build` with room for many prompts; raises BuildError with its line where it fails."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(["build", *source, *_profiles(source, target), "--backend", backend, "--output", str(target)])
    if code:
        raise BuildError((said.getvalue().strip().splitlines() or ["trt-sam build failed"])[-1])


def _profiles(source: list[str], target: Path) -> list[str]:
    """`--recipe` of a file with our profiles and the precision of the graph that is given."""
    recipe = target.with_suffix(".toml")
    precision = "fp16" if any("fp16" in each for each in source) else "fp32"
    profiles = "".join(f"[[profiles]]\nnum_prompts = {prompts}\nnum_points = [1, 2, 4]\n" for prompts in _PROFILES)
    recipe.write_text(f'[graph]\nprecision = "{precision}"\ntarget = "gpu"\n{profiles}')
    return ["--recipe", str(recipe)]


def _engine(name: str, folder: Path) -> SideSpec:
    return SideSpec(name, f"{_SIDES}:open_engine", {"folder": str(folder), "device": 0})


if __name__ == "__main__":
    sys.exit(main())
