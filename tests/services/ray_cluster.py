"""A real cluster of Ray on this machine: a head without room for work, and workers that can be killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.services.process import environment, python
from tests.services.triton_process import free_port

START_SECONDS = 240


@dataclass
class Cluster:
    """A head and its workers, each a `ray start --block` with all that it started."""

    address: str
    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self, *flags: str) -> subprocess.Popen[bytes]:
        """Start a node, and wait until the cluster has it."""
        path = self.folder / f"node-{len(self.nodes)}.log"
        words = [python("ray"), "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *flags]
        with path.open("wb") as log:
            node = subprocess.Popen(words, stdout=log, stderr=log, env=self.environment(), start_new_session=True)
        self.nodes.append(node)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and node.poll() is None:
            if "Ray runtime started" in path.read_text():
                return node
            time.sleep(0.1)
        raise AssertionError(f"{path} did not start\n" + path.read_text())

    def have_workers(self, count: int) -> None:
        """Start workers of one core until there are so many."""
        while sum(node.poll() is None for node in self.nodes[1:]) < count:
            self.add(f"--address={self.address}", "--num-cpus=1", "--object-store-memory", str(100 << 20))

    def environment(self) -> dict[str, str]:
        """Of whoever belongs to the cluster, or talks to it."""
        return {**environment(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """End a node and its workers at once, as a machine does that loses its power."""
        for process in reversed([node.pid, *descendants(node.pid)]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        node.wait(30)

    def stop(self) -> None:
        for node in reversed(self.nodes):
            if node.poll() is None:
                self.kill(node)


def start_cluster(folder: Path) -> Cluster:
    """A head; `have_workers` gives it some."""
    port = free_port()
    cluster = Cluster(f"127.0.0.1:{port}", folder)
    try:
        memory = ("--object-store-memory", str(200 << 20))
        # Sockets have short names, and pytest's folders long ones.
        temporary = tempfile.mkdtemp(prefix="ray-")
        fixed = ("--node-ip-address", "127.0.0.1", "--dashboard-agent-listen-port", "0")
        cluster.add(
            "--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={temporary}", "--include-dashboard=false", *memory, *fixed
        )
    except BaseException:
        cluster.stop()
        raise
    return cluster


def descendants(pid: int) -> list[int]:
    """All processes below one, whoever is their group."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def command_line(pid: int) -> bytes:
    """What a process calls itself; empty where it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
