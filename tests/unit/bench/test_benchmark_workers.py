"""No worker process of a benchmark outlives it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
HEAD = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom tests.fixtures.benchmark_runs import *\n"


def test_ctrl_c_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    script = f"{HEAD}run(fake('a'), fake('slow', 'SlowSide'))\n"
    env = os.environ | {"TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    # The slow side is in its first call once its folder and the other's first logits are there.
    while not list(tmp_path.glob("trt-sam-bench-*/0/3.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = children(parent.pid)
    assert len(workers) == 2
    parent.send_signal(signal.SIGINT)
    _, error = parent.communicate(timeout=60)
    assert "KeyboardInterrupt" in error
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.iterdir())


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    script = f"{HEAD}run(fake('a'), plan=Plan(prompts=(1,), seconds=600, rounds=600))\n"
    parent = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("trt-sam-bench-*/0/1.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = children(parent.pid)
    parent.kill()
    parent.wait()
    while [pid for pid in workers if running(pid)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
