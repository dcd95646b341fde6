"""Device memory without the host: results for others by DLPack and `__cuda_array_interface__`, their embeddings for us.

The structures are those of DLPack 0.x (`dlpack.h`), which `__dlpack__` without `max_version` gives. No torch, no CuPy needed.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from trt_sam.cuda.device import Device
from trt_sam.cuda.graphs import device_of, order
from trt_sam.cuda.streams import Stream
from trt_sam.errors import ContractError, InferenceError

__all__ = ["Borrowed", "DeviceArray", "borrow", "check_device", "device_index", "is_on_device", "on_host"]

_CUDA, _CUDA_MANAGED = 2, 13
_LEGACY_STREAM = 1
_CODES = {"i": 0, "u": 1, "f": 2}
_NAME, _USED = b"dltensor", b"used_dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Lent(ctypes.Structure):
    """One block, which a consumer's call of the deleter frees."""

    _fields_ = (("managed", _Managed), ("shape", ctypes.c_int64 * 4))


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_allocate = ctypes.pythonapi.PyMem_RawMalloc
_allocate.restype, _allocate.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
# C code, because consumers also call it where a Python error is under way, which a callback of ours would replace.
_free = ctypes.cast(ctypes.pythonapi.PyMem_RawFree, ctypes.c_void_p)
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.restype, _set_name.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)


class Lender(Protocol):
    """Who owns the memory of a `DeviceArray`: a slot of a runner."""

    device: Device
    stream: Stream
    """In which the memory is written."""
    lock: threading.Lock
    """While it is held nobody closes the lender."""
    closed: bool
    owner: Callable[[], object]
    """Gives what must not be dropped while the lender is used."""

    def lent_to(self, reader: int) -> None:
        """A stream, by its handle, reads from now on: the lender waits for it before it writes again."""

    def returned_by(self, reader: int) -> None:
        """That stream has been given all its reads, and is not asked again."""


class DeviceArray:
    """A result on the GPU, C-contiguous: `torch.from_dlpack(array)` takes it without a copy.

    It lies in the runner's memory: valid until the slot's next use, never after the runner is closed. Whoever reads it must
    have queued all reads by then. A DLPack consumer's stream is made to wait for the result, and the slot's next call for what
    that stream was given until then; nobody waits on the host. That stream must live until that call, or until `release`. A
    consumer that names
    none (-1), or takes `__cuda_array_interface__`, must have finished reading before the slot's next call.
    """

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str, slot: Lender) -> None:
        self.address = address
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._slot = slot

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype} {list(self.shape)} at {self.address:#x})"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._check()
        stream = self._slot.stream.handle
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),  # torch takes no other
            "strides": None,
            "version": 3,
            "stream": stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self._slot.device.index

    def release(self, stream: int) -> None:
        """Say that a consumer's stream has been given all its reads of the slot's results: the slot's next call waits for them,
        and the stream may go.

        Args:
            stream: its handle, torch: `torch.cuda.current_stream().cuda_stream`; 0 is the legacy default stream.

        Raises:
            ContractError: the stream is being captured, or has gone already.
            InferenceError: CUDA failed, or the runner is closed.
        """
        slot = self._slot
        owner = slot.owner()
        with slot.lock:
            self._check()
            with slot.device.active():
                slot.returned_by(stream or _LEGACY_STREAM)
        del owner

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A capsule for one consumer, whose `stream` (None: the legacy default stream; -1: no waiting) waits for the result.

        Any consumer of `max_version` takes the unversioned capsule that this gives. One that nobody takes costs its 100 bytes.

        Raises:
            BufferError: a copy or another device is asked for; this is a view of the slot's memory and nothing else.
            InferenceError: the runner is closed.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("the runner lends a view on its own GPU and makes no copy; copy or move the tensor that you get")
        slot = self._slot
        owner = slot.owner()  # else it could be collected, and closed, on this very thread
        with slot.lock:  # nobody closes it meanwhile
            self._check()
            if stream != -1:
                reader = stream or _LEGACY_STREAM
                with slot.device.active():
                    order(slot.stream.handle, reader)
                slot.lent_to(reader)
        del owner
        at = _allocate(ctypes.sizeof(_Lent))
        if not at:
            raise MemoryError
        lent = _Lent.from_address(at)
        lent.shape[: len(self.shape)] = self.shape
        shape = ctypes.cast(at + _Lent.shape.offset, ctypes.POINTER(ctypes.c_int64))
        kind, bits = _CODES[self.dtype.kind], 8 * self.dtype.itemsize
        lent.managed = _Managed(
            _Tensor(self.address, _CUDA, slot.device.index, len(self.shape), kind, bits, 1, shape), None, _free
        )
        return _new(at, _NAME, None)

    def _check(self) -> None:
        if self._slot.closed:
            raise InferenceError("the runner is closed, and its device memory with it")


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
            return int(source.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED)
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

    def __init__(self, managed: _Managed) -> None:
        self._managed = managed

    def __del__(self) -> None:
        if self._managed.deleter:
            _Deleter(self._managed.deleter)(ctypes.addressof(self._managed))


_Taken = tuple[int, str, list[int], list[int] | None, object]


def _from_dlpack(source: Any, name: str, device: Device, stream: Stream) -> _Taken:
    check_device(name, int(source.__dlpack_device__()[1]), device)
    try:
        # The producer makes our stream wait for its work.
        capsule = source.__dlpack__(stream=stream.handle)
        address = _pointer(capsule, _NAME)
    except (BufferError, ValueError, RuntimeError) as error:
        raise ContractError(f"{name} gives no DLPack tensor ({error}); was it freed, or taken already?") from error
    managed = _Managed.from_address(address)
    _set_name(capsule, _USED)
    owner = _Consumed(managed)
    tensor = managed.tensor
    kinds = {code: kind for kind, code in _CODES.items()}
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
        return int(torch.cuda.current_stream(device.index).cuda_stream) or _LEGACY_STREAM
    told = getattr(source, "__cuda_array_interface__", {})
    stream = told.get("stream") if told.get("version", 0) >= 3 else None
    return None if stream is None else int(stream)


def check_device(name: str, found: int, device: Device) -> None:
    """Raise ContractError where GPU number `found` is not `device`."""
    if found != device.index:
        raise ContractError(
            f"{name} is on GPU {found}, the runner on GPU {device.index}; copy it there, torch: .to('cuda:{device.index}')"
        )
