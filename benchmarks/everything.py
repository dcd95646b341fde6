"""Everything in a photograph: our generator beside MobileSAM's own, in processes of their own, by turns.

python benchmarks/everything.py --graph decoder.onnx [--photo rocket.jpg] [--points-per-side 16] [--rounds 1] --output FILE.json

The graph is `trt-sam export --checkpoint mobile_sam`. Processor time says what the work costs, also on a machine that others
use; wall time says how long it took there. Peak memory is of the whole process, PyTorch and encoder included.
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
    parser.add_argument("--graph", required=True)
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
    report = {"arguments": vars(args), "mobile_sam_over_ours": ratios, "rounds": rounds}
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n")


def measured(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(args.threads)
    from tests.fixtures.real import photo

    image = photo(args.photo)
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
    from tests.real_weights import checkpoint_file
    from trt_sam import AutomaticMaskGenerator, OnnxRunner
    from trt_sam.model.checkpoint import load_checkpoint

    encoder = load_checkpoint(checkpoint_file("mobile_sam")).image_encoder()
    runner = OnnxRunner(args.graph, threads=args.threads)
    runner.run = timed(runner.run, spent)  # type: ignore[method-assign]
    return AutomaticMaskGenerator(runner, args.points_per_side, output_mode="coco_rle", image_encoder=encoder).generate


def mobile_sam(args: argparse.Namespace, spent: list[float]) -> Callable[[Any], list[Any]]:
    from tests.fixtures.real import mobile_sam_generator

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
