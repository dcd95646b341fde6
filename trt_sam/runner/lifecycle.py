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
import sys
import threading
import warnings
import weakref
from types import TracebackType
from typing import Self

from trt_sam.cuda.device import Device
from trt_sam.cuda.streams import Stream
from trt_sam.errors import ContractError, InferenceError, InputError
from trt_sam.runner.engine import Engine
from trt_sam.runner.images import Images
from trt_sam.runner.lease import Lease, NoSlotError
from trt_sam.runner.prompts import CallMaker
from trt_sam.runner.slot import Slot

__all__ = ["Lifecycle"]

_CLOSED = "the runner is closed; open a new one"
_FORKED = (
    "the runner belongs to the process that this one was forked from; start worker processes by spawn, and open one in each"
)

_all: weakref.WeakSet[Lifecycle] = weakref.WeakSet()
_left: list[Lifecycle] = []
"""In a forked process, the parent's runners: kept for ever, because what they hold cannot be freed here."""


def _after_fork() -> None:
    _left.extend(_all)
    for runner in _left:
        runner._leave()


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _close_all() -> None:
    # Later, in whatever order Python drops things, CUDA's context may go before what needs it.
    for runner in list(_all):
        with contextlib.suppress(InferenceError):
            runner.close()


class Lifecycle:
    """What `DecoderRunner` is made of, apart from calls.

    Args:
        engines: emptied when it is closed.
        device: closed with it.
    """

    def __init__(self, engines: list[Engine], device: Device) -> None:
        self.closed = False
        """Closed by `close`, or by a failure after which the GPU's context cannot be used."""
        self._device = device
        self._engines = engines
        self._calls = CallMaker([])
        self._lock = threading.Lock()
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._slots: list[Slot] = []
        self._images: Images | None = None
        self._why_closed = _CLOSED
        _all.add(self)

    @property
    def graphs_held(self) -> int:
        """CUDA graphs recorded so far, over all slots."""
        return sum(slot.graphs_held for slot in self._slots)

    @property
    def images_held(self) -> int:
        """Images whose embedding is on the GPU now."""
        return len(self._images) if self._images is not None else 0

    def close(self) -> None:
        """Free everything; safe to call again. A wait under way on another thread ends first; other results are lost.

        A runner that is dropped is closed too, with a ResourceWarning; one that is open when Python exits, without.
        """
        with self._lock:
            try:
                if not self.closed:
                    self._save_runtime_caches()
            finally:
                self._close()

    def __del__(self) -> None:
        if getattr(self, "closed", True) or sys.is_finalizing():
            return
        try:
            warnings.warn(f"a {type(self).__name__} was dropped without close()", ResourceWarning, source=self, stacklevel=2)
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _take(self, lease: Lease, timeout: float | None) -> Slot:
        """A free slot, with nothing queued in it. After an error the lease must give it back."""
        self._check_open()
        try:
            lease.take(timeout)
        except queue.Empty:
            number = len(self._slots)
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
                    self._check_open()
                    with self._device.active():
                        slot.wait()
            except BaseException as error:
                self._give_back(lease, error)
                raise
        return slot

    def _give_back(self, lease: Lease, error: BaseException | None) -> None:
        if error is not None:
            with self._lock:
                self._failed(lease, error)
        lease.give_back()

    def _failed(self, lease: Lease, error: BaseException) -> None:
        """After a failure: wait for what is queued, which uses memory that the next call writes; close where that fails."""
        slot = lease.slot
        if self.closed or slot is None:
            return
        slot.forget()
        if not isinstance(error, ContractError):  # those were found before anything was queued
            images = self._images
            # A feed's own embedding goes by the stream of the images.
            self._settle(error, slot.stream, *([images.stream] if images is not None else []))

    def _settle(self, error: BaseException, *streams: Stream) -> None:
        try:
            with self._device.active():
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
        with contextlib.suppress(InferenceError), self._device.active():
            self._release()
        self._release()
        self._device.close()
        self._free.put(None)

    def _release(self) -> None:
        for slot in self._slots:
            slot.close()
        if self._images is not None:
            self._images.close()
        self._calls.clear()
        for engine in self._engines:
            engine.close()
        self._engines.clear()

    def _check_open(self) -> None:
        if self.closed:
            raise InferenceError(self._why_closed)

    def _open_images(self) -> Images:
        self._check_open()
        assert self._images is not None
        return self._images

    def _leave(self) -> None:
        """In a forked process: refuse all calls, touch nothing. Other threads of the parent may have held the locks."""
        if not self.closed:
            self.closed, self._why_closed = True, _FORKED
            for slot in self._slots:
                slot.closed, slot.lock = True, threading.Lock()
        self._lock = threading.Lock()
        self._free = queue.SimpleQueue()
        self._free.put(None)

    def _save_runtime_caches(self) -> None:
        try:
            with self._device.active():
                for engine in self._engines:
                    engine.save_runtime_cache()
        except (InputError, InferenceError) as error:
            # The masks are right without it; only the next start is slower.
            logging.getLogger(__name__).warning("TensorRT-RTX's runtime cache is not kept: %s", str(error))
