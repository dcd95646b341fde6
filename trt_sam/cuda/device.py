"""CUDA as the runner needs it: the only file that imports PyCUDA. Streams and graphs, by cuda-bindings, have their own.

The primary context is used, so that torch in the same process shares it. It is retained once per device and process and
released at exit: PyCUDA leaves a dead context current when it releases one earlier.

Ownership: a `Device` owns what is made through it and frees what is left when it is closed. Making and freeing switch to the
device's context by themselves, on any thread; copies, launches and waits do not, and belong inside `with device.active():`.
Page-locked memory alone outlives its device: it goes back when the last numpy view of it is gone.

Every CUDA error is an `InferenceError`, out of memory named as such.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.cuda.accounts import count, cuda_is_used, forked
from trt_sam.cuda.bindings import bindings, checked
from trt_sam.errors import InferenceError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Device", "DeviceBuffer", "Owned", "capture_lock", "guard", "raise_ours"]

Bytes = npt.NDArray[np.uint8]

capture_lock = threading.RLock()
"""Held while a stream is captured, and while the whole context is waited for: CUDA forbids the second during the first, and
spoils the capture. Other libraries do not know of it."""
_contexts: list[Any] = []
"""The primary contexts that this process has retained."""
_entered = threading.local()
"""`device`: number of the GPU whose context this thread has entered."""


@functools.cache
def _driver() -> Any:
    try:
        driver = require("pycuda.driver", "to run engines on a GPU")
    except ImportError as error:
        advice = "is an NVIDIA driver installed? nvidia-smi tells"
        if "undefined symbol: cu" in str(error):
            advice = "it was built for a newer driver; in a checkout, bash scripts/install_pycuda.sh builds one that fits"
        raise InferenceError(f"PyCUDA does not load ({error}); {advice}") from error
    try:
        driver.init()
    except driver.Error as error:
        raise InferenceError(f"no GPU can be used: {error}") from error
    cuda_is_used()
    return driver


@functools.cache
def _primary_context(index: int) -> Any:
    driver = _driver()
    with guard("opening the GPU"):
        count = driver.Device.count()
        if index >= count:
            raise InferenceError(f"there is no GPU number {index}; this machine has {count}")
        context = driver.Device(index).retain_primary_context()
    _contexts.append(context)
    return context


@atexit.register
def _release_contexts() -> None:
    # PyCUDA's destructor would ask for what CUDA does with other contexts only, and complain on stderr. After us come those who
    # were imported before: torch and TensorRT, which retain the context themselves.
    if not forked():
        for context in _contexts:
            with contextlib.suppress(_driver().Error):
                context.detach()


class guard:  # noqa: N801 - reads as a statement
    """Turns PyCUDA's errors into ours; a class, because a generator would cost a microsecond in every call."""

    __slots__ = ("doing",)

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, InferenceError):
            raise_ours(error, self.doing)


def raise_ours(error: Exception, doing: str) -> None:
    """Raise our error for a CUDA error, and any other as it is."""
    driver = _driver()
    if isinstance(error, driver.MemoryError):
        raise InferenceError(
            f"the GPU is out of memory in {doing}: {error}; free memory, or use an engine with a smaller profile"
        ) from error
    if isinstance(error, driver.Error):
        raise InferenceError(f"CUDA failed in {doing}: {error}") from error
    raise error


class _Active:
    """The body of `Device.active`; a class for the same reason as `guard`."""

    __slots__ = ("_before", "_device")

    def __init__(self, device: Device) -> None:
        self._device = device

    def __enter__(self) -> None:
        # Pushed once per thread: PyCUDA's own stack is wrong for good when a nested push fails.
        self._before = getattr(_entered, "device", None)
        try:
            self._device._context.push()
        except Exception as error:
            raise_ours(error, "switching to the GPU's context")
        _entered.device = self._device.index

    def __exit__(self, *_: object) -> None:
        _entered.device = self._before
        driver = self._device.driver
        try:
            driver.Context.pop()
        except Exception as error:
            with contextlib.suppress(driver.Error):
                driver.Context.pop()  # else the context would stay current on this thread for ever
            raise_ours(error, "switching from the GPU's context")


