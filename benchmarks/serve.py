"""Clicks per second of `trt-sam serve`: an open loop, at rising rates, beside the bare runner in the same run.

    python benchmarks/serve.py SET --rates 1,2,4,8 --seconds 20 --output benchmarks/results/serve.json
    python benchmarks/serve.py SET --beside --output benchmarks/results/servers.json    (Triton and Ray Serve: servers.py)

Clicks come at times drawn beforehand (a Poisson process with a fixed seed), whether earlier ones were answered or not, and each
is timed from when it was due: a service that stalls cannot make its clients ask later (coordinated omission). Answers of 429
are counted apart. Client and service share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np

from trt_sam.imaging.photos import read_image
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.predictor import Predictor

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "samples" / "astronaut.jpg"
SIZE = 512
BARE_CLICKS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", help="a folder of trt-sam export --encoder")
    parser.add_argument("--rates", default="1,2,4,8,16", help="clicks per second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each rate")
    parser.add_argument("--images", type=int, default=4, help="pictures that are clicked on in turn")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    parser.add_argument("--beside", action="store_true", help="the bare runner, trt-sam serve, Triton and Ray Serve in one run")
    parser.add_argument("--rounds", type=int, default=6, help="with --beside")
    parser.add_argument("--clicks", type=int, default=20, help="with --beside: of a side and a round")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.beside:
        beside(args)
        return
    bare = bare_milliseconds(args.set, args.threads)
    print(f"bare runner, one click at a time: p50 {np.median(bare):.1f} ms, p99 {np.percentile(bare, 99):.1f} ms")
    process, url = started(args.set, args.threads)
    try:
        rows = asyncio.run(measured(url, [float(rate) for rate in args.rates.split(",")], args.seconds, args.images))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    over = rows[0]["p50_ms"] - float(np.median(bare))
    print(f"overhead over the bare runner at {rows[0]['rate']:g} clicks per second: {over:.1f} ms (p50)")
    if args.output:
        report = {
            "set": Path(args.set).name,
            "threads": args.threads,
            "cpus": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg(),
            "bare_p50_ms": float(np.median(bare)),
            "bare_p99_ms": float(np.percentile(bare, 99)),
            "overhead_p50_ms": over,
            "rows": rows,
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n")


def beside(args: argparse.Namespace) -> None:
    """All servers whose environments `make test-services` has made."""
    from servers import markdown, measured_beside

    found = {name: ROOT / f".venv-{name}" / "bin" / "python" for name in ("triton", "ray")}
    pythons = {name: str(python) for name, python in found.items() if python.exists()}
    report = measured_beside(args.set, rounds=args.rounds, clicks=args.clicks, pythons=pythons)
    page = markdown(report)
    print(page)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n")
        args.output.with_suffix(".md").write_text(page)


def bare_milliseconds(folder: str, threads: int) -> list[float]:
    """A click by `Predictor` on the runner, masks at the picture's size included, each timed alone."""
    with OnnxRunner(folder, threads=threads) as runner:
        predictor = Predictor(runner)
        predictor.set_image(read_image(PHOTO))
        times = []
        for number in range(BARE_CLICKS + 5):
            x, y = place(random.Random(number))
            began = time.perf_counter()
            predictor.predict(np.array([[x, y]]), np.array([1]))
            times.append((time.perf_counter() - began) * 1e3)
        return times[5:]


def started(folder: str, threads: int) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "trt_sam", "serve", folder, "--port", "0", "--threads", str(threads), "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT)
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        if match := re.search(r"http://[\d.]+:\d+", line):
            url = match[0]
        if line.rstrip().endswith("ready"):
            return process, url
    raise SystemExit("the service did not start")


async def measured(url: str, rates: list[float], seconds: float, images: int) -> list[dict[str, Any]]:
    limits = httpx.Limits(max_connections=500, max_keepalive_connections=500)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        ids = [(await client.post("/images", content=PHOTO.read_bytes())).json()["id"] for _ in range(images)]
        rows = []
        for rate in rates:
            row = await at_rate(client, ids, rate, seconds)
            rows.append(row)
            print(
                f"{rate:6g} clicks/s asked: {row['answered_per_second']:6.1f} answered, {row['busy']:4d} busy, "
                f"{row['failed']:3d} failed; p50 {row['p50_ms']:8.1f} ms, p99 {row['p99_ms']:8.1f} ms",
                flush=True,
            )
        return rows


async def at_rate(client: httpx.AsyncClient, ids: list[str], rate: float, seconds: float) -> dict[str, Any]:
    chance = random.Random(rate)
    due, at = [], 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        due.append(at)
    began = time.perf_counter()
    found: list[tuple[int, float]] = []

    async def click(at: float, image: str) -> None:
        try:
            asked = {"points": [list(place(chance))], "labels": [1]}
            status = (await client.post(f"/images/{image}/masks", json=asked)).status_code
        except httpx.HTTPError:
            status = 0
        found.append((status, time.perf_counter() - began - at))

    tasks = []
    for number, each in enumerate(due):
        await asyncio.sleep(max(0.0, began + each - time.perf_counter()))
        tasks.append(asyncio.create_task(click(each, ids[number % len(ids)])))
    await asyncio.gather(*tasks)
    took = time.perf_counter() - began
    times = [seconds * 1e3 for status, seconds in found if status == 200] or [float("nan")]
    counts = {status: sum(each == status for each, _ in found) for status in (200, 429)}
    return {
        "rate": rate,
        "sent": len(found),
        "answered": counts[200],
        "answered_per_second": counts[200] / took,
        "busy": counts[429],
        "failed": len(found) - counts[200] - counts[429],
        "p50_ms": float(np.median(times)),
        "p90_ms": float(np.percentile(times, 90)),
        "p99_ms": float(np.percentile(times, 99)),
    }


def place(chance: random.Random) -> tuple[float, float]:
    return round(chance.uniform(0, SIZE), 1), round(chance.uniform(0, SIZE), 1)


if __name__ == "__main__":
    main()
