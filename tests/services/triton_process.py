"""A real Triton, without a container and without a GPU, on a repository of `trt-sam triton`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.services.process import ROOT, python, run

START_SECONDS = 120


@dataclass
class Triton:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    log: Path

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def start_triton(served: str, folder: Path, *, images: int) -> Triton:
    """Write a repository of the set `served` into `folder` and start the server on it."""
    repository = folder / "model_repository"
    run("triton", served, "--output", str(repository), "--images", str(images))
    ports = [free_port() for _ in range(3)]
    flags = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    log = folder / "triton.log"
    server = [sys.executable, str(ROOT / "scripts/triton_server.py"), str(repository), "--python", python("triton"), *flags]
    with log.open("wb") as file:
        process = subprocess.Popen(server, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
    triton = Triton(process, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", log)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://{triton.http}/v2/health/ready", timeout=5)
            return triton
        except OSError:
            time.sleep(0.2)
    process.terminate()
    process.wait(60)
    raise AssertionError("Triton did not become ready\n" + log.read_text()[-5000:])


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])
