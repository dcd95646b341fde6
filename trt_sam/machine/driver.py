"""NVIDIA's driver and the GPUs that it has, asked of libcuda itself: no context is made, so no memory of a GPU is taken."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from trt_sam.errors import InputError

__all__ = [
    "RTX_GPUS",
    "Driver",
    "Gpu",
    "current_gpu",
    "examine_driver",
    "gpu_compute_capability",
    "gpu_model",
    "pci_bus_id",
    "rtx_runs_on",
]

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR, _ATTRIBUTE_MULTIPROCESSORS = 75, 76, 16
"""cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT."""


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


def gpu_model(device: int = 0) -> str | None:
    """The model of GPU number `device`, "NVIDIA H100 PCIe, 114 multiprocessors"; None without a driver or such a GPU."""
    if (cuda := _libcuda()) is None:
        return None
    handle, count, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    asked = (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(handle), device),
        cuda.cuDeviceGetName(name, len(name), handle),
        cuda.cuDeviceGetAttribute(ctypes.byref(count), _ATTRIBUTE_MULTIPROCESSORS, handle),
    )
    return None if any(asked) else f"{name.value.decode(errors='replace')}, {count.value} multiprocessors"


@contextlib.contextmanager
def current_gpu(device: int) -> Iterator[None]:
    """Make GPU number `device` the one that libraries on this thread use (TensorRT builds on that), by its primary context.

    Nothing happens without a driver, for number 0: who needs a GPU then says so.

    Raises:
        InputError: there is no such GPU.
    """
    cuda, handle, context = _libcuda(), ctypes.c_int(), ctypes.c_void_p()
    missing = cuda is None or cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(handle), device)
    if missing and device == 0:
        yield
        return
    if cuda is None or missing or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle):
        raise InputError(f"there is no usable GPU number {device}; trt-sam doctor lists what the driver has")
    try:
        pushed = cuda.cuCtxPushCurrent_v2(context) == 0
        try:
            yield
        finally:
            if pushed:
                cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(handle)


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
