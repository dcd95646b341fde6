"""`make test-gpu`: tests/gpu with every TensorRT that takes this machine's GPU, each in a run of its own.

Fails where a run fails.

Usage: python scripts/gpu_tests.py [pytest arguments]
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.gpu_runs import environment, runs_here


def main(arguments: Sequence[str]) -> int:
    """Exit code of the first run that failed, else 0."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", *arguments]
    found = runs_here()
    if not found:
        print("test-gpu: no GPU that the driver answers for; the tests say so and are skipped", flush=True)
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    worst = 0
    for run in found:
        print(f"test-gpu: {run.title}", flush=True)
        code = subprocess.run(command, cwd=ROOT, env=environment(run), check=False).returncode
        worst = worst or code
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
