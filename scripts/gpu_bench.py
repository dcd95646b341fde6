"""`make bench-gpu`: benchmarks/gpu.py with the first TensorRT that takes this machine's GPU, or the one of TRT_SAM_GPU_BACKEND.

Usage: python scripts/gpu_bench.py [arguments of benchmarks/gpu.py]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.gpu_runs import environment, runs_here


def main(arguments: Sequence[str]) -> int:
    """The benchmark's exit code."""
    asked = os.environ.get("TRT_SAM_GPU_BACKEND")
    found = [run for run in runs_here() if asked in (None, "", run.backend)]
    if found:
        print(f"bench-gpu: {found[0].title}", flush=True)
    env = environment(found[0]) if found else None
    return subprocess.run([sys.executable, "benchmarks/gpu.py", *arguments], cwd=ROOT, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
