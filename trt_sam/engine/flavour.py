"""The one place that knows the differences of TensorRT 10, TensorRT 11 and TensorRT for RTX.

Nothing else asks for a version number or looks for an attribute: it asks a `Flavour` what it can do. Enum integers are never
written down, because they differ: STRONGLY_TYPED is 1 in TensorRT 10 and 0 in 11 and RTX.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from trt_sam._lazy import install_command, require
from trt_sam.errors import BuildError, InputError, ManifestError, MissingDependencyError
from trt_sam.machine.driver import gpu_compute_capability
from trt_sam.recipe import BACKENDS

__all__ = ["NAMES", "Flavour", "available_flavours", "choose_flavour", "distribution", "load_flavour", "title"]

_MODULES = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
NAMES = tuple(_MODULES.values())
"""Of the flavours, as manifests keep them."""
_PIP = {"rtx": "tensorrt-rtx-cu13", "tensorrt": "tensorrt"}
_TITLES = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}

_DIAGNOSES = {
    "VERSION_MISMATCH": "it was built by another version; build it again with this one",
    "UNSUPPORTED_CC": "it was not built for this GPU; build it again with --compute-capability of this GPU",
    "OLD_CUDA_DRIVER": "the GPU driver is too old; update it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old; update it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory; close what else uses it",
    "MALFORMED_ENGINE": "the file is damaged; build it again",
    "CUDA_ERROR": "CUDA reported an error; look at nvidia-smi",
}


@dataclass(frozen=True)
class Flavour:
    """One installed TensorRT, and what it can do."""

    backend: str
    """"rtx" or "tensorrt", as recipes and `--backend` say it."""
    version: str
    trt: ModuleType
    """The binding module; the caller may use all of it that this class does not name as differing."""

    @property
    def name(self) -> str:
        """As manifests keep it: "tensorrt_rtx" or "tensorrt"."""
        return _MODULES[self.backend]

    @property
    def title(self) -> str:
        """Name and version for people: "TensorRT-RTX 1.7.1.116"."""
        return title(self.name, self.version)

    @property
    def has_weak_typing(self) -> bool:
        """Whether builder flags can choose precisions (TensorRT 10)."""
        return hasattr(self.trt.BuilderFlag, "FP16")

    @property
    def needs_user_allocation(self) -> bool:
        """Whether an engine must be built for memory of the caller's before a stream can be recorded (TensorRT-RTX)."""
        return hasattr(self.trt.BuilderFlag, "REQUIRE_USER_ALLOCATION")

    @property
    def has_implicit_int8(self) -> bool:
        """Whether it calibrates by itself through the IInt8*Calibrator classes (TensorRT 10)."""
        return hasattr(self.trt, "IInt8EntropyCalibrator2") and hasattr(self.trt.BuilderFlag, "INT8")

    @property
    def has_compute_capabilities(self) -> bool:
        """Whether the GPUs to build for can be listed (RTX)."""
        return hasattr(self.trt, "ComputeCapability")

    @property
    def needs_gpu_to_build(self) -> bool:
        """Whether building times kernels on a GPU of this machine (TensorRT 10 and 11)."""
        return not self.has_compute_capabilities

    @property
    def has_timing_cache(self) -> bool:
        """Whether kernel timings are worth keeping. RTX has the calls too, but times nothing and would ask for a GPU."""
        return self.needs_gpu_to_build

    @property
    def has_compatibility_modes(self) -> bool:
        """Whether engines can be built for later versions and other GPUs; RTX ships no lean runtime and lists GPUs instead."""
        return self.needs_gpu_to_build

    @property
    def has_any_model_mode(self) -> bool:
        """Whether engines can be built for every model of the GPU's compute capability."""
        levels = getattr(self.trt, "HardwareCompatibilityLevel", None)
        return self.has_compatibility_modes and hasattr(levels, "SAME_COMPUTE_CAPABILITY")

    @property
    def network_flags(self) -> int:
        """Flags for `create_network` that make a strongly typed network."""
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """What `compute_capability` takes, in rising order: "7.5", "8.0", ...; empty where the list is not ours to give."""
        if not self.has_compute_capabilities:
            return ()
        numbers = [int(n[2:]) for n in self.trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d{2,}", n)]
        return tuple(f"{n // 10}.{n % 10}" for n in sorted(numbers))

    def compute_capability(self, value: str) -> Any:
        """The enum member for "8.6".

        Raises:
            BuildError: this flavour does not build for a chosen compute capability, or not for that one.
        """
        if not self.has_compute_capabilities:
            raise BuildError(
                f"{self.title} builds for the GPU of this machine only; leave --compute-capability out or use --backend rtx"
            )
        if value not in self.compute_capabilities:
            allowed = ", ".join(self.compute_capabilities)
            raise BuildError(
                f"compute capability {value!r} is not one that {self.title} builds for; allowed are {allowed}; "
                "for another GPU use --backend tensorrt on a machine that has it"
            )
        return self.trt.ComputeCapability.__members__["SM" + value.replace(".", "")]

    def check_engine(self, runtime: Any, engine: bytes) -> None:
        """Ask RTX whether it can run `engine` on the current GPU; TensorRT 10 and 11 say so only when they deserialize.

        Raises:
            ManifestError: it cannot; the message says why and what to do.
        """
        if not hasattr(runtime, "get_engine_validity"):
            return
        validity, bits = runtime.get_engine_validity(engine)
        if validity != self.trt.EngineValidity.INVALID:
            return
        members = self.trt.EngineInvalidityDiagnostics.__members__
        reasons = [_DIAGNOSES.get(name, name) for name, flag in members.items() if int(bits) & int(flag)]
        raise ManifestError(
            f"{self.title} cannot run this engine here: {'; '.join(reasons) or 'no usable GPU or driver was found'}"
        )


def title(name: str, version: str) -> str:
    """A flavour that need not be installed, for people: "TensorRT-RTX 1.7.1.116"."""
    return f"{_TITLES[_backend(name)]} {version}"


def distribution(name: str) -> str:
    """What pip calls the flavour."""
    return _PIP[_backend(name)]


def _backend(name: str) -> str:
    return next(backend for backend, module in _MODULES.items() if module == name)


def load_flavour(backend: str) -> Flavour:
    """Import TensorRT for `backend`, "rtx" or "tensorrt".

    Raises:
        InputError: another name.
        MissingDependencyError: it is not installed, or its libraries cannot be loaded.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}, must be one of {', '.join(BACKENDS)}")
    try:
        module = require(_MODULES[backend], "to build and run engines")
    except MissingDependencyError:
        raise MissingDependencyError(
            f"{_TITLES[backend]} is not installed, needed to build and run engines: {install_command([_MODULES[backend]])} "
            f"(or pip install {_PIP[backend]})"
        ) from None
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"{_TITLES[backend]} is installed but does not load ({error}); pip install --force-reinstall {_PIP[backend]}"
        ) from error
    return Flavour(backend, str(module.__version__), module)


def available_flavours() -> tuple[Flavour, ...]:
    """Every TensorRT that is installed and loads, RTX first."""
    found = []
    for backend in BACKENDS:
        try:
            found.append(load_flavour(backend))
        except MissingDependencyError:
            continue
    return tuple(found)


def choose_flavour(backend: str | None) -> Flavour:
    """Load `backend`; for None, TensorRT where it is installed beside a GPU, else TensorRT-RTX.

    Raises:
        MissingDependencyError: what was chosen is not installed.
    """
    if backend is not None:
        return load_flavour(backend)
    if gpu_compute_capability() is not None:
        for flavour in available_flavours():
            if flavour.backend == "tensorrt":
                return flavour
    return load_flavour("rtx")
