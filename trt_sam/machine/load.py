"""What a benchmark must say about the machine: processor, clocks, load, GPU and versions.

Nothing here fails; what is not known is left out.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from trt_sam._version import __version__

__all__ = ["clocks", "describe_machine"]

_DISTRIBUTIONS = (
    "numpy",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "transformers",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "pycuda",
    "cuda-bindings",
)
_CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_GPU_STATIC = ("name", "pci.bus_id", "driver_version", "persistence_mode", "clocks.max.sm", "clocks.max.mem", "power.limit")
_GPU_CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_event_reasons.active")


def describe_machine(gpu: str | None = None) -> dict[str, Any]:
    """Processor, system, versions, and the GPU with this PCI bus id."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cpus_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"trt_sam": __version__, **_versions()},
    }
    if seen := _nvidia_smi(_GPU_STATIC, gpu):
        found["gpu"] = seen
    return found


def clocks(gpu: str | None = None) -> dict[str, Any]:
    """What the clocks are now: CPU governor and MHz where the kernel tells, load, and by nvidia-smi those of a GPU.

    `gpu` is its PCI bus id. An idle GPU lowers its clocks: they mean something while it works.
    """
    now: dict[str, Any] = {}
    for key, file in (("cpu_governor", "scaling_governor"), ("cpu_khz", "scaling_cur_freq")):
        with contextlib.suppress(OSError):
            now[key] = (_CPU / file).read_text().strip()
    with contextlib.suppress(OSError):
        now["cpu_mhz"] = [
            float(line.partition(":")[2])
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("cpu MHz")
        ]
    with contextlib.suppress(OSError, AttributeError):
        now["load_average"] = [round(value, 2) for value in os.getloadavg()]
    if seen := _nvidia_smi(_GPU_CLOCKS, gpu):
        now["gpu"] = seen
    return now


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _nvidia_smi(fields: tuple[str, ...], gpu: str | None) -> dict[str, str]:
    program = shutil.which("nvidia-smi")
    if program is None or gpu is None:
        return {}
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader", f"--id={gpu}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(fields, values, strict=True)) if done.returncode == 0 and len(values) == len(fields) else {}
