"""`RunnerPool`: runners that threads use side by side, for throughput over many images."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

from trt_sam.contract import EMBEDDING_BYTES
from trt_sam.cuda.borrowed import device_index, is_on_device
from trt_sam.cuda.device import Device
from trt_sam.cuda.streams import Stream
from trt_sam.errors import InferenceError, InputError
from trt_sam.runner.call import Decoded, OpenOptions
from trt_sam.runner.decoder_runner import DecoderRunner
from trt_sam.runner.images.uploads import Handover
from trt_sam.runtime.call.decoded import Bits, Masks, Numbers

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["RunnerPool"]

_FORKED = "the pool belongs to the process that this one was forked from; open one here, in a process started by spawn"
_CLOSED = "the pool is closed; open a new one"


class PoolAsked(TypedDict, total=False):
    """What else a call may say; explained at `DecoderRunner.submit`."""

    masks: Masks
    bits: Bits
    image_size: tuple[int, int] | None


class RunnerPool:
    """Runners behind a queue. Each call brings its image; a runner that a failure closed is replaced before the next call.

    Args:
        make: makes runner number i; it is called on a thread that will use it.
        count: how many runners.
        max_waiting: calls that may wait for a runner, each with its embedding (4 MiB); None for any number.
        threads: how many calls are worked on side by side, in turn by runner 0, 1, ...: a runner of n threads should have n
            slots and room for n images. None: one for each runner.

    Raises:
        InputError: `count` is below 1, `threads` below `count`, or `max_waiting` below 0.
    """

    def __init__(
        self,
        make: Callable[[int], DecoderRunner],
        count: int,
        *,
        max_waiting: int | None = 64,
        threads: int | None = None,
    ) -> None:
        if count < 1:
            raise InputError(f"a pool of {count} runners cannot work; give 1 or more")
        threads = count if threads is None else threads
        if threads < count:
            raise InputError(f"{threads} threads leave some of {count} runners without work; give as many or more")
        if max_waiting is not None and max_waiting < 0:
            raise InputError(f"max_waiting is {max_waiting}, must be 0 or more, or None")
        self._most = None if max_waiting is None else threads + max_waiting
        self._room = None if self._most is None else threading.BoundedSemaphore(self._most)
        self._make = make
        self._runners: dict[int, DecoderRunner] = {}
        self._numbers = itertools.cycle(range(count))
        self._making = [threading.Lock() for _ in range(count)]
        self._local = threading.local()
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()
        self._streams: dict[int, tuple[Device, Stream]] = {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="trt-sam-runner")

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        count: int,
        *,
        devices: Iterable[int] = (0,),
        max_waiting: int | None = 64,
        **options: Unpack[OpenOptions],
    ) -> Self:
        """Open the engine set in `folder` once on each of the GPUs `devices`, for `count` calls side by side in all.

        The calls of a GPU share one engine: it is read once, its weights are there once, and each call has a slot with
        execution contexts of its own. Options as `DecoderRunner.open`; a set that cannot be opened is told by the first calls.
        """
        gpus = tuple(devices)[: max(count, 1)]
        share = -(-count // len(gpus))
        options.setdefault("in_flight", share)
        options["image_bytes"] = max(options.get("image_bytes", 64 * 2**20), share * EMBEDDING_BYTES)

        def make(number: int) -> DecoderRunner:
            return DecoderRunner.open(folder, device=gpus[number], **options)

        return cls(make, min(count, len(gpus)), max_waiting=max_waiting, threads=count)

    def submit(
        self,
        embedding: Any,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        timeout: float | None = None,
        **asked: Unpack[PoolAsked],
    ) -> Future[Decoded]:
        """Decode prompts on an image, as `DecoderRunner.decode_many` after `set_image`; the result belongs to the caller.

        The future raises what they raise. The arguments must not change before it is done. Where `max_waiting` calls wait
        already this waits for room, `timeout` seconds at most; 0 raises at once, None waits for ever (so give one in a future's
        callback, which runs on a thread that the room is waited for).

        An embedding on the GPU is taken here, in order with what this thread's current stream (torch's) was given before.

        Raises:
            ContractError: an embedding on the GPU that cannot be taken.
            InferenceError: the pool is closed, or there was no room.
        """
        if self._process != os.getpid():
            raise InferenceError(_FORKED)
        if self._closed:
            raise InferenceError(_CLOSED)
        if self._room is not None and not self._room.acquire(
            timeout=None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        ):
            raise InferenceError(f"{self._most} calls are under way or waiting; wait longer, or open a pool of more runners")
        taken = None
        try:
            if is_on_device(embedding):
                embedding = taken = self._take(embedding)
            future = self._threads.submit(self._work, embedding, (points, labels, boxes, mask_input), asked)
        except BaseException as error:
            self._leave(taken)
            if isinstance(error, RuntimeError) and self._closed:  # since we looked
                raise InferenceError(_CLOSED) from error
            raise
        future.add_done_callback(lambda _: self._leave(taken))
        return future

    def map(self, calls: Iterable[tuple[Any, ...]], **asked: Unpack[PoolAsked]) -> Iterator[Decoded]:
        """Results of calls (embedding, points, labels, boxes, mask_input), in their order.

        Calls are taken and queued as results are taken, as many ahead as may wait.
        """
        futures: deque[Future[Decoded]] = deque()
        for call in calls:
            if len(futures) == self._most:
                yield futures.popleft().result()
            futures.append(self.submit(*call, **asked))
        while futures:
            yield futures.popleft().result()

    def close(self) -> None:
        """Finish what is queued, and free everything. May be called again."""
        self._closed = True
        self._threads.shutdown()
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        for device, stream in self._streams.values():
            # An embedding that was refused leaves a wait for its owner's work behind.
            with contextlib.suppress(InferenceError), device.active():
                stream.synchronize()
            device.close()
        self._streams.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _work(self, embedding: Any, prompts: tuple[Any, ...], asked: PoolAsked) -> Decoded:
        runner = self._runner()
        image = runner.add_image(embedding)
        try:
            return runner.decode_many(*prompts, image=image, **asked)
        finally:
            if not runner.closed:
                runner.drop_image(image)

    def _take(self, embedding: Any) -> Handover:
        index = device_index(embedding)
        with self._lock:
            if index not in self._streams:
                device = Device(index)
                self._streams[index] = device, Stream(device)
        return Handover(embedding, *self._streams[index])

    def _leave(self, taken: Handover | None) -> None:
        if taken is not None:
            taken.close()
        if self._room is not None:
            self._room.release()

    def _runner(self) -> DecoderRunner:
        """The runner of this thread, made at its first call and after a failure that closed it."""
        with self._lock:
            if not hasattr(self._local, "number"):
                self._local.number = next(self._numbers)
        number: int = self._local.number
        with self._making[number]:
            runner = self._runners.get(number)
            if runner is None or runner.closed:
                runner = self._runners[number] = self._make(number)
        return runner
