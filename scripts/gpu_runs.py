"""With which TensorRT a machine's GPU is tested and timed, and how each is had.

TensorRT-RTX where it builds for the GPU, then TensorRT 10 and TensorRT 11. The last two have one module name, so each is put
into a folder of its own beside the virtual environment's packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trt_sam.engine.flavour import available_flavours
from trt_sam.machine.driver import examine_driver, gpu_compute_capability

__all__ = ["Run", "environment", "runs", "runs_here"]

_TENSORRTS = ("10.16", "11.4")


@dataclass(frozen=True)
class Run:
    """One TensorRT: its name for people and for `TRT_SAM_GPU_BACKEND`, and what pip is to install for it."""

    title: str
    backend: str
    requirement: str = ""
    folder: str = ""


def runs_here() -> list[Run]:
    """What takes this machine's first GPU, the preferred one first; empty where the driver answers for none."""
    capability = gpu_compute_capability()
    if capability is None:
        return []
    rtx = next((flavour.compute_capabilities for flavour in available_flavours() if flavour.backend == "rtx"), ())
    return runs(capability, rtx, examine_driver().cuda)


def runs(capability: str, rtx_capabilities: Sequence[str], driver_cuda: str) -> list[Run]:
    """What takes a GPU of this compute capability, under a driver for CUDA up to `driver_cuda` ("12.4")."""
    found = []
    if capability in rtx_capabilities:
        found.append(Run("TensorRT-RTX", "rtx"))
    # The packages bring a CUDA of their own, which the driver must know.
    cuda = 13 if int(driver_cuda.partition(".")[0] or 0) >= 13 else 12
    for version in _TENSORRTS:
        found.append(Run(f"TensorRT {version}", "tensorrt", f"tensorrt-cu{cuda}=={version}.*", f"tensorrt-{version}-cu{cuda}"))
    return found


def environment(run: Run) -> dict[str, str]:
    """The environment of a process that is to use it; installs it where that has not been done."""
    env = {**os.environ, "TRT_SAM_GPU_BACKEND": run.backend}
    if run.requirement:
        folder = Path(sys.prefix, run.folder)
        whole = folder / ".installed"
        if not whole.exists():
            pip = [sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--target", str(folder), run.requirement]
            subprocess.run(pip, check=True)
            folder.mkdir(exist_ok=True)
            whole.touch()
        env["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [env.get("PYTHONPATH")])])
    return env
