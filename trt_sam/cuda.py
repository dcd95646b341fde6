"""CUDA as the runner needs it: the only file that imports PyCUDA, and cuda-bindings for what PyCUDA lacks (graphs).

The primary context is used, so that torch in the same process shares it. It is retained once per device and process and
released at exit: PyCUDA leaves a dead context current when it releases one earlier.

Ownership: a `Device` owns what is made through it and frees what is left when it is closed. Making and freeing switch to the
device's context by themselves, on any thread; copies, launches and waits do not, and belong inside `with device.active():`.
Page-locked memory alone outlives its device: it goes back when the last numpy view of it is gone.

Every CUDA error is an `InferenceError`, out of memory named as such.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.errors import InferenceError

__all__ = ["Device", "DeviceBuffer", "Event", "Graph", "Stream", "outstanding", "page_locked"]

Bytes = npt.NDArray[np.uint8]

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: not serialized with the legacy default stream, which PyCUDA has no name for."""

_outstanding: Counter[str] = Counter()
_lock = threading.Lock()
_entered = threading.local()
"""`device`: number of the GPU whose context this thread has entered."""


def outstanding() -> dict[str, int]:
    """What has been made and not yet freed in this process: "device_bytes", "host_bytes", "streams", "events", "graphs"."""
    with _lock:
        return {kind: number for kind, number in _outstanding.items() if number}


def _count(kind: str, number: int) -> None:
    with _lock:
        _outstanding[kind] += number


@functools.cache
def _driver() -> Any:
    try:
        driver = require("pycuda.driver", "to run engines on a GPU")
    except ImportError as error:
        raise InferenceError(f"PyCUDA does not load ({error}); is an NVIDIA driver installed? nvidia-smi tells") from error
    try:
        driver.init()
    except driver.Error as error:
        raise InferenceError(f"no GPU can be used: {error}") from error
    return driver


@functools.cache
def _primary_context(index: int) -> Any:
    driver = _driver()
    with _guard("opening the GPU"):
        count = driver.Device.count()
        if index >= count:
            raise InferenceError(f"there is no GPU number {index}; this machine has {count}")
        return driver.Device(index).retain_primary_context()


class _guard:  # noqa: N801 - reads as a statement
    """Turns PyCUDA's errors into ours; a class, because a generator would cost a microsecond in every call."""

    __slots__ = ("doing",)

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, InferenceError):
            return
        driver = _driver()
        if isinstance(error, driver.MemoryError):
            raise InferenceError(
                f"the GPU is out of memory in {self.doing}: {error}; free memory, or use an engine with a smaller profile"
            ) from error
        if isinstance(error, driver.Error):
            raise InferenceError(f"CUDA failed in {self.doing}: {error}") from error


class Device:
    """One GPU, through its primary context.

    Raises:
        MissingDependencyError: PyCUDA is not installed.
        InferenceError: no driver, no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self._driver = _driver()
        self._context = _primary_context(index)
        self._owned: dict[int, _Owned] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the context current on this thread; may be nested, and used by several threads at once."""
        # Pushed once per thread: PyCUDA's own stack is wrong for good when a nested push fails.
        if getattr(_entered, "device", None) == self.index:
            yield
            return
        with _guard("switching to the GPU's context"):
            self._context.push()
        before, _entered.device = getattr(_entered, "device", None), self.index
        try:
            yield
        finally:
            _entered.device = before
            with _guard("switching from the GPU's context"):
                try:
                    self._driver.Context.pop()
                except self._driver.Error:
                    with contextlib.suppress(self._driver.Error):
                        self._driver.Context.pop()  # else the context would stay current on this thread for ever
                    raise

    @property
    def name(self) -> str:
        with _guard("asking for the GPU's name"):
            return str(self._driver.Device(self.index).name())

    @property
    def compute_capability(self) -> str:
        """As "8.9"."""
        with _guard("asking for the GPU's compute capability"):
            major, minor = self._driver.Device(self.index).compute_capability()
        return f"{major}.{minor}"

    def buffer(self, nbytes: int) -> DeviceBuffer:
        """Device memory, uninitialized."""
        return DeviceBuffer(self, nbytes)

    def stream(self) -> Stream:
        """A non-blocking stream."""
        return Stream(self)

    def event(self, *, timing: bool = False) -> Event:
        """An event; with `timing`, one whose distance to another can be asked."""
        return Event(self, timing=timing)

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


class _Owned:
    """Something of a device that is freed once, in its context."""

    kind = ""
    size = 1

    def __init__(self, device: Device, handle: Any) -> None:
        self._device = device
        self._handle: Any = handle
        device._owned[id(self)] = self
        _count(self.kind, self.size)

    def close(self) -> None:
        """Free it. May be called again."""
        if self._handle is None:
            return
        self._device._owned.pop(id(self), None)
        _count(self.kind, -self.size)
        handle, self._handle = self._handle, None
        # An error here is not told: a driver that fails to free has lost the context, and the memory with it.
        with contextlib.suppress(InferenceError), self._device.active():
            self._free(handle)
            del handle  # here, while the context is current: PyCUDA frees when the last reference goes

    def _free(self, handle: Any) -> None:
        return None


