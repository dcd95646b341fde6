"""What PyCUDA lacks, from cuda-bindings on the same stream handles: graphs, foreign streams, and whose memory a pointer is."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

from trt_sam._lazy import require
from trt_sam.cuda import Device, Owned, capture_lock
from trt_sam.cuda_streams import Stream
from trt_sam.errors import InferenceError

__all__ = ["Graph", "capture", "device_of", "is_captured", "order"]

_ATTEMPTS = 3
"""To record one graph, where others spoil it."""


class Graph(Owned):
    """Recorded work that one call queues again, with the same shapes and addresses. Made by `capture`."""

    kind = "graphs"

    def __init__(self, device: Device, stream: Stream, executable: Any) -> None:
        bindings = _bindings()
        self._launch = bindings.cuGraphLaunch
        self._stream = bindings.CUstream(stream.handle)
        super().__init__(device, executable)

    def launch(self) -> None:
        """Queue the work once more on the stream that it was recorded on."""
        (code,) = self._launch(self._handle, self._stream)
        if code:
            _checked((code,), "launching a graph")

    def _free(self, handle: Any) -> None:
        _bindings().cuGraphExecDestroy(handle)


def capture(device: Device, stream: Stream, work: Callable[[], None]) -> Graph:
    """Record what `work` queues on `stream`, without running it.

    Run the same work once for real before: what it allocates on first use must not be allocated while recording. Shapes and
    addresses are fixed in the graph. Other threads may use the GPU meanwhile, but not wait for all of it: CUDA refuses their
    wait, and spoils the recording. `Device.synchronize` waits for its turn; where another library's wait spoils a recording, it
    is tried again.

    Raises:
        InferenceError: `work` did what cannot be recorded, or CUDA failed.
    """
    bindings = _bindings()
    with capture_lock, _no_collection():
        graph = None
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(_SpoiltError):
                graph = _record(stream, work)
                break
        if graph is None:
            graph = _record(stream, work)
        try:
            (executable,) = _checked(bindings.cuGraphInstantiate(graph, 0), "instantiating a graph")
        finally:
            bindings.cuGraphDestroy(graph)
    return Graph(device, stream, executable)


def order(first: int, then: int) -> None:
    """Make stream `then` wait for what stream `first` has been given; nobody waits on the host.

    Args:
        first: a stream's handle; 1 is the legacy default stream, 2 that of the calling thread.
        then: another one.

    Raises:
        InferenceError: CUDA failed, a handle of no stream among the reasons.
    """
    bindings = _bindings()
    flags = bindings.CUevent_flags.CU_EVENT_DISABLE_TIMING
    (event,) = _checked(bindings.cuEventCreate(flags), "making an event")
    try:
        _checked(bindings.cuEventRecord(event, bindings.CUstream(first)), "recording an event")
        _checked(bindings.cuStreamWaitEvent(bindings.CUstream(then), event, 0), "queueing a wait")
    finally:
        bindings.cuEventDestroy(event)  # CUDA keeps it as long as the wait needs it


def is_captured(stream: int) -> bool | None:
    """Whether a stream (its handle) is being captured; None where there is no such stream (any more)."""
    bindings = _bindings()
    code, status = bindings.cuStreamIsCapturing(bindings.CUstream(stream))
    if code in (bindings.CUresult.CUDA_ERROR_INVALID_HANDLE, bindings.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED):
        return None
    _checked((code,), "asking about a stream")
    return int(status) != int(bindings.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)


def device_of(address: int) -> int | None:
    """The number of the GPU whose memory `address` is; None for host memory, freed memory and nonsense."""
    bindings = _bindings()
    ask, kinds = bindings.cuPointerGetAttribute, bindings.CUpointer_attribute
    code, kind = ask(kinds.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address)
    if code == bindings.CUresult.CUDA_ERROR_INVALID_VALUE:
        return None
    _checked((code,), "asking about a pointer")
    if int(kind) != int(bindings.CUmemorytype.CU_MEMORYTYPE_DEVICE):
        return None
    (ordinal,) = _checked(ask(kinds.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address), "asking about a pointer")
    return int(ordinal)


class _SpoiltError(InferenceError):
    """A call that CUDA forbids during a capture, on this thread or another, has spoilt it."""


def _record(stream: Stream, work: Callable[[], None]) -> Any:
    bindings = _bindings()
    mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    handle = bindings.CUstream(stream.handle)
    _checked(bindings.cuStreamBeginCapture(handle, mode), "beginning a capture")
    try:
        work()
    except BaseException as error:
        # The stream is of no use until its capture has ended; what `work` raised is the error to tell.
        code, graph = bindings.cuStreamEndCapture(handle)
        if graph and int(graph):
            bindings.cuGraphDestroy(graph)
        if isinstance(error, InferenceError) and code == bindings.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED:
            raise _SpoiltError(str(error)) from error
        raise
    code, graph = bindings.cuStreamEndCapture(handle)
    if code == bindings.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED:
        raise _SpoiltError(f"CUDA failed in ending a capture: {code.name}; no thread may wait for the whole GPU meanwhile")
    return _checked((code, graph), "ending a capture")[0]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """What is collected could free memory of the GPU on this thread, which spoils its capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@functools.cache
def _bindings() -> Any:
    return require("cuda.bindings.driver", "for CUDA graphs")


def _checked(answer: tuple[Any, ...], doing: str) -> tuple[Any, ...]:
    code, *values = answer
    if int(code):
        raise InferenceError(f"CUDA failed in {doing}: {code.name}")
    return tuple(values)
