"""tests/gpu is run here too, on a GPU that is none: a test that has never run is a claim.

What this shows is that the tests ask what they mean to ask, and that the runner takes the real graphs; not that a GPU answers.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.hostcuda import LIBRARY

ROOT = Path(__file__).parents[2]
TOO_LONG = ("hundred_thousand", "eight_threads", "fp32", "judges_what_it_built")
"""For ONNX Runtime on two cores; the last builds in a process of its own, which has no GPU to judge on."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY} is not built (scripts/install_gpu_fixtures.sh does)")
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_the_gpu_tests_pass_over_the_host_memory_driver() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.fixtures.stand_in_gpu", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-m", "gpu", "-rs", "-q", "-k", " and ".join(f"not {name}" for name in TOO_LONG)]
    files = [f"tests/gpu/{name}.py" for name in ("test_engine", "test_runner_gpu", "test_photos_gpu")]
    env = {**os.environ, "TRT_SAM_GPU_BACKEND": "rtx"}
    done = subprocess.run([*command, *files], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    reasons = set(re.findall(r"^SKIPPED .*?: (.*)$", done.stdout, re.MULTILINE))
    assert reasons <= {"this torch has no CUDA", "needs two GPUs that torch can use"}, reasons
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 40, done.stdout[-300:]