class DeviceBuffer(_Owned):
    """`nbytes` of device memory at `address`, aligned to 256 bytes at least."""

    kind = "device_bytes"

    def __init__(self, device: Device, nbytes: int) -> None:
        self.size = nbytes
        with device.active(), _guard(f"allocating {nbytes / 2**20:.1f} MiB"):
            allocation = device._driver.mem_alloc(nbytes)
        self.address = int(allocation)
        super().__init__(device, allocation)

    def _free(self, handle: Any) -> None:
        handle.free()


class _PageLocked:
    """The owner of page-locked memory; numpy views keep it alive, the last one to go frees it on whatever thread it is."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self._device = device
        self._allocation: Any = None
        flags = device._driver.host_alloc_flags.PORTABLE
        with device.active(), _guard(f"allocating {nbytes / 2**20:.1f} MiB of page-locked memory"):
            array = device._driver.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        self._allocation = array.base
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
        self._nbytes = nbytes
        _count("host_bytes", nbytes)

    def __del__(self) -> None:
        if self._allocation is None or sys.is_finalizing():
            return
        _count("host_bytes", -self._nbytes)
        with contextlib.suppress(InferenceError), self._device.active():
            self._allocation.free()


def page_locked(device: Device, nbytes: int) -> Bytes:
    """Page-locked host memory, uninitialized: uint8 [nbytes].

    It can be read and written as long as any view of it lives, also after the device is closed.
    """
    return np.asarray(_PageLocked(device, nbytes))


class Stream(_Owned):
    """A non-blocking stream: work given to it runs in order, later. `handle` is its CUstream as an integer."""

    kind = "streams"

    def __init__(self, device: Device) -> None:
        with device.active(), _guard("making a stream"):
            stream = device._driver.Stream(_NON_BLOCKING)
        self.handle = int(stream.handle)
        super().__init__(device, stream)

    def upload(self, target: int, source: Bytes) -> None:
        """Queue a copy of page-locked bytes to device address `target`; they must not change before it has run."""
        with _guard("copying to the GPU"):
            self._device._driver.memcpy_htod_async(target, source, self._handle)

    def download(self, target: Bytes, source: int) -> None:
        """Queue a copy from device address `source` into page-locked bytes; nothing is there before a wait."""
        with _guard("copying from the GPU"):
            self._device._driver.memcpy_dtoh_async(target, source, self._handle)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy from one device address to another."""
        with _guard("copying on the GPU"):
            self._device._driver.memcpy_dtod_async(target, source, nbytes, self._handle)

    def synchronize(self) -> None:
        """Wait for everything queued; raises what went wrong in it. Other Python threads run meanwhile."""
        with _guard("waiting for the GPU"):
            self._handle.synchronize()

    def wait(self, event: Event) -> None:
        """Queue a wait: what comes after it runs after `event`."""
        with _guard("queueing a wait"):
            self._handle.wait_for_event(event._handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` queues on this stream, without running it.

        Run the same work once for real before: what it allocates on first use must not be allocated while recording. Shapes
        and addresses are fixed in the graph.
        """
        bindings = require("cuda.bindings.driver", "for CUDA graphs")
        mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        stream = bindings.CUstream(self.handle)
        _checked(bindings.cuStreamBeginCapture(stream, mode), "beginning a capture")
        try:
            work()
        except BaseException:
            # The stream is of no use until its capture has ended; what `work` raised is the error to tell.
            _, graph = bindings.cuStreamEndCapture(stream)
            if graph and int(graph):
                bindings.cuGraphDestroy(graph)
            raise
        (graph,) = _checked(bindings.cuStreamEndCapture(stream), "ending a capture")
        try:
            (executable,) = _checked(bindings.cuGraphInstantiate(graph, 0), "instantiating a graph")
        finally:
            bindings.cuGraphDestroy(graph)
        return Graph(self._device, executable)


class Event(_Owned):
    """A mark in a stream that can be waited for."""

    kind = "events"

    def __init__(self, device: Device, *, timing: bool = False) -> None:
        flags = device._driver.event_flags.DEFAULT if timing else device._driver.event_flags.DISABLE_TIMING
        with device.active(), _guard("making an event"):
            event = device._driver.Event(flags)
        super().__init__(device, event)

    def record(self, stream: Stream) -> None:
        with _guard("recording an event"):
            self._handle.record(stream._handle)

    def synchronize(self) -> None:
        """Wait until what was queued before the mark has run."""
        with _guard("waiting for an event"):
            self._handle.synchronize()

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds on the device from `since` to here; both made with `timing`, recorded, and waited for."""
        with _guard("timing"):
            return float(self._handle.time_since(since._handle))

    def done(self) -> bool:
        """Whether what was queued before the mark has run; returns at once."""
        with _guard("asking for an event"):
            return bool(self._handle.query())


class Graph(_Owned):
    """Recorded work that one call queues again, with the same shapes and addresses. Made by `Stream.capture`."""

    kind = "graphs"

    def launch(self, stream: Stream) -> None:
        bindings = require("cuda.bindings.driver", "for CUDA graphs")
        _checked(bindings.cuGraphLaunch(self._handle, bindings.CUstream(stream.handle)), "launching a graph")

    def _free(self, handle: Any) -> None:
        require("cuda.bindings.driver", "for CUDA graphs").cuGraphExecDestroy(handle)


def _checked(answer: tuple[Any, ...], doing: str) -> tuple[Any, ...]:
    code, *values = answer
    if int(code):
        raise InferenceError(f"CUDA failed in {doing}: {code.name}")
    return tuple(values)
