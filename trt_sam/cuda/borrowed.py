"""Others' device memory for us, by DLPack or `__cuda_array_interface__`, without the host. No torch, no CuPy needed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from trt_sam.cuda._capsules import CODES, CUDA, CUDA_MANAGED, LEGACY_STREAM, NAME, USED, Deleter, Managed, pointer_of, set_name
from trt_sam.cuda.device import Device
from trt_sam.cuda.graphs import device_of, order
from trt_sam.cuda.streams import Stream
from trt_sam.errors import ContractError, InferenceError

__all__ = ["Borrowed", "borrow", "check_device", "device_index", "is_on_device", "on_host"]


@dataclass(frozen=True)
class Borrowed:
    """Somebody's device memory: contiguous float32 at `address`, there as long as `owner` is."""

    address: int
    owner: object
    stream: int | None = None
    """Handle of the stream in which its producer works, if that is known: it must wait for whoever reads here."""


def is_on_device(source: object) -> bool:
    """Whether `source` offers memory of a GPU."""
    if isinstance(source, np.ndarray):
        return False
    if hasattr(source, "__dlpack_device__"):
        try:
            return int(source.__dlpack_device__()[0]) in (CUDA, CUDA_MANAGED)
        except (BufferError, RuntimeError, TypeError, ValueError):
            return False  # torch's meta tensors: what takes them for the host's says what is wrong
    return hasattr(source, "__cuda_array_interface__")


def device_index(source: Any) -> int:
    """The GPU that `source`, of which `is_on_device`, is on; 0 where that cannot be told, and `borrow` will."""
    if hasattr(source, "__dlpack_device__"):
        return int(source.__dlpack_device__()[1])
    try:
        return device_of(int(source.__cuda_array_interface__["data"][0])) or 0
    except (InferenceError, KeyError, IndexError, TypeError, ValueError):
        return 0


def on_host(source: Any, name: str) -> Any:
    """A numpy array of what is not on a device, without a copy where there is one already or DLPack gives it.

    Raises:
        ContractError: it is no array, or of a type that numpy lacks.
    """
    if isinstance(source, np.ndarray):
        return source
    try:
        return np.from_dlpack(source) if hasattr(source, "__dlpack__") else np.asarray(source)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ContractError(f"{name}: not to be had as an array of numbers ({error})") from error


def borrow(source: Any, name: str, shape: Sequence[int], device: Device, stream: Stream) -> Borrowed:
    """Take device memory of `source`, in order before what `stream` is given next; call it in the device's context.

    Raises:
        ContractError: another dtype, shape, layout or GPU, or memory that is there no more.
        InferenceError: CUDA failed.
    """
    if hasattr(source, "__dlpack__"):
        address, dtype, found, strides, owner = _from_dlpack(source, name, device, stream)
    else:
        address, dtype, found, strides, owner = _from_interface(source, name, device, stream)
    if dtype != "float32":
        photo = "; a photo is scaled on the host: give it as numpy, torch: .cpu().numpy()" if dtype == "uint8" else ""
        raise ContractError(f"{name} is {dtype} on the GPU, must be float32; convert it there, torch: .float(){photo}")
    if tuple(found) != tuple(shape):
        raise ContractError(f"{name} has shape {list(found)}, must be {list(shape)}")
    packed = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if strides is not None and any(n != 1 and s != p for n, s, p in zip(shape, strides, packed, strict=True)):
        raise ContractError(f"{name} is not contiguous on the GPU; copy it there, torch: .contiguous()")
    where = device_of(address)
    if where is None:
        raise ContractError(f"{name} lies at {address:#x}, where no GPU memory is allocated; was its source freed?")
    check_device(name, where, device)
    return Borrowed(address, owner, _stream_of(source, device))


class _Consumed:
    """A DLPack structure that we took; its deleter is called when the last reference goes."""

    def __init__(self, managed: Managed) -> None:
        self._managed = managed

    def __del__(self) -> None:
        if self._managed.deleter:
            Deleter(self._managed.deleter)(ctypes.addressof(self._managed))


_Taken = tuple[int, str, list[int], list[int] | None, object]


def _from_dlpack(source: Any, name: str, device: Device, stream: Stream) -> _Taken:
    check_device(name, int(source.__dlpack_device__()[1]), device)
    try:
        # The producer makes our stream wait for its work.
        capsule = source.__dlpack__(stream=stream.handle)
        address = pointer_of(capsule, NAME)
    except (BufferError, ValueError, RuntimeError) as error:
        raise ContractError(f"{name} gives no DLPack tensor ({error}); was it freed, or taken already?") from error
    managed = Managed.from_address(address)
    set_name(capsule, USED)
    owner = _Consumed(managed)
    tensor = managed.tensor
    kinds = {code: kind for kind, code in CODES.items()}
    names = {"i": "int", "u": "uint", "f": "float"}
    dtype = names.get(kinds.get(tensor.code, ""), f"DLPack type {tensor.code}, ") + str(tensor.bits)
    strides = list(tensor.strides[: tensor.ndim]) if tensor.strides else None
    return int(tensor.data or 0) + tensor.byte_offset, dtype, list(tensor.shape[: tensor.ndim]), strides, owner


def _from_interface(source: Any, name: str, device: Device, stream: Stream) -> _Taken:
    told = source.__cuda_array_interface__
    try:
        dtype, shape, address = np.dtype(told["typestr"]), [int(n) for n in told["shape"]], int(told["data"][0])
        strides = told.get("strides") and [int(n) // dtype.itemsize for n in told["strides"]]
        if strides and len(strides) != len(shape):
            raise ValueError(f"{len(strides)} strides for {len(shape)} axes")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ContractError(f"{name}: its __cuda_array_interface__ cannot be read ({error!r})") from error
    if told.get("mask") is not None:
        raise ContractError(f"{name} is a masked array; give one without a mask")
    if told.get("version", 0) < 3:
        device.synchronize()  # whose work is to be waited for is not said
    elif told.get("stream") is not None:
        order(int(told["stream"]), stream.handle)
    return address, dtype.name if dtype.isnative else f"{dtype.str} (of another byte order)", shape, strides, source


def _stream_of(source: Any, device: Device) -> int | None:
    """The stream that `source`'s library gives work to now on this thread; None where it does not say."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        return int(torch.cuda.current_stream(device.index).cuda_stream) or LEGACY_STREAM
    told = getattr(source, "__cuda_array_interface__", {})
    stream = told.get("stream") if told.get("version", 0) >= 3 else None
    return None if stream is None else int(stream)


def check_device(name: str, found: int, device: Device) -> None:
    """Raise ContractError where GPU number `found` is not `device`."""
    if found != device.index:
        raise ContractError(
            f"{name} is on GPU {found}, the runner on GPU {device.index}; copy it there, torch: .to('cuda:{device.index}')"
        )
