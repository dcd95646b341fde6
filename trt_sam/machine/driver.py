"""NVIDIA's driver and the GPUs that it has, asked of libcuda itself: no context is made, so no memory of a GPU is taken."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

__all__ = ["RTX_GPUS", "Driver", "Gpu", "examine_driver", "gpu_compute_capability", "pci_bus_id", "rtx_runs_on"]

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR = 75, 76
"""cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


RTX_GPUS = "8.0, 8.6, 8.9, 12.0 and later"
"""Compute capabilities that engines of TensorRT for RTX run on, by NVIDIA's page on ahead-of-time engines."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver names it."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver."""

    cuda: str
    """The newest CUDA that it runs, "13.0"; empty where there is none."""
    gpus: tuple[Gpu, ...]
    error: str = ""
    """Why there is no usable GPU; empty where there is one."""


def examine_driver() -> Driver:
    """Ask libcuda itself; makes no context, so it takes no GPU memory."""
    if (cuda := _libcuda()) is None:
        return Driver("", (), f"no NVIDIA driver ({_LIBRARY} was not found)")
    version, count = ctypes.c_int(), ctypes.c_int()
    try:
        cuda.cuDriverGetVersion(ctypes.byref(version))
        name = f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else ""
        if code := cuda.cuInit(0):
            return Driver(name, (), f"the driver finds no usable GPU (cuInit gave {_error_name(cuda, code)})")
        if code := cuda.cuDeviceGetCount(ctypes.byref(count)):
            return Driver(name, (), f"the driver does not count its GPUs ({_error_name(cuda, code)})")
        gpus = tuple(_examine_gpu(cuda, index) for index in range(count.value))
    except (AttributeError, OSError, ValueError) as error:  # a libcuda that lacks a symbol
        return Driver("", (), f"the driver cannot be asked ({error})")
    return Driver(name, gpus, "" if gpus else "the driver has no GPU")


def gpu_compute_capability(device: int = 0) -> str | None:
    """The compute capability of GPU number `device` ("8.9"), asked of the driver; None without a driver or such a GPU."""
    if (cuda := _libcuda()) is None:
        return None
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    asked = (
        cuda.cuInit(0),  # the others answer "not initialized" where this one fails
        cuda.cuDeviceGet(ctypes.byref(handle), device),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _ATTRIBUTE_MAJOR, handle),
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _ATTRIBUTE_MINOR, handle),
    )
    if any(asked):
        return None
    return f"{major.value}.{minor.value}"


def rtx_runs_on(compute_capability: str) -> bool:
    """Whether engines of TensorRT for RTX run on a GPU (`RTX_GPUS`): not on Hopper, nor on Blackwell of data centres."""
    major, minor = (int(part) for part in compute_capability.split("."))
    return (major, minor) in ((8, 0), (8, 6), (8, 9)) or major >= 12


def pci_bus_id(device: int) -> str | None:
    """What nvidia-smi calls GPU number `device`, "0000:65:00.0"; None without a driver or such a GPU.

    CUDA counts the GPUs that CUDA_VISIBLE_DEVICES leaves, the fastest first; nvidia-smi counts all, by their place on the bus.
    """
    if (cuda := _libcuda()) is None:
        return None
    handle, text = ctypes.c_int(), ctypes.create_string_buffer(32)
    asked = (
        cuda.cuInit(0),  # makes no context, so that it takes no memory of the GPU
        cuda.cuDeviceGet(ctypes.byref(handle), device),
        cuda.cuDeviceGetPCIBusId(text, len(text), handle),
    )
    return None if any(asked) else text.value.decode()


def _libcuda() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        return None


def _examine_gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    codes = (
        cuda.cuDeviceGet(ctypes.byref(handle), index),
        cuda.cuDeviceGetName(name, len(name), handle),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _ATTRIBUTE_MAJOR, handle),
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _ATTRIBUTE_MINOR, handle),
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle),
    )
    if failed := next((code for code in codes if code), 0):
        raise ValueError(f"GPU {index}: {_error_name(cuda, failed)}")
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)


def _error_name(cuda: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    if hasattr(cuda, "cuGetErrorName") and cuda.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value:
        return text.value.decode(errors="replace")
    return f"CUDA error {code}"
