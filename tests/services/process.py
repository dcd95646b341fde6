"""A real `trt-sam serve` of MobileSAM, in a process of its own."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_SECONDS = 400
"""The first start exports the checkpoint, which takes a minute of two cores that are free."""


@dataclass
class Service:
    """A `trt-sam serve` that runs."""

    process: subprocess.Popen[str]
    url: str
    errors: list[str] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    """Of its log, one for each request."""

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.loads(answer.read())

    def add(self, picture: bytes) -> str:
        request = urllib.request.Request(self.url + "/images", data=picture, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.loads(answer.read())["id"])

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def python(name: str = "") -> str:
    """The Python of the package's environment, or of "triton" or "ray"."""
    variable = f"TRT_SAM_{name.upper()}_PYTHON" if name else "TRT_SAM_PYTHON"
    return os.environ.get(variable, str(ROOT / (f".venv-{name}" if name else ".venv") / "bin/python"))


def environment() -> dict[str, str]:
    """Of processes that import the package from here."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(
    *words: str, by: str = "", code: int = 0, given: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `trt-sam` with `words` (or, where the first ends in .py, that script) in an environment; it must end with `code`."""
    module = [] if words[0].endswith(".py") else ["-m", "trt_sam"]
    found = environment() if env is None else env
    done = subprocess.run([python(by), *module, *words], capture_output=True, text=True, env=found, input=given)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done


def served_set() -> str:
    """The folder of the set that is served: `TRT_SAM_SERVED`, else MobileSAM's in the cache, which is exported once."""
    return os.environ.get("TRT_SAM_SERVED") or run(str(ROOT / "tests/services/exported.py")).stdout.strip()


def start(*flags: str) -> Service:
    served = os.environ.get("TRT_SAM_SERVED", "mobile_sam")  # a set that is there already, to be quick
    process = subprocess.Popen(
        [python(), "-m", "trt_sam", "serve", served, "--port", "0", "--device", "cpu", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    service, found = Service(process, ""), queue.Queue[str]()

    def read_errors() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            service.errors.append(line)
            if match := re.search(r"(http://[\d.]+:\d+)/", line):
                found.put(match[1])
        found.put("")

    def read_lines() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            service.lines.append(json.loads(line))

    for reader in (read_errors, read_lines):
        threading.Thread(target=reader, daemon=True).start()
    service.url = found.get(timeout=START_SECONDS)
    assert service.url, "".join(service.errors)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(service.url + "/v2/health/ready", timeout=5)
            return service
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise AssertionError("the service did not become ready\n" + "".join(service.errors))
