"""Our decoder beside its peers on this machine: the same stand-in weights, the same prompts, in turn in one run.

Meta's ONNX graph (as its export script writes it, with the prompts batched as well, and at its best), `transformers`' SAM
eager and compiled, and ours (`--target cpu`). Logits are checked against each other. Writes JSON, Markdown and a plot. See
benchmarks/README.md. About five minutes on two quiet cores.

Example:
  python benchmarks/peers.py --output benchmarks/results --plot docs/peers.svg
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.script import finish, say  # noqa: E402
from trt_sam._files import write_atomically  # noqa: E402
from trt_sam._lazy import require  # noqa: E402
from trt_sam.bench.benchmark import BenchmarkReport, Plan, SideSpec, run_benchmark  # noqa: E402
from trt_sam.bench.profile import profile_graph  # noqa: E402
from trt_sam.bench.report import markdown, plot_svg  # noqa: E402
from trt_sam.errors import TrtSamError  # noqa: E402
from trt_sam.runtime.set_graphs import graphs_of_set  # noqa: E402

NAMES = {
    "ours": "trt-sam, ONNX Runtime",
    "one-graph": "trt-sam, decoder in one graph",
    "meta": "Meta's graph, prompts batched",
    "meta-one": "Meta's graph, one prompt a call",
    "meta-best": "Meta's graph at its best",
    "eager": "transformers, eager",
    "compiled": "transformers, torch.compile",
}
TOLERANCE = 1e-4
"""Largest difference of logits between any side and ours, relative to the largest |logit|."""

NOTES = (
    "Meta's graph: the arithmetic of its ONNX export without the last step, which enlarges masks to the photo's size (ours has "
    "none either). Its own export fixes one prompt a call; here the same graph is also given a dynamic number of prompts.",
    "Meta's graph at its best: without the branch of mask_input, which Meta's always computes, and with the session options of "
    "OnnxRunner, SkipLayerNormFusion left out included.",
    "transformers gives three masks of the four; its loading is not timed, its own checks and position encoding are.",
    "At 1 prompt, one prompt a call and prompts batched are the same calls of the same graph: how far their ratio is from 1 "
    "says how far to trust the others.",
    "Every ONNX Runtime session has session.intra_op.allow_spinning = 0.",
    "trt-sam is a set, whose decoder is in two graphs: what depends on the image alone is computed once, before the timed "
    "calls. In one graph it is the .onnx file that `trt-sam export` writes without --encoder.",
)


def main(argv: list[str] | None = None) -> int:
    """Measure; 0 when every side agrees with ours, 1 when one does not, 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for peers.json and peers.md")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where the .svg goes (default: DIR/peers.svg)")
    parser.add_argument("--prompts", default="1,16", metavar="LIST", help="prompts per call (default: %(default)s)")
    parser.add_argument("--sides", default=",".join(NAMES), metavar="LIST", help="of %(default)s (default: all)")
    parser.add_argument("--seconds", type=float, default=80.0, metavar="S", help="timed calls in all (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="default: %(default)s")
    parser.add_argument("--warmup", type=float, default=0.5, metavar="S", help="per side and prompts (default: %(default)g)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of every side (default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="also profile our graph, by kind of node")
    args = parser.parse_args(argv)
    return finish("peers", run, args)


def run(args: argparse.Namespace) -> int:
    """What the flags ask for."""
    chosen = args.sides.split(",")
    prompts = args.prompts.split(",")
    if not set(chosen) <= set(NAMES) or len(set(chosen)) != len(chosen):
        raise TrtSamError(f"--sides is {args.sides!r}, must be different ones of {', '.join(NAMES)}")
    if not all(part.isdecimal() for part in prompts):
        raise TrtSamError(f"--prompts is {args.prompts!r}, must be numbers, as 1,16")
    plan = Plan(
        prompts=tuple(map(int, prompts)),
        seconds=args.seconds,
        rounds=args.rounds,
        warmup_s=args.warmup,
        threads=args.threads,
    )
    for package in ("matplotlib", "transformers", "torch", "onnxruntime"):
        require(package, "to compare with peers")
    with tempfile.TemporaryDirectory(prefix="trt-sam-peers-") as folder:
        graphs = write_graphs(Path(folder), chosen)
        report = run_benchmark(
            [spec(name, graphs, args.threads) for name in chosen],
            plan,
            title="SAM mask decoder on a CPU: trt-sam and its peers",
            baseline=NAMES["meta"],
            device=None,
            progress=say,
        )
        report = dataclasses.replace(report, notes=(*report.notes, *NOTES))
        if args.profile and "ours" in chosen:
            halves = graphs_of_set(graphs["ours"])
            profiles = tuple(
                profile_graph(halves["decode_prepared"], n, threads=args.threads, prepare=halves["prepare"])
                for n in plan.prompts
            )
            report = dataclasses.replace(report, profiles=profiles)
    _write(args, report)
    return _verdict(report)


def write_graphs(folder: Path, chosen: list[str]) -> dict[str, Path]:
    """The ONNX graphs that the chosen sides need, by the side's name."""
    from benchmarks.peer_sides import export_meta, export_set
    from trt_sam.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint("standin")
    ours, meta, lean = folder / "ours", folder / "meta.onnx", folder / "meta_lean.onnx"
    writers: dict[Path, Callable[[], object]] = {
        ours: lambda: export_set(checkpoint, ours),
        meta: lambda: export_meta(checkpoint.decoder, meta, mask_branch=True),
        lean: lambda: export_meta(checkpoint.decoder, lean, mask_branch=False),
    }
    needed = {"ours": ours, "one-graph": ours, "meta": meta, "meta-one": meta, "meta-best": lean}
    for path, write in writers.items():
        if any(needed.get(name) == path for name in chosen):
            say(f"writing {path.name}")
            write()
    return needed | {"one-graph": ours / "decoder.onnx"}


def spec(name: str, graphs: dict[str, Path], threads: int) -> SideSpec:
    """How a worker opens the side `name`."""
    if name in ("ours", "one-graph"):
        settings = {"path": str(graphs[name]), "device": "cpu", "threads": threads}
        return SideSpec(NAMES[name], "trt_sam.bench.sides:open_graph", settings)
    if name in ("eager", "compiled"):
        settings = {"threads": threads, "compiled": name == "compiled"}
        return SideSpec(NAMES[name], "benchmarks.peer_sides:open_transformers", settings, path=(str(ROOT),))
    best = name == "meta-best"
    settings = {"path": str(graphs[name]), "threads": threads, "one_at_a_time": name == "meta-one", "our_optimizers": best}
    return SideSpec(NAMES[name], "benchmarks.peer_sides:open_meta", settings, path=(str(ROOT),))


def _verdict(report: BenchmarkReport) -> int:
    """1 where a side's logits are not those of the first one, whose job it is to be ours."""
    code = 0
    for side in report.sides:
        if side.not_measured:
            print(f"{side.name}: not measured here: {side.not_measured}")
        for result in side.results:
            if result.not_measured:
                print(f"{side.name}, {result.prompts} prompts: not measured here: {result.not_measured}")
            elif result.logits_error is not None and not result.logits_error <= TOLERANCE:
                print(
                    f"{side.name}, {result.prompts} prompts: logits differ by {result.logits_error:.1e}, allowed {TOLERANCE:g}"
                )
                code = 1
    return code


def _write(args: argparse.Namespace, report: BenchmarkReport) -> None:
    # All of it is made before any of it is written.
    data, text, plot = json.dumps(report.to_dict(), indent=2) + "\n", markdown(report), plot_svg(report)
    write_atomically(args.output / "peers.json", data)
    write_atomically(args.output / "peers.md", text)
    write_atomically(args.plot or args.output / "peers.svg", plot)
    for r in report.ratios:
        print(f"{r.side}, {r.prompts} prompts: {r.ratio:.2f} times {r.baseline} (quartiles {r.low:.2f} to {r.high:.2f})")


if __name__ == "__main__":
    sys.exit(main())
