"""The part of a runner that its callers hand images to."""

from __future__ import annotations

import threading
from typing import Any

from trt_sam.cuda.device import Device
from trt_sam.cuda.dlpack import is_on_device, on_host
from trt_sam.errors import ContractError
from trt_sam.runner.engine import Engine
from trt_sam.runner.lifecycle import Lifecycle
from trt_sam.runtime.interface import checked_embedding

__all__ = ["ImageCalls"]


class ImageCalls(Lifecycle):
    """`DecoderRunner`'s images; arguments as `Lifecycle`."""

    def __init__(self, engines: list[Engine], device: Device) -> None:
        super().__init__(engines, device)
        self.image_id = 0
        """0 before the first `set_image`, then the number of the current image."""
        self._uploading = threading.Lock()
        """Held while an image is brought to the GPU, taken before the runner's lock: there is one staging memory."""
        self._last_image = 0
        self._current = 0

    def set_image(self, embedding: Any) -> None:
        """Keep `embedding` float32 [1, 256, 64, 64] on the GPU for the calls that follow; its number is then `image_id`.

        A numpy array is checked, and copied through page-locked memory. Whatever offers DLPack or `__cuda_array_interface__` on
        this GPU (a torch CUDA tensor) is copied there and never seen by the host, so it is not looked through for NaN. It must
        be contiguous float32: nothing is converted on the GPU. When this returns, the source may change or go.

        Raises:
            ContractError: another dtype, shape, layout or GPU, a value that is not finite, or a source that was freed.
            InferenceError: CUDA failed, or the runner is closed.
        """
        self._current = self.image_id = self.add_image(embedding)

    def add_image(self, embedding: Any) -> int:
        """As `set_image`, without making it the current one; gives its number, for `use_image` and `image=`."""
        checked = embedding if is_on_device(embedding) else checked_embedding(on_host(embedding, "image_embeddings"))
        images = self._open_images()
        with self._uploading:
            buffer = None
            try:
                # Calls on images that are there go on while this one waits for its producer.
                with images.lock:
                    self._check_open()
                    with self._device.active():
                        source = images.source(checked)
                with self._lock:
                    self._check_open()
                    with self._device.active():
                        buffer = images.start(source)
                with images.lock:
                    self._check_open()
                    with self._device.active():
                        images.stream.synchronize()
                with self._lock:
                    self._check_open()
                    self._last_image += 1
                    images.put(self._last_image, buffer)
                    return self._last_image
            except ContractError:
                raise
            except BaseException as error:
                with self._lock:
                    if not self.closed:
                        if buffer is not None:
                            images.give(buffer)
                        self._settle(error, images.stream)
                raise

    def use_image(self, image: int) -> None:
        """Make an image that is held the current one; raises ContractError where it is not held any more."""
        with self._lock:
            self._open_images().address(image)
            self._current = self.image_id = image

    def drop_image(self, image: int) -> None:
        """Forget an image; its memory serves the next one. Nothing happens where it is not held."""
        with self._lock:
            self._open_images().drop(image)
