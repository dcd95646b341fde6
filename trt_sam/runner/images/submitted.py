"""An image on its way to the GPU: wait for it, or ask whether it is there."""

from __future__ import annotations

import threading
from collections.abc import Callable

from trt_sam.cuda.device import Device
from trt_sam.cuda.streams import Event, Stream
from trt_sam.errors import InferenceError

__all__ = ["SubmittedImage"]


class SubmittedImage:
    """What `DecoderRunner.submit_image` gives. Nobody has to wait for it: calls on `number` do, on the GPU."""

    def __init__(self, number: int, device: Device, stream: Stream, failed: Callable[[BaseException, Stream], None]) -> None:
        """Under the core's lock, in the device's context, after all that brings the image is queued in `stream`.

        `failed` settles the runner after an error in that stream.
        """
        self.number = number
        """Of the image, for `use_image` and `image=`; at once."""
        self._device, self._stream, self._failed = device, stream, failed
        self._lock = threading.Lock()
        """Held while somebody waits, so that nobody frees the event meanwhile; the core's lock may be taken before it."""
        self._closed = False
        self._event: Event | None = Event(device)
        try:
            self._event.record(stream)
        except BaseException:
            self._event.close()
            raise

    def done(self) -> bool:
        """Whether the image is there; returns at once.

        Raises:
            InferenceError: the work failed, or the runner was closed meanwhile.
        """
        with self._lock:
            self._check()
            if self._event is None:
                return True
            with self._device.active():
                return self._event.done()

    def result(self) -> int:
        """Wait until the image is there; gives its number.

        Raises:
            InferenceError: the work failed (the message says so if that closed the runner), or the runner was closed.
        """
        try:
            with self._lock:
                self._check()
                if self._event is not None:
                    with self._device.active():
                        self._event.synchronize()
                    self._event.close()
                    self._event = None
        except InferenceError as error:
            self._failed(error, self._stream)
            raise
        return self.number

    def close(self) -> None:
        """The runner is being closed, and nothing queued any more."""
        with self._lock:
            if self._event is not None:
                self._closed = True
                self._event.close()
                self._event = None

    def abandon(self) -> None:
        """In a forked process, where nothing can be waited for."""
        self._lock, self._event, self._closed = threading.Lock(), None, True

    def __del__(self) -> None:
        event = getattr(self, "_event", None)
        if event is not None:
            event.close()

    def _check(self) -> None:
        if self._closed:
            raise InferenceError("the runner was closed while this image was under way; open a new one")
