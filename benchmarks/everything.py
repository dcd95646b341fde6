"""Everything in a photograph: our generator beside MobileSAM's own, in processes of their own, by turns.

python benchmarks/everything.py --set SET [--photo rocket.jpg] [--points-per-side 16] [--rounds 1] [--output FILE.json]

The set is of `trt-sam export --checkpoint mobile_sam --encoder`: ours is ONNX Runtime alone, without torch. Processor time says
what the work costs, also on a machine that others use; wall time says how long it took there. Peak memory is of the whole
process, image encoder included. Beside FILE.json there is FILE.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIDES = ("ours", "mobile_sam")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", required=True)
    parser.add_argument("--photo", default="rocket.jpg", help="of scikit-image")
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.side:
        print(json.dumps(measured(args)))
        return
    rounds: list[dict[str, Any]] = []
    for number in range(args.rounds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=ROOT)
            rounds.append({"side": side, **json.loads(done.stdout.splitlines()[-1])})
            print(rounds[-1], file=sys.stderr)
    ours, theirs = ([r for r in rounds if r["side"] == side] for side in SIDES)
    ratios = {
        name: statistics.median(r[name] for r in theirs) / statistics.median(r[name] for r in ours)
        for name in ("cpu_seconds", "wall_seconds", "decoder_wall_seconds", "peak_mb")
    }
    from trt_sam.machine.load import clocks, describe_machine

    asked = {name: getattr(args, name) for name in ("photo", "points_per_side", "threads", "rounds")}
    machine = {**describe_machine(), "load_after": clocks()["load_average"]}
    report = {"arguments": asked, "mobile_sam_over_ours": ratios, "rounds": rounds, "machine": machine}
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n")
        Path(args.output).with_suffix(".md").write_text(page(report))


def page(report: dict[str, Any]) -> str:
    """The report to read."""
    asked, machine, ratios = report["arguments"], report["machine"], report["mobile_sam_over_ours"]
    units = {
        "cpu_seconds": "processor s",
        "wall_seconds": "wall s",
        "decoder_wall_seconds": "decoder, wall s",
        "peak_mb": "peak MB",
    }
    lines = [
        f"# Everything in {asked['photo']}: ours beside MobileSAM's own generator",
        "",
        f"{asked['points_per_side']}^2 clicks, {asked['threads']} threads, the sides by turns, each in a process of its own: "
        "ours in ONNX Runtime alone, MobileSAM's in PyTorch. The machine was shared, so read the ratios, and of these the one "
        "of processor time first.",
        "",
        "| round | side | masks | " + " | ".join(units.values()) + " | load |",
        "|---|---|---|" + "---|" * (len(units) + 1),
    ]
    for number, r in enumerate(report["rounds"]):
        cells = " | ".join(f"{r[name]:.1f}" for name in units)
        lines.append(f"| {number // 2 + 1} | {r['side']} | {r['masks']} | {cells} | {r['load']:.1f} |")
    told = ", ".join(f"{text} {ratios[name]:.2f}" for name, text in units.items())
    lines += ["", f"MobileSAM over ours, of medians: {told}.", ""]
    lines += [
        "PyTorch's threads spin while they wait for each other: on a busy machine its wall time, and in part its processor"
    ]
    lines += ["time, are larger for it, and the ratios flatter us. The decoder apart is known by wall time alone.", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items() if name != "versions"]
    lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    return "\n".join(lines) + "\n"


def measured(args: argparse.Namespace) -> dict[str, Any]:
    import importlib.util

    from trt_sam.imaging.photos import read_image

    found = importlib.util.find_spec("skimage")
    assert found is not None
    assert found.origin is not None
    image = read_image(Path(found.origin).parent / "data" / args.photo)
    spent: list[float] = []
    generate = (ours if args.side == "ours" else mobile_sam)(args, spent)
    load, wall, cpu = os.getloadavg()[0], time.perf_counter(), time.process_time()
    records = generate(image)
    return {
        "masks": len(records),
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "decoder_wall_seconds": sum(spent),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "load": load,
    }


def ours(args: argparse.Namespace, spent: list[float]) -> Callable[[Any], list[Any]]:
    from trt_sam import AutomaticMaskGenerator, OnnxRunner

    runner = OnnxRunner(args.set, threads=args.threads)
    runner.run = timed(runner.run, spent)  # type: ignore[method-assign]
    return AutomaticMaskGenerator(runner, args.points_per_side, output_mode="coco_rle").generate


def mobile_sam(args: argparse.Namespace, spent: list[float]) -> Callable[[Any], list[Any]]:
    import torch

    from tests.fixtures.real import mobile_sam_generator

    torch.set_num_threads(args.threads)
    generator = mobile_sam_generator(points_per_side=args.points_per_side, output_mode="coco_rle")
    model = generator.predictor.model
    for part in (model.prompt_encoder, model.mask_decoder):
        part.forward = timed(part.forward, spent)
    return generator.generate


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def call(*args: Any, **asked: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **asked)
        finally:
            spent.append(time.perf_counter() - started)

    return call


if __name__ == "__main__":
    main()
