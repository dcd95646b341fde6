"""`make test-gpu`: tests/gpu with every TensorRT that takes this machine's GPU, each in a run of its own.

TensorRT-RTX where it builds for the GPU, then TensorRT 10 and TensorRT 11. The last two have one module name, so each is put
into a folder of its own beside the virtual environment's packages. Fails where a run fails.

Usage: python scripts/gpu_tests.py [pytest arguments]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trt_sam.engine.flavour import available_flavours
from trt_sam.machine.driver import examine_driver, gpu_compute_capability

_TENSORRTS = ("10.16", "11.4")


@dataclass(frozen=True)
class Run:
    """One run of the tests: with which TensorRT, and what pip is to install for it."""

    title: str
    backend: str
    requirement: str = ""
    folder: str = ""


def runs(capability: str, rtx_capabilities: Sequence[str], driver_cuda: str) -> list[Run]:
    """What to run on a GPU of this compute capability, under a driver for CUDA up to `driver_cuda` ("12.4")."""
    found = []
    if capability in rtx_capabilities:
        found.append(Run("TensorRT-RTX", "rtx"))
    # The packages bring a CUDA of their own, which the driver must know.
    cuda = 13 if int(driver_cuda.partition(".")[0] or 0) >= 13 else 12
    for version in _TENSORRTS:
        found.append(Run(f"TensorRT {version}", "tensorrt", f"tensorrt-cu{cuda}=={version}.*", f"tensorrt-{version}-cu{cuda}"))
    return found


def main(arguments: Sequence[str]) -> int:
    """Exit code of the first run that failed, else 0."""
    capability = gpu_compute_capability()
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", *arguments]
    if capability is None:
        print("test-gpu: no GPU that the driver answers for; the tests say so and are skipped", flush=True)
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    rtx = next((flavour.compute_capabilities for flavour in available_flavours() if flavour.backend == "rtx"), ())
    worst = 0
    for run in runs(capability, rtx, examine_driver().cuda):
        print(f"test-gpu: {run.title} on compute capability {capability}", flush=True)
        env = {**os.environ, "TRT_SAM_GPU_BACKEND": run.backend}
        if run.requirement:
            folder = Path(sys.prefix, run.folder)
            if not folder.exists():
                pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), run.requirement]
                subprocess.run(pip, check=True)
            env["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [env.get("PYTHONPATH")])])
        code = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
        worst = worst or code
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
