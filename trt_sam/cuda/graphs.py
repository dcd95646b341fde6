"""CUDA graphs, streams of others, and whose memory a pointer is, by cuda-bindings."""

from __future__ import annotations

import contextlib
import gc
from collections import deque
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

from trt_sam.cuda.bindings import bindings, checked, keep
from trt_sam.cuda.device import Device, Owned, capture_lock
from trt_sam.cuda.streams import Stream
from trt_sam.errors import InferenceError

__all__ = ["Graph", "capture", "device_of", "is_captured", "order"]

_ATTEMPTS = 3
"""To record one graph, where others spoil it."""


class Graph(Owned):
    """Recorded work that one call queues again, with the same shapes and addresses. Made by `capture`."""

    kind = "graphs"

    def __init__(self, device: Device, stream: Stream, graph: Any) -> None:
        cuda = bindings()
        self._launch = cuda.cuGraphLaunch
        self._stream = cuda.CUstream(stream.handle)
        made: list[tuple[Any, Any]] = []
        super().__init__(device, made)
        try:
            keep(made, cuda.cuGraphInstantiate, graph, 0)
            (self._executable,) = checked(made[0], "instantiating a graph")
            # Else the first launch would bring it to the GPU, and a call would wait for that.
            checked(cuda.cuGraphUpload(self._executable, self._stream), "bringing a graph to the GPU")
        except BaseException:
            self.close()
            raise

    def launch(self) -> None:
        """Queue the work once more on the stream that it was recorded on."""
        (code,) = self._launch(self._executable, self._stream)
        if code:
            checked((code,), "launching a graph")

    def _free(self, handle: Any) -> None:
        for code, executable in handle:
            if not int(code):
                bindings().cuGraphExecDestroy(executable)


def capture(device: Device, stream: Stream, work: Callable[[], None]) -> Graph:
    """Record what `work` queues on `stream`, without running it.

    Run the same work once for real before: what it allocates on first use must not be allocated while recording. Shapes and
    addresses are fixed in the graph. Other threads may use the GPU meanwhile, but not wait for all of it: CUDA refuses their
    wait, and spoils the recording. `Device.synchronize` waits for its turn; where another library's wait spoils a recording, it
    is tried again.

    Raises:
        InferenceError: `work` did what cannot be recorded, or CUDA failed.
    """
    recorded: list[tuple[Any, Any]] = []
    # Lazy, for `keep`'s reason; CUDA refuses the null of a recording that failed.
    destroyed = map(bindings().cuGraphDestroy, map(itemgetter(1), recorded))
    with capture_lock, _no_collection():
        try:
            for left in reversed(range(_ATTEMPTS)):
                try:
                    template = _record(stream, work, recorded)
                    break
                except _SpoiltError:
                    if left == 0:
                        raise
            graph = Graph(device, stream, template)
        finally:
            deque(destroyed, maxlen=0)
    return graph


def order(first: int, then: int) -> None:
    """Make stream `then` wait for what stream `first` has been given; nobody waits on the host.

    Args:
        first: a stream's handle; 1 is the legacy default stream, 2 that of the calling thread.
        then: another one.

    Raises:
        InferenceError: CUDA failed, a handle of no stream among the reasons.
    """
    cuda = bindings()
    flags = cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING
    (event,) = checked(cuda.cuEventCreate(flags), "making an event")
    try:
        checked(cuda.cuEventRecord(event, cuda.CUstream(first)), "recording an event")
        checked(cuda.cuStreamWaitEvent(cuda.CUstream(then), event, 0), "queueing a wait")
    finally:
        cuda.cuEventDestroy(event)  # CUDA keeps it as long as the wait needs it


def is_captured(stream: int) -> bool | None:
    """Whether a stream (its handle) is being captured; None where there is no such stream (any more)."""
    cuda = bindings()
    code, status = cuda.cuStreamIsCapturing(cuda.CUstream(stream))
    if code == cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_IMPLICIT:
        return True  # the legacy stream, while a stream that it waits for is captured
    if code in (cuda.CUresult.CUDA_ERROR_INVALID_HANDLE, cuda.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED):
        return None
    checked((code,), "asking about a stream")
    return int(status) != int(cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)


def device_of(address: int) -> int | None:
    """The number of the GPU whose memory `address` is; None for host memory, freed memory and nonsense."""
    cuda = bindings()
    ask, kinds = cuda.cuPointerGetAttribute, cuda.CUpointer_attribute
    code, kind = ask(kinds.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address)
    if code == cuda.CUresult.CUDA_ERROR_INVALID_VALUE:
        return None
    checked((code,), "asking about a pointer")
    if int(kind) != int(cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE):
        return None
    (ordinal,) = checked(ask(kinds.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address), "asking about a pointer")
    return int(ordinal)


class _SpoiltError(InferenceError):
    """A call that CUDA forbids during a capture, on this thread or another, has spoilt it."""


def _record(stream: Stream, work: Callable[[], None], recorded: list[tuple[Any, Any]]) -> Any:
    cuda = bindings()
    mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    handle = cuda.CUstream(stream.handle)
    spoilt = cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    before = len(recorded)
    try:
        checked(cuda.cuStreamBeginCapture(handle, mode), "beginning a capture")
        work()
        keep(recorded, cuda.cuStreamEndCapture, handle)
    except BaseException as error:
        # The stream is of no use until its capture has ended, if it has begun; what was raised is the error to tell.
        if len(recorded) == before:
            keep(recorded, cuda.cuStreamEndCapture, handle)
        if isinstance(error, InferenceError) and recorded[-1][0] == spoilt:
            raise _SpoiltError(str(error)) from error
        raise
    code, graph = recorded[-1]
    if code == spoilt:
        raise _SpoiltError(f"CUDA failed in ending a capture: {code.name}; no thread may wait for the whole GPU meanwhile")
    checked((code, graph), "ending a capture")
    return graph


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
