"""The images of a runner, as its callers hand them over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.cuda.borrowed import Borrowed, is_on_device, on_host
from trt_sam.cuda.ranges import marked
from trt_sam.cuda.streams import Stream
from trt_sam.errors import ContractError, GraphError
from trt_sam.graph.advice import BUILD_SET
from trt_sam.imaging.frame import scaled
from trt_sam.runner.core import Core
from trt_sam.runner.images.encoder import Encoder
from trt_sam.runner.images.residents import Resident
from trt_sam.runner.images.submitted import SubmittedImage
from trt_sam.runner.images.uploads import Handover
from trt_sam.runtime.interface import checked_embedding, is_photo

__all__ = ["ImageCalls"]


class ImageCalls:
    """Images of a runner: brought, made the current one, dropped; by any thread. The methods are the runner's."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.image_id = 0
        """0 before the first `set`, then the number of the current image."""
        self.uploading = threading.Lock()
        """Held while an embedding is brought to the GPU, taken before the core's lock: staging memories are used in turn."""
        self.encoding = threading.Lock()
        """The same of photos."""
        self._last_image = 0

    def set(self, image: Any) -> None:
        """Bring an image, and make it the current one."""
        self.image_id = self.add(image)

    def add(self, image: Any) -> int:
        """Bring an embedding or a photo to the GPU, and give its number; see `DecoderRunner.set_image`."""
        return self._add(image, told=False)[0]

    def submit(self, image: Any) -> SubmittedImage:
        """As `add`; what it gives tells when the image is there."""
        _, submitted = self._add(image, told=True)
        assert submitted is not None
        return submitted

    def embed(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The embedding of a photo on the host; see `DecoderRunner.embed`."""
        encoder, picture, core = self._encoder(), scaled(rgb), self._core
        with self.encoding:
            with encoder.lock:
                core.check_open()
                with core.device.active():
                    staging = encoder.stage(picture)
            try:
                with core.lock:
                    core.check_open()
                    with core.device.active():
                        encoder.encode(staging)
                        encoder.download()
                with encoder.lock:
                    core.check_open()
                    with core.device.active():
                        encoder.stream.synchronize()
                    return encoder.embedding()
            except BaseException as error:
                self._settle(error, encoder.stream)
                raise

    def use(self, image: int) -> None:
        """Make an image that is held the current one; raises ContractError where it is not held any more."""
        with self._core.lock:
            self._core.open_images().get(image)
            self.image_id = image

    def drop(self, image: int) -> None:
        """Forget an image; its memory serves the next one. Nothing happens where it is not held."""
        with self._core.lock:
            self._core.open_images().drop(image)

    def _add(self, image: Any, *, told: bool) -> tuple[int, SubmittedImage | None]:
        if is_on_device(image):
            return self._add_embedding(image, told=told)
        found = on_host(image, "image_embeddings")
        return (
            self._add_photo(found, told=told) if is_photo(found) else self._add_embedding(checked_embedding(found), told=told)
        )

    def _add_embedding(self, given: Any, *, told: bool) -> tuple[int, SubmittedImage | None]:
        core = self._core
        images = core.open_images()
        added = None
        with self.uploading:
            try:
                # Calls on images that are there go on while this one waits for its producer.
                with images.lock:
                    core.check_open()
                    with core.device.active():
                        source = images.source(given)
                added = self._queue(images.stream, lambda: images.start(source), told=told)
                if isinstance(source, Borrowed) and source.stream is None and not isinstance(given, Handover):
                    # Nobody else would make the producer wait, who may write there as soon as this returns.
                    with images.lock:
                        core.check_open()
                        with core.device.active():
                            images.stream.synchronize()
            except ContractError:
                raise
            except BaseException as error:
                self._settle(error, images.stream)
                if added is not None and not core.closed:
                    self.drop(added[0])
                raise
        return added

    def _add_photo(self, rgb: npt.NDArray[np.uint8], *, told: bool) -> tuple[int, SubmittedImage | None]:
        encoder, picture, core = self._encoder(), scaled(rgb), self._core
        images = core.open_images()
        with self.encoding:
            try:
                with encoder.lock:
                    core.check_open()
                    with core.device.active():
                        staging = encoder.stage(picture)
                return self._queue(
                    encoder.stream,
                    lambda: images.write(encoder.stream, lambda address: encoder.encode(staging, address)),
                    told=told,
                )
            except BaseException as error:
                self._settle(error, encoder.stream)
                raise

    def _queue(self, stream: Stream, write: Callable[[], Resident], *, told: bool) -> tuple[int, SubmittedImage | None]:
        """Queue what writes an image, and hold it."""
        core = self._core
        with core.lock:
            core.check_open()
            with core.device.active():
                with marked("image"):
                    resident = write()
                number = self._last_image + 1
                submitted = SubmittedImage(number, core.device, stream, self._settle) if told else None
            self._last_image = number
            if submitted is not None:
                core.submitted_images.add(submitted)
            core.open_images().put(number, resident)
            core.counters.images += 1
        return number, submitted

    def _settle(self, error: BaseException, stream: Stream) -> None:
        core = self._core
        with core.lock:
            if not core.closed:
                core.settle(error, stream)

    def _encoder(self) -> Encoder:
        core = self._core
        core.check_open()
        if core.encoder is None:
            raise GraphError(f"this runner has no image encoder: give an embedding, or open a set with one: {BUILD_SET}")
        return core.encoder
