"""Time the decoder: PyTorch eager, torch.compile, ONNX Runtime and an engine side by side, each in a process of its own.

Latency percentiles and throughput per number of prompts, host to host (all masks; on a GPU also the best one alone) and
between CUDA events, the first call apart, ratios of medians with their spread, and what each side's time includes. What cannot
run here is listed with its reason. Writes report.json, report.md and latency.svg.

Example:
  trt-sam bench --checkpoint standin --prompts 1,16 --output benchmarks/results/mine
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._files import existing_file, write_atomically
from trt_sam._lazy import require, require_all
from trt_sam.bench.benchmark import BenchmarkReport, Plan, SideSpec, run_benchmark
from trt_sam.commands._options import add_checkpoint_argument, add_json_argument, gpu_number, write_json
from trt_sam.errors import InputError
from trt_sam.graph.advice import BUILD_SET
from trt_sam.machine.driver import gpu_compute_capability

if TYPE_CHECKING:
    from trt_sam.engine.manifest import Manifest
    from trt_sam.recipe import GraphOptions

HELP = "latency and throughput, side by side"

_log = logging.getLogger(__name__)

SIDES = ("torch", "torch-compile", "onnxruntime", "engine")
_SIDES_MODULE = "trt_sam.bench.sides"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bench`."""
    add_checkpoint_argument(parser)
    parser.add_argument("--engine", metavar="DIR", type=Path, help="an engine set; its graph serves ONNX Runtime")
    parser.add_argument("--onnx", metavar="FILE", type=Path, help="the graph for ONNX Runtime")
    parser.add_argument("--prompts", metavar="LIST", help="prompts per call (default: 1,4,16; with a GPU 1,4,16,64,256)")
    parser.add_argument("--sides", metavar="LIST", default=",".join(SIDES), help="of %(default)s (default: all)")
    parser.add_argument("--seconds", metavar="S", type=float, default=60.0, help="timed calls in all (default: %(default)g)")
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=5, help="in which the sides take turns (default: %(default)s)"
    )
    parser.add_argument("--warmup", metavar="S", type=float, default=1.0, help="per side and prompts (default: %(default)g)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads of each side (default: the cores it may use)")
    parser.add_argument("--device", metavar="cpu|cuda:N", help="default: the first GPU, else the CPU")
    parser.add_argument("--precision", choices=("fp32", "fp16"), help="of PyTorch and its graph (default: fp32, on a GPU fp16)")
    parser.add_argument("--profile", action="store_true", help="also say where ONNX Runtime's time goes, by kind of node")
    parser.add_argument("--no-plot", action="store_true", help="write no latency.svg (needs no matplotlib)")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder for the report's files")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and write the report; 0 when any side could be measured."""
    sides = _parse_sides(args.sides)
    device = _device(args.device)
    usual = "1,4,16" if device == "cpu" else "1,4,16,64,256"
    plan = Plan(
        prompts=_parse_prompts(args.prompts if args.prompts is not None else usual),
        seconds=args.seconds,
        rounds=args.rounds,
        warmup_s=args.warmup,
        threads=args.threads if args.threads is not None else len(os.sched_getaffinity(0)),
    )
    _check_output(args.output)
    # Asked for now: minutes later would be late.
    if not args.no_plot:
        require("matplotlib", "to draw the plot (or give --no-plot)")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trt-sam-bench-graph-")))
        inputs = _open_inputs(args, sides, device, folder)
        specs = [_spec(name, inputs, device, plan) for name in sides]
        number = gpu_number(device) if device != "cpu" else None
        report = run_benchmark(specs, plan, title="trt-sam bench", device=number, progress=_log.info)
        if args.profile:
            report = _with_profile(report, inputs, plan)
    _write(args, report)
    return 0


@dataclasses.dataclass
class _Inputs:
    checkpoint: str | None
    graph: Path | None
    engine: Path | None
    precision: str
    profile: dict[str, Any] | None = None


