"""A click through each of our servers, beside the bare runner: what `python benchmarks/serve.py SET --beside` measures.

All run the same set on one thread, at the same time, and are asked in turn: a slice each, the order rotated from round to
round, so that a slow minute of the machine hits all. A click gives the best mask at the picture's size as RLE. One client waits
for each answer (p50, p99), then four at once (clicks per second). Ratios are taken within a round, from medians.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np

from trt_sam._version import __version__
from trt_sam.imaging.photos import read_image
from trt_sam.imaging.resize import coords_to_frame
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.serve.segmentations import runs_at_size
from trt_sam.serve.triton import write_repository

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "samples" / "astronaut.jpg"
SIZE = (512, 512)
CLIENTS = 4
START_SECONDS = 300

Click = Callable[[float, float], Any]
Environment = Mapping[str, str]


def measured_beside(folder: str, *, rounds: int, clicks: int, pythons: Mapping[str, str]) -> dict[str, Any]:
    """Start everything, ask it in turn, and give a report; `pythons` has those of the environments "triton" and "ray"."""
    with suppress(PermissionError):
        # Linux shares cores out among sessions first: each server is one of its own, so the runner here must be as well.
        os.setsid()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trt-sam-servers-")))
        sides: dict[str, Click] = {}
        if "ray" in pythons:  # first, as it gives up where it is slow to start
            sides["Ray Serve"] = stack.enter_context(ray_serve(folder, pythons["ray"], place))
        if "triton" in pythons:
            sides["Triton"] = stack.enter_context(triton(folder, pythons["triton"], place))
        sides["trt-sam serve"] = stack.enter_context(served(folder))
        sides["bare runner"] = stack.enter_context(bare(folder))
        sides = dict(reversed(sides.items()))
        areas = {name: click(220.0, 400.0) for name, click in sides.items()}
        assert len(set(areas.values())) == 1, f"the masks differ: {areas}"
        one: dict[str, list[list[float]]] = {name: [] for name in sides}
        many: dict[str, list[float]] = {name: [] for name in sides}
        names = list(sides)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                one[name].append(one_at_a_time(sides[name], clicks, number))
                if name != "bare runner":
                    many[name].append(at_once(sides[name], clicks, number))
            print(f"round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
    return report_of(Path(folder).name, one, many, clicks)


def one_at_a_time(click: Click, clicks: int, seed: int) -> list[float]:
    """Milliseconds of each of `clicks`, after one that does not count."""
    chance, times = random.Random(seed), []
    for _ in range(clicks + 1):
        x, y = chance.uniform(0, SIZE[1]), chance.uniform(0, SIZE[0])
        began = time.perf_counter()
        click(x, y)
        times.append((time.perf_counter() - began) * 1e3)
    return times[1:]


def at_once(click: Click, clicks: int, seed: int) -> float:
    """Clicks per second of several clients that each wait for their answer."""
    chance = random.Random(seed)
    places = [(chance.uniform(0, SIZE[1]), chance.uniform(0, SIZE[0])) for _ in range(clicks)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        began = time.perf_counter()
        list(threads.map(lambda place: click(*place), places))
        return clicks / (time.perf_counter() - began)


def report_of(name: str, one: Mapping[str, list[list[float]]], many: Mapping[str, list[float]], clicks: int) -> dict[str, Any]:
    medians = {side: np.median(np.array(times), axis=1) for side, times in one.items()}
    rows = []
    for side, times in one.items():
        ratios = medians[side] / medians["bare runner"]
        rows.append(
            {
                "side": side,
                "p50_ms": round(float(np.median(times)), 1),
                "p99_ms": round(float(np.percentile(np.concatenate([np.array(each) for each in times]), 99)), 1),
                "ratio_p50": round(float(np.median(ratios)), 2),
                "ratio_range": [round(float(ratios.min()), 2), round(float(ratios.max()), 2)],
                "clicks_per_second_of_four": round(float(np.median(many[side])), 1) if many[side] else None,
            }
        )
    return {
        "set": name,
        "trt_sam": __version__,
        "threads": 1,
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": [round(each, 1) for each in os.getloadavg()],
        "rounds": len(next(iter(one.values()))),
        "clicks_per_round": clicks,
        "rows": rows,
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# A click through each server",
        "",
        f"{report['rounds']} rounds of {report['clicks_per_round']} clicks, a thread for each model, on {report['cpus']} cores",
        f"that all servers, the client and others share (load average at the end {report['load_average'][0]}): only ratios",
        "within a round mean something here. Made by `python benchmarks/serve.py SET --beside`.",
        "",
        f"The p99 is of {report['rounds'] * report['clicks_per_round']} calls: under 100 it is nearly the slowest. Linux",
        "shares busy cores out among sessions, and Ray's processes are several: where there is more work",
        "than cores, a ratio below 1 is this.",
        "",
        "| side | p50 | p99 | p50 over the bare runner's (range of rounds) | clicks/s, four clients |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        low, high = row["ratio_range"]
        rate = row["clicks_per_second_of_four"]
        lines.append(
            f"| {row['side']} | {row['p50_ms']} ms | {row['p99_ms']} ms | {row['ratio_p50']} ({low} to {high}) "
            f"| {rate or '-'} |"
        )
    return "\n".join(lines) + "\n"


@contextmanager
def bare(folder: str) -> Iterator[Click]:
    with OnnxRunner(folder, threads=1) as runner:
        runner.set_image(read_image(PHOTO))

        def click(x: float, y: float) -> int:
            decoded = runner.decode(coords_to_frame(np.array([[[x, y]]]), SIZE), np.ones((1, 1)))
            runs = runs_at_size(np.asarray(decoded.masks[0, 0], np.float32), SIZE)
            runs.compressed()
            return runs.area

        yield click


@contextmanager
def served(folder: str) -> Iterator[Click]:
    port = free_port()
    words = ["-m", "trt_sam", "serve", folder, "--port", str(port), "--threads", "1", "--device", "cpu"]
    with process([sys.executable, *words], f"http://127.0.0.1:{port}/v2/health/ready", os.environ):
        yield clicks_over_http(port)


@contextmanager
def ray_serve(folder: str, python: str, place: Path) -> Iterator[Click]:
    port = free_port()
    config = (ROOT / "docs" / "ray_serve.yaml").read_text()
    for old, new in (
        ("EveryNode", "HeadOnly"),
        ("host: 0.0.0.0", "host: 127.0.0.1"),
        ("port: 8000", f"port: {port}"),
        (r"set: \S+", f"set: {Path(folder).absolute()}"),
        (r"pictures: \S+", f"pictures: {place}/pictures"),
        ("min_replicas: 2", "min_replicas: 1"),
        ("max_replicas: 64", "max_replicas: 1"),
    ):
        config = re.sub(old, new, config)
    (place / "serve.yaml").write_text(config)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [python, "-m", "ray.serve.scripts", "run", str(place / "serve.yaml")]
    with process(words, f"http://127.0.0.1:{port}/v2/health/ready", environment):
        yield clicks_over_http(port)


@contextmanager
def triton(folder: str, python: str, place: Path) -> Iterator[Click]:
    write_repository(folder, place / "model_repository")
    for name in ("sam_encoder", "sam_decoder"):
        with (place / "model_repository" / name / "config.pbtxt").open("a") as config:
            config.write('parameters { key: "threads" value: { string_value: "1" } }\n')
    ports = [free_port() for _ in range(3)]
    flags = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    words = [
        sys.executable,
        str(ROOT / "scripts/triton_server.py"),
        str(place / "model_repository"),
        "--python",
        python,
        *flags,
    ]
    with process(words, f"http://127.0.0.1:{ports[0]}/v2/health/ready", os.environ):
        client = httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", timeout=120)
        data = PHOTO.read_bytes()
        image = ask_triton(client, {"point_coords": [[[1.0, 1.0]]]}, picture=data)["image_id"]

        def click(x: float, y: float) -> int:
            answer = ask_triton(client, {"point_coords": [[[x, y]]]}, name=image)
            return area_of(json.loads(answer["rle"]))

        yield click


def ask_triton(client: httpx.Client, prompt: Mapping[str, Any], *, picture: bytes = b"", name: str = "") -> dict[str, str]:
    """A request of KServe v2 in JSON, but for the picture, which is binary; the BYTES outputs by name."""
    inputs: list[dict[str, Any]] = [
        {"name": "point_coords", "shape": [1, 1, 2], "datatype": "FP32", "data": prompt["point_coords"]},
        {"name": "point_labels", "shape": [1, 1], "datatype": "FP32", "data": [1.0]},
    ]
    tail = b""
    if picture:
        tail = len(picture).to_bytes(4, "little") + picture
        parameters = {"binary_data_size": len(tail)}
        inputs.append({"name": "image", "shape": [1], "datatype": "BYTES", "parameters": parameters})
    else:
        inputs.append({"name": "image_id", "shape": [1], "datatype": "BYTES", "data": [name]})
    head = json.dumps({"inputs": inputs, "outputs": [{"name": "rle"}, {"name": "image_id"}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if tail else {}
    answer = client.post("/v2/models/sam/infer", content=head + tail, headers=headers)
    assert answer.status_code == 200, answer.text
    return {each["name"]: each["data"][0] for each in answer.json()["outputs"]}


def clicks_over_http(port: int) -> Click:
    """The addresses that `trt-sam serve` and the deployment of Ray Serve have."""
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
    image = client.post("/images", content=PHOTO.read_bytes()).json()["id"]

    def click(x: float, y: float) -> int:
        asked = {"points": [[x, y]], "labels": [1], "output": "best", "keep": False}
        answer = client.post(f"/images/{image}/masks", json=asked)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["results"][0]["masks"][0]["area"])

    return click


def area_of(rle: Mapping[str, Any]) -> int:
    from trt_sam.formats.runs import Runs

    return Runs.from_coco(rle).area


@contextmanager
def process(words: list[str], ready: str, environment: Environment) -> Iterator[None]:
    """A server in a process of its own, from when `ready` answers with 200."""
    with tempfile.TemporaryFile() as log:
        found = subprocess.Popen(
            words, stdout=log, stderr=log, cwd=ROOT, env={**environment, "OMP_NUM_THREADS": "1"}, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    if httpx.get(ready, timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                if found.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{words[:4]} did not start\n{log.read()[-3000:].decode()}")
                time.sleep(0.3)
            yield
        finally:
            found.send_signal(signal.SIGINT)
            try:
                found.wait(60)
            except subprocess.TimeoutExpired:
                found.kill()


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])
