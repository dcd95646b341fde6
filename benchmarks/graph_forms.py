"""Exact forms of the decoder side by side: arithmetic, traffic, kernels, modelled GPU time, ONNX Runtime time.

    python benchmarks/graph_forms.py --output benchmarks/graph_forms.md

No GPU is needed. Weights are random: nothing here depends on their values. `--graphs DIR` keeps the exported graphs, so that a
second run starts from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from graph_forms_report import CAPABILITY, POINTS, PROMPTS, RUNS, Counted, Results, report
from script import say

from trt_sam._files import write_atomically
from trt_sam.engine.builder import build_engine
from trt_sam.engine.flavour import load_flavour
from trt_sam.engine.kernel_cost import GPUS, kernel_costs, model_time
from trt_sam.graph.arithmetic import count_graph
from trt_sam.graph.export import export_decoder
from trt_sam.graph.parity import random_feed
from trt_sam.model import SamDecoder
from trt_sam.model.fused import FormOptions, for_target
from trt_sam.quantize.share import find_products, insert_qdq, precondition
from trt_sam.recipe import EngineRecipe, GraphOptions, ShapeProfile

SWITCHES = ("fold_positions", "deferred_shuffle", "batched_heads", "gathered_points", "shared_image")
META = "plain"
TIMED_AT_64 = ("plain, switches on", "cpu", "gpu")
QUANTIZED = {"int8, tiers A and B": ("A", "B"), "int8, tiers A, B and C": ("A", "B", "C")}


def forms() -> dict[str, FormOptions]:
    """The plain form, the two targets, and each target with one switch the other way."""
    named = {META: FormOptions("plain", *[False] * len(SWITCHES)), "plain, switches on": FormOptions("plain")}
    for target in ("cpu", "gpu"):
        named[target] = for_target(target)
        for switch in SWITCHES:
            named[f"{target}, no {switch}"] = dataclasses.replace(for_target(target), **{switch: False})
    return named


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, metavar="F.md")
    parser.add_argument("--graphs", type=Path, metavar="DIR", help="keep exported graphs here and take them from here")
    parser.add_argument("--no-timing", action="store_true", help="leave ONNX Runtime's times out")
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime (default: 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.graphs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        graphs = export_all(folder)
        results = Results()
        for (name, precision), path in graphs.items():
            for prompts in PROMPTS:
                results.counted[name, precision, prompts] = count(path, prompts)
                say(f"counted {name}, {precision}, {prompts} prompts")
        if not args.no_timing:
            time_all({name: path for (name, precision), path in graphs.items() if precision == "fp32"}, args.threads, results)
        write_atomically(args.output, report(results, args.threads))
    return 0


def export_all(folder: Path) -> dict[tuple[str, str], Path]:
    """Every form at float32 and float16, and the GPU's quantized."""
    torch.manual_seed(0)
    decoder = SamDecoder().eval()
    graphs = {}
    for name, form in forms().items():
        for precision in ("fp32", "fp16"):
            path = folder / f"{name}-{precision}.onnx".replace(", ", "-").replace(" ", "_")
            if not path.exists():
                say(f"exporting {name}, {precision}")
                # export_decoder knows targets only; each form is compared with PyTorch as an export is, at one shape.
                with (
                    mock.patch("trt_sam.graph.export.for_target", lambda *_, form=form, **__: form),
                    mock.patch("trt_sam.graph.parity.PARITY_SHAPES", ((1, POINTS),)),
                ):
                    export_decoder(decoder, path, GraphOptions(precision=precision, target="gpu"))
            graphs[name, precision] = path
    for precision, tiers in QUANTIZED.items():
        path = folder / f"gpu-int8-{''.join(tiers)}.onnx"
        quantize(graphs["gpu", "fp16"], path, tiers)
        graphs["gpu", precision] = path
    return graphs


@dataclass(frozen=True)
class MadeUpStats:
    """Of one activation: right for counting kernels, not for masks."""

    mean: np.ndarray[Any, Any]
    amin: np.ndarray[Any, Any]
    amax: np.ndarray[Any, Any]


def quantize(source: Path, path: Path, tiers: Sequence[str]) -> None:
    """Q/DQ pairs after the recipe's shift and scale, with statistics that are made up."""
    model = onnx.load(source)
    products = find_products(model, tiers)
    channels = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    rng = np.random.default_rng(0)
    stats = {}
    for product in products:
        mean, spread = rng.normal(0, 0.1, channels[product.weight]), rng.uniform(3, 4, channels[product.weight])
        stats[product.activation] = MadeUpStats(mean, mean - spread, mean + spread)
    model, products = precondition(model, products, stats, shift=True, smooth_alpha=0.5)
    onnx.save(insert_qdq(model, products, {product.activation: 4.0 for product in products}, precision="int8"), path)


def count(path: Path, prompts: int) -> Counted:
    arithmetic = count_graph(path, {"num_prompts": prompts, "num_points": POINTS})
    profile = ShapeProfile((prompts,) * 3, (POINTS,) * 3)
    build = build_engine(
        path, EngineRecipe(profiles=(profile,), compute_capabilities=(CAPABILITY,)), flavour=load_flavour("rtx")
    )
    costs = kernel_costs(build.layers, arithmetic.products)
    return Counted(arithmetic, build.kernels[0], {gpu.name: model_time(costs, gpu).seconds * 1e6 for gpu in GPUS})


def time_all(graphs: Mapping[str, Path], threads: int, results: Results) -> None:
    """Each form against the plain one, run in turns in one process, so that the machine's moods meet both."""
    for prompts in PROMPTS:
        feed = random_feed(np.random.default_rng(0), prompts, POINTS, GraphOptions(precision="fp32"))
        for name, path in graphs.items():
            if name == META or (prompts == PROMPTS[-1] and name not in TIMED_AT_64):
                continue
            seconds = run_in_turns([graphs[META], path], feed, threads, RUNS[prompts])
            ratios = [plain / form for plain, form in zip(*seconds, strict=True)]
            median = statistics.median(seconds[0]) / statistics.median(seconds[1])
            results.ratios[name, prompts] = min(ratios), median, max(ratios)
            results.milliseconds[name, prompts] = statistics.median(seconds[1]) * 1e3
            results.milliseconds.setdefault((META, prompts), statistics.median(seconds[0]) * 1e3)
            say(f"timed {name}, {prompts} prompts: {median:.2f} times plain")


def run_in_turns(paths: Sequence[Path], feed: Mapping[str, Any], threads: int, rounds: int) -> list[list[float]]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    # Spinning threads of one session would take the cores from the other.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = [onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"]) for path in paths]
    seconds: list[list[float]] = [[] for _ in paths]
    for number in range(rounds + 1):
        for taken, session in zip(seconds, sessions, strict=True):
            started = time.perf_counter()
            session.run(None, dict(feed))
            if number:  # the first run allocates
                taken.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
