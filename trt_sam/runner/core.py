"""Who holds which slot of a runner, what a failure does to it, and how everything is freed in the right order.

Slots are handed out by a queue, whose `put` may be called anywhere, even where an object is being freed. The runner's lock is
held while work is queued, images change or all is freed; a slot's lock by whoever waits for its call, that of the images by
whoever waits for an upload. The first is never taken inside the others.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable

from trt_sam.cuda.device import Device
from trt_sam.cuda.streams import Stream
from trt_sam.errors import ContractError, InferenceError, InputError
from trt_sam.runner.counters import Counters
from trt_sam.runner.engine import Engine
from trt_sam.runner.images.encoder import Encoder
from trt_sam.runner.images.submitted import SubmittedImage
from trt_sam.runner.images.uploads import Images
from trt_sam.runner.lease import Lease, NoSlotError
from trt_sam.runner.prompts import CallMaker
from trt_sam.runner.slot import Slot

__all__ = ["Core"]

_CLOSED = "the runner is closed; open a new one"
_FORKED = (
    "the runner belongs to the process that this one was forked from; start worker processes by spawn, and open one in each"
)

_all: weakref.WeakSet[Core] = weakref.WeakSet()
_left: list[Core] = []
"""In a forked process, the parent's runners: kept for ever, because what they hold cannot be freed here."""


def _after_fork() -> None:
    _left.extend(_all)
    for core in _left:
        core.leave()


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _close_all() -> None:
    # Later, in whatever order Python drops things, CUDA's context may go before what needs it.
    for core in list(_all):
        with contextlib.suppress(InferenceError):
            core.close()


class Core:
    """What a runner is made of: the slots, the images, and the one lock; `DecoderRunner` and its parts share it.

    Args:
        engines: emptied when it is closed.
        device: closed with it.
    """

    def __init__(self, engines: list[Engine], device: Device) -> None:
        self.closed = False
        """Closed by `close`, or by a failure after which the GPU's context cannot be used."""
        self.device = device
        self.engines = engines
        self.calls = CallMaker([])
        self.lock = threading.Lock()
        self.free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self.slots: list[Slot] = []
        self._images: Images | None = None
        self.encoder: Encoder | None = None
        """Of a set that takes photos."""
        self.submitted_images: weakref.WeakSet[SubmittedImage] = weakref.WeakSet()
        self.counters = Counters()
        self._why_closed = _CLOSED
        _all.add(self)

    def furnish(
        self,
        slots: Iterable[Slot],
        images: Callable[[], Images],
        encoder: Callable[[], Encoder | None],
        owner: Callable[[], object],
    ) -> None:
        """Take the slots, one by one as they are made, then the images and the encoder, and let calls in.

        `owner` gives the runner.
        """
        self.slots.extend(slots)
        self._images = images()
        self.encoder = encoder()
        for slot in self.slots:
            slot.belong_to(owner)
            self.free.put(slot)

    @property
    def graphs_held(self) -> int:
        """CUDA graphs recorded so far, over all slots."""
        return sum(slot.graphs_held for slot in self.slots)

    @property
    def images_held(self) -> int:
        """Images whose embedding is on the GPU now."""
        return len(self._images) if self._images is not None else 0

    def close(self) -> None:
        """Free everything; safe to call again. A wait under way on another thread ends first; other results are lost.

        A runner that is dropped is closed too, with a ResourceWarning; one that is open when Python exits, without.
        """
        with self.lock:
            try:
                if not self.closed:
                    self.save_runtime_caches()
            finally:
                self._close()

    def take(self, lease: Lease, timeout: float | None) -> Slot:
        """A free slot, with nothing queued in it. After an error the lease must give it back."""
        self.check_open()
        try:
            lease.take(timeout)
        except queue.Empty:
            number = len(self.slots)
            raise NoSlotError(
                f"all {number} slots are in use; take the result of a call first, wait longer, or open with more in_flight"
            ) from None
        slot = lease.slot
        if slot is None:  # closed: the next who waits is to know it too
            raise InferenceError(self._why_closed)
        if slot.pending:
            # Its call was dropped without taking the result: what is queued still reads and writes its memory.
            try:
                with slot.lock:
                    self.check_open()
                    with self.device.active():
                        slot.wait()
            except BaseException as error:
                self.give_back(lease, error)
                raise
        return slot

    def give_back(self, lease: Lease, error: BaseException | None) -> None:
        """Put the slot back, after a failure once what is queued has run."""
        if error is not None:
            with self.lock:
                self.failed(lease, error)
        lease.give_back()

    def failed(self, lease: Lease, error: BaseException) -> None:
        """After a failure: wait for what is queued, which uses memory that the next call writes; close where that fails."""
        slot = lease.slot
        self.counters.failed += 1
        if self.closed or slot is None:
            return
        slot.forget()
        if not isinstance(error, ContractError):  # those were found before anything was queued
            self.settle(error, slot.stream)

    def settle(self, error: BaseException, *streams: Stream) -> None:
        """After `error`: wait for streams, and close where that fails; under the lock."""
        try:
            with self.device.active():
                for stream in streams:
                    stream.synchronize()
        except InferenceError:
            self._close()
            raise InferenceError(f"{error}; the runner is closed, open a new one") from error

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        # TensorRT frees device memory here: contexts before their engine, all before CUDA's context is switched away.
        # Once more where the context could not be switched to: what is queued must have run before memory goes.
        for _ in range(2):
            with contextlib.suppress(InferenceError), self.device.active():
                self._release()
                break
        self._release()
        self.device.close()
        self.free.put(None)

    def _release(self) -> None:
        for slot in self.slots:
            slot.close()
        if self._images is not None:
            self._images.close()
        if self.encoder is not None:
            self.encoder.close()
        for submitted in list(self.submitted_images):
            submitted.close()
        self.calls.clear()
        for engine in self.engines:
            engine.close()
        self.engines.clear()

    def check_open(self) -> None:
        """Raise InferenceError where it is closed."""
        if self.closed:
            raise InferenceError(self._why_closed)

    def open_images(self) -> Images:
        """The images; raises InferenceError where it is closed."""
        self.check_open()
        assert self._images is not None
        return self._images

    def leave(self) -> None:
        """In a forked process: refuse all calls, touch nothing. Other threads of the parent may have held the locks."""
        if not self.closed:
            self.closed, self._why_closed = True, _FORKED
            for slot in self.slots:
                slot.abandon()
            for submitted in list(self.submitted_images):
                submitted.abandon()
        self.lock = threading.Lock()
        self.free = queue.SimpleQueue()
        self.free.put(None)

    def save_runtime_caches(self) -> None:
        """Keep what TensorRT-RTX has compiled, under the lock; only the next start is slower where that fails."""
        try:
            with self.device.active():
                for engine in self.engines:
                    engine.save_runtime_cache()
        except (InputError, InferenceError) as error:
            # The masks are right without it; only the next start is slower.
            logging.getLogger(__name__).warning("TensorRT-RTX's runtime cache is not kept: %s", str(error))
