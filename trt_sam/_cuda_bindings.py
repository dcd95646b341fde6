"""What PyCUDA lacks, from cuda-bindings on the same stream handles: graphs, foreign streams, and whose memory a pointer is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from trt_sam._lazy import require
from trt_sam.cuda import Device, Owned, Stream
from trt_sam.errors import InferenceError

__all__ = ["Graph", "capture", "device_of", "order_after"]


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
    addresses are fixed in the graph. Other threads may use the GPU meanwhile.

    Raises:
        InferenceError: `work` did what cannot be recorded, or CUDA failed.
    """
    bindings = _bindings()
    mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    handle = bindings.CUstream(stream.handle)
    _checked(bindings.cuStreamBeginCapture(handle, mode), "beginning a capture")
    try:
        work()
    except BaseException:
        # The stream is of no use until its capture has ended; what `work` raised is the error to tell.
        _, graph = bindings.cuStreamEndCapture(handle)
        if graph and int(graph):
            bindings.cuGraphDestroy(graph)
        raise
    (graph,) = _checked(bindings.cuStreamEndCapture(handle), "ending a capture")
    try:
        (executable,) = _checked(bindings.cuGraphInstantiate(graph, 0), "instantiating a graph")
    finally:
        bindings.cuGraphDestroy(graph)
    return Graph(device, stream, executable)


def order_after(foreign: int, stream: Stream) -> None:
    """Make a foreign stream (its handle; 1 is the legacy, 2 the per-thread default stream) wait for what `stream` was given."""
    bindings = _bindings()
    flags = bindings.CUevent_flags.CU_EVENT_DISABLE_TIMING
    (event,) = _checked(bindings.cuEventCreate(flags), "making an event")
    try:
        _checked(bindings.cuEventRecord(event, bindings.CUstream(stream.handle)), "recording an event")
        _checked(bindings.cuStreamWaitEvent(bindings.CUstream(foreign), event, 0), "queueing a wait")
    finally:
        bindings.cuEventDestroy(event)  # CUDA keeps it as long as the wait needs it


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


@functools.cache
def _bindings() -> Any:
    return require("cuda.bindings.driver", "for CUDA graphs")


def _checked(answer: tuple[Any, ...], doing: str) -> tuple[Any, ...]:
    code, *values = answer
    if int(code):
        raise InferenceError(f"CUDA failed in {doing}: {code.name}")
    return tuple(values)