class _Nested:
    """The body of `Device.active` where the thread has entered the context already."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


_NESTED = _Nested()


class Device:
    """One GPU, through its primary context.

    Raises:
        MissingDependencyError: PyCUDA is not installed.
        InferenceError: no driver, no such GPU; or this process was forked from one that used CUDA.
    """

    def __init__(self, index: int = 0) -> None:
        if forked():
            raise InferenceError(
                "CUDA was used before this process was forked, and cannot be used in it; start worker processes by spawn"
            )
        self.index = index
        self.driver = _driver()
        """PyCUDA's, for what is made through this device."""
        self._context = _primary_context(index)
        self._owned: dict[int, Owned] = {}

    def active(self) -> _Active | _Nested:
        """Make the context current on this thread, in a `with` of its own; may be nested, and several threads may."""
        return _NESTED if getattr(_entered, "device", None) == self.index else _Active(self)

    def synchronize(self) -> None:
        """Wait for all work of the context, that of other libraries included; for a capture of ours before."""
        with capture_lock, guard("waiting for the GPU"):
            self.driver.Context.synchronize()

    def spin(self) -> None:
        """Have all threads of the process that wait for this GPU spin on their cores, those of other libraries too."""
        cuda = bindings()
        checked(cuda.cuDevicePrimaryCtxSetFlags(self.index, cuda.CUctx_flags.CU_CTX_SCHED_SPIN), "choosing how to wait")

    @property
    def name(self) -> str:
        with guard("asking for the GPU's name"):
            return str(self.driver.Device(self.index).name())

    @property
    def compute_capability(self) -> str:
        """As "8.9"."""
        with guard("asking for the GPU's compute capability"):
            major, minor = self.driver.Device(self.index).compute_capability()
        return f"{major}.{minor}"

    def buffer(self, nbytes: int) -> DeviceBuffer:
        """Device memory, uninitialized."""
        return DeviceBuffer(self, nbytes)

    def close(self) -> None:
        """Free what is left, latest first. May be called again. The primary context stays for the process.

        Wait for the streams before: memory must not go while queued work needs it.
        """
        while self._owned:
            _, item = self._owned.popitem()
            item.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Owned:
    """Something of a device that is freed once, in its context."""

    kind = ""
    size = 1

    def __init__(self, device: Device, handle: Any) -> None:
        self._device = device
        self._handle: Any = handle
        device._owned[id(self)] = self
        count(self.kind, self.size)

    def close(self) -> None:
        """Free it. May be called again."""
        if self._handle is None:
            return
        self._device._owned.pop(id(self), None)
        count(self.kind, -self.size)
        handle, self._handle = self._handle, None
        # An error here is not told: a driver that fails to free has lost the context, and the memory with it. Where the context
        # could not be switched to, once more: of streams, events and graphs nobody else would know.
        freed = False
        for _ in range(2):
            with contextlib.suppress(InferenceError), self._device.active():
                if not freed:
                    self._free(handle)
                    freed = True
                    del handle  # here, while the context is current: PyCUDA frees when the last reference goes
            if freed:
                break

    def _free(self, handle: Any) -> None:
        return None


class DeviceBuffer(Owned):
    """`nbytes` of device memory at `address`, aligned to 256 bytes at least."""

    kind = "device_bytes"

    def __init__(self, device: Device, nbytes: int) -> None:
        self.size = nbytes
        with device.active(), guard(f"allocating {nbytes / 2**20:.1f} MiB"):
            allocation = device.driver.mem_alloc(nbytes)
        self.address = int(allocation)
        super().__init__(device, allocation)

    def _free(self, handle: Any) -> None:
        handle.free()
