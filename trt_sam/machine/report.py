"""What this machine has: GPU and driver, optional packages, and what they allow. Looks without initialising anything of CUDA's
runtime, and never fails: what is broken is described.

Each package is imported in a process of its own, so that one that raises, exits or crashes is a line of the report.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from trt_sam._child import python_running
from trt_sam._lazy import install_command
from trt_sam._version import __version__
from trt_sam.machine.driver import Driver, examine_driver, rtx_runs_on

__all__ = ["Ability", "MachineReport", "Package", "examine"]

_TIMEOUT_S = 120
_MARK = "trt-sam-doctor:"

_PACKAGES = {
    "torch": ("torch", "{'cuda': m.version.cuda or 'none'}"),
    "onnx": ("onnx", "{}"),
    "onnxscript": ("onnxscript", "{}"),
    "onnxruntime": ("onnxruntime", "{'providers': m.get_available_providers()}"),
    "huggingface_hub": ("huggingface-hub", "{}"),
    "safetensors": ("safetensors", "{}"),
    "PIL": ("pillow", "{}"),
    "pooch": ("pooch", "{}"),
    "pypi_simple": ("pypi-simple", "{}"),
    "polygraphy": ("polygraphy", "{}"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "{}"),
    "tensorrt": ("tensorrt", "{}"),
    "pycuda.driver": (
        "pycuda",
        "{'version': '.'.join(map(str, __import__('pycuda').VERSION)), 'for CUDA': '.'.join(map(str, m.get_version()[:2]))}",
    ),
    "cuda.bindings.driver": ("cuda-bindings", "{'version': __import__('cuda.bindings').bindings.__version__}"),
}
"""Module to import: the distribution that brings it, and what else to ask, an expression over the module `m`."""


@dataclass(frozen=True)
class Package:
    """One optional package."""

    module: str
    status: str
    """"ok", "missing", "broken", or "no driver" where it is installed and lacks libcuda alone."""
    version: str
    error: str
    """Why it does not import, in one line."""
    pip: str
    """The command that mends it; empty where it is well or pip cannot help."""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ability:
    """Something that this machine can or cannot do."""

    name: str
    able: bool
    needs: tuple[str, ...]
    """What is in the way, empty where it is able."""
    pip: str
    """What installs the missing packages; empty where pip cannot help."""


@dataclass(frozen=True)
class MachineReport:
    """Everything that `doctor` prints."""

    trt_sam: str
    python: str
    platform: str
    cpus: int
    driver: Driver
    packages: tuple[Package, ...]
    abilities: tuple[Ability, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data."""
        return asdict(self)


def examine() -> MachineReport:
    """Look at this machine; takes as long as the slowest import."""
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2)) as pool:
        packages = tuple(pool.map(_examine_package, _PACKAGES))
    driver = examine_driver()
    return MachineReport(
        trt_sam=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        driver=driver,
        packages=packages,
        abilities=abilities(driver, packages),
    )


def _examine_package(module: str) -> Package:
    distribution, ask = _PACKAGES[module]
    again = f"pip install --force-reinstall {distribution}"
    top = module.partition(".")[0]
    script = (
        "import importlib, importlib.util, json, sys\n"
        f"if importlib.util.find_spec({top!r}) is None: sys.exit({_MISSING})\n"
        # A namespace package such as `cuda` exists without what we want of it.
        "try:\n"
        f"    m = importlib.import_module({module!r})\n"
        "except ModuleNotFoundError as error:\n"
        f"    if error.name and {module!r}.startswith(error.name): sys.exit({_MISSING})\n"
        "    raise\n"
        f"found = {{'version': str(getattr(m, '__version__', '')), **{ask}}}\n"
        f"print({_MARK!r} + json.dumps(found))\n"
    )
    try:
        done = subprocess.run(python_running(script), capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        return Package(
            module, "broken", "", f"the import took over {_TIMEOUT_S} s or could not be started ({type(error).__name__})", again
        )
    if done.returncode == _MISSING:
        return Package(module, "missing", "", "", install_command([top]))
    lines = done.stdout.decode(errors="replace").splitlines()
    answer = next((line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)), None)
    if done.returncode != 0 or answer is None:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        reason = (said[-1].strip() if said else f"the import ended the process, {how}")[:300]
        if "libcuda.so.1" in reason and "cannot open" in reason:
            return Package(module, "no driver", "", reason, "")
        if "undefined symbol: cu" in reason:
            # Its headers were newer than the driver: reinstalling it the same way would not help.
            return Package(module, "broken", "", f"{reason}; it was built for a newer driver", install_command([top]))
        return Package(module, "broken", "", reason, again)
    details = json.loads(answer)
    return Package(module, "ok", details.pop("version"), "", "", details)


_MISSING = 97


def abilities(driver: Driver, packages: tuple[Package, ...]) -> tuple[Ability, ...]:
    """What the driver and the packages allow together."""
    by_name = {package.module: package for package in packages}
    gpu = bool(driver.gpus)
    no_gpu = () if gpu else (driver.error or "no GPU",)

    def able(name: str, modules: tuple[str, ...], *, other: tuple[str, ...] = ()) -> Ability:
        lacking = [by_name[module] for module in modules if by_name[module].status != "ok"]
        missing = [package.module.partition(".")[0] for package in lacking if package.status == "missing"]
        commands = [install_command(missing)] if missing else []
        commands += [package.pip for package in lacking if package.status == "broken"]
        pip = " && ".join(dict.fromkeys(commands))
        needs = tuple(f"{package.module} is {package.status}" for package in lacking if package.status != "no driver") + other
        return Ability(name, not needs, needs, pip)

    flavours = [module for module in ("tensorrt_rtx", "tensorrt") if by_name[module].status == "ok"]
    usable = [
        flavour for flavour in flavours if flavour == "tensorrt" or any(rtx_runs_on(g.compute_capability) for g in driver.gpus)
    ]
    unfit = ("TensorRT for RTX does not run on this GPU",) if gpu and flavours and not usable else ()
    runtime = (
        usable[0]
        if usable
        else "tensorrt"
        if gpu and not any(rtx_runs_on(g.compute_capability) for g in driver.gpus)
        else "tensorrt_rtx"
    )
    torch_export = ("torch", "onnx", "onnxscript", "onnxruntime")
    return (
        able("download checkpoints by name", ("pooch", "pypi_simple")),
        able("export a checkpoint to ONNX", torch_export),
        able("embed photos", ("torch", "safetensors", "PIL")),
        able("run a graph on the CPU", ("onnxruntime",)),
        able("compare", ("onnxruntime", "onnx", "torch")),
        able("judge with Polygraphy", ("polygraphy", "onnxruntime", "onnx")),
        able("build engines ahead of time (TensorRT for RTX, no GPU needed)", ("tensorrt_rtx", "onnx")),
        able("build engines with TensorRT 10 or 11", ("tensorrt", "onnx"), other=no_gpu),
        able("run engines", ("pycuda.driver", runtime), other=no_gpu + unfit),
        able("capture CUDA graphs", ("pycuda.driver", "cuda.bindings.driver", runtime), other=no_gpu + unfit),
    )