def _parse_sides(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in SIDES:
            raise InputError(f"--sides has {name!r}, must be of {', '.join(SIDES)}")
    if len(set(names)) != len(names):
        raise InputError(f"--sides {text} names a side twice")
    return names


def _parse_prompts(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 4096 for part in parts) or len(set(parts)) != len(parts):
        raise InputError(f"--prompts is {text!r}, must be different numbers from 1 to 4096, as 1,4,16")
    return tuple(int(part) for part in parts)


def _device(asked: str | None) -> str:
    if asked is None:
        return "cuda:0" if gpu_compute_capability(0) is not None else "cpu"
    if asked == "cpu":
        return asked
    if gpu_compute_capability(gpu_number(asked)) is None:
        raise InputError(f"--device {asked}: this machine has no such GPU, or no driver; trt-sam doctor says more")
    return asked


def _check_output(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; name a folder")


def _open_inputs(args: argparse.Namespace, sides: list[str], device: str, folder: Path) -> _Inputs:
    """Check what was given, and export the graph where ONNX Runtime is to be timed and none was."""
    precision = args.precision or ("fp32" if device == "cpu" else "fp16")
    if precision == "fp16" and device == "cpu":
        raise InputError("--precision fp16 needs a GPU: CPUs would compute it in FP32; leave it out")
    checkpoint = args.checkpoint
    if checkpoint is None and args.engine is None and args.onnx is None:
        checkpoint = "standin"
    found = _Inputs(checkpoint, None, args.engine, precision)
    manifest = _manifest(args.engine)
    if args.onnx is not None:
        found.graph = existing_file(args.onnx, "graph")
    elif manifest is not None and checkpoint is None:
        found.graph = manifest.folder / manifest.graph("decode").onnx.name
    if checkpoint is not None and {"torch", "torch-compile", "onnxruntime"} & set(sides):
        _use_checkpoint(found, sides, device, folder)
    return found


def _manifest(folder: Path | None) -> Manifest | None:
    if folder is None:
        return None
    from trt_sam.engine.manifest import open_manifest

    manifest = open_manifest(folder)
    manifest.graph("decode")
    return manifest


def _use_checkpoint(found: _Inputs, sides: list[str], device: str, folder: Path) -> None:
    require("torch", "to time a checkpoint")
    from trt_sam.model.checkpoint import load_checkpoint

    assert found.checkpoint is not None
    _log.info("loading %s", found.checkpoint)
    checkpoint = load_checkpoint(found.checkpoint)
    if "onnxruntime" not in sides or found.graph is not None:
        return
    require_all(("onnx", "onnxscript", "onnxruntime"), "to time ONNX Runtime (or leave onnxruntime out of --sides)")
    from trt_sam.graph.export import export_decoder

    _log.info("exporting its graph for ONNX Runtime")
    found.graph = folder / "decoder.onnx"
    export_decoder(
        checkpoint.decoder, found.graph, _graph_options(found.precision, device), checkpoint_sha256=checkpoint.sha256
    )


def _graph_options(precision: str, device: str) -> GraphOptions:
    from trt_sam.recipe import GraphOptions

    return GraphOptions(precision=precision, target="cpu" if device == "cpu" else "gpu")


def _spec(name: str, inputs: _Inputs, device: str, plan: Plan) -> SideSpec:
    if name in ("torch", "torch-compile"):
        if inputs.checkpoint is None:
            return SideSpec(name, "", not_here="no checkpoint was given; give --checkpoint")
        settings = {
            "checkpoint": inputs.checkpoint,
            "device": device,
            "precision": inputs.precision,
            "threads": plan.threads,
            "compiled": name == "torch-compile",
        }
        return SideSpec(name, f"{_SIDES_MODULE}:open_torch", settings)
    if name == "onnxruntime":
        if inputs.graph is None:
            return SideSpec(name, "", not_here="no graph was given; give --onnx, --checkpoint or --engine")
        settings = {"path": str(inputs.graph.resolve()), "device": device, "threads": plan.threads}
        return SideSpec(name, f"{_SIDES_MODULE}:open_graph", settings)
    if inputs.engine is None:
        return SideSpec(name, "", not_here=f"no engine was given; build one with {BUILD_SET} and give --engine SET")
    if device == "cpu":
        return SideSpec(name, "", not_here="engines need an NVIDIA GPU, which this machine lacks or --device cpu forbids")
    settings = {"folder": str(inputs.engine.resolve()), "device": gpu_number(device)}
    return SideSpec(name, f"{_SIDES_MODULE}:open_engine", settings)


def _with_profile(report: BenchmarkReport, inputs: _Inputs, plan: Plan) -> BenchmarkReport:
    if inputs.graph is None:
        return dataclasses.replace(report, notes=(*report.notes, "no profile: there is no graph for ONNX Runtime"))
    from trt_sam.bench.profile import profile_graph

    _log.info("profiling ONNX Runtime")
    profiles = tuple(profile_graph(inputs.graph, prompts, threads=plan.threads) for prompts in plan.prompts)
    return dataclasses.replace(report, profiles=profiles)


def _write(args: argparse.Namespace, report: BenchmarkReport) -> None:
    from trt_sam.bench.report import markdown, plot_svg

    # All of it is made before any of it is written.
    files: dict[str, bytes | str] = {
        "report.json": json.dumps(report.to_dict(), indent=2) + "\n",
        "report.md": markdown(report),
    }
    if not args.no_plot:
        files["latency.svg"] = plot_svg(report)
    for name, data in files.items():
        write_atomically(args.output / name, data)
    if args.json:
        write_json(args.json, report.to_dict())
    if args.json != "-":
        print(markdown(report).partition("\n## Machine")[0].rstrip())
        print(f"\nwrote {', '.join(files)} to {args.output}")
