"""The images of a runner, as its callers hand them over."""

from __future__ import annotations

import threading
from typing import Any

from trt_sam.cuda.dlpack import is_on_device, on_host
from trt_sam.errors import ContractError
from trt_sam.runner.core import Core
from trt_sam.runtime.interface import checked_embedding

__all__ = ["ImageCalls"]


class ImageCalls:
    """Images of a runner: brought, made the current one, dropped; by any thread. The methods are the runner's."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.image_id = 0
        """0 before the first `set`, then the number of the current image."""
        self.uploading = threading.Lock()
        """Held while an image is brought to the GPU, taken before the core's lock: there is one staging memory."""
        self._last_image = 0

    def set(self, image: Any) -> None:
        """Bring an image, and make it the current one."""
        self.image_id = self.add(image)

    def add(self, embedding: Any) -> int:
        """Bring an embedding to the GPU, and give its number; see `DecoderRunner.set_image`."""
        core = self._core
        checked = embedding if is_on_device(embedding) else checked_embedding(on_host(embedding, "image_embeddings"))
        images = self._core.open_images()
        with self.uploading:
            buffer = None
            try:
                # Calls on images that are there go on while this one waits for its producer.
                with images.lock:
                    core.check_open()
                    with core.device.active():
                        source = images.source(checked)
                with core.lock:
                    core.check_open()
                    with core.device.active():
                        buffer = images.start(source)
                with images.lock:
                    core.check_open()
                    with core.device.active():
                        images.stream.synchronize()
                with core.lock:
                    core.check_open()
                    self._last_image += 1
                    images.put(self._last_image, buffer)
                    core.counters.images += 1
                    return self._last_image
            except ContractError:
                raise
            except BaseException as error:
                with core.lock:
                    if not core.closed:
                        if buffer is not None:
                            images.give(buffer)
                        core.settle(error, images.stream)
                raise

    def use(self, image: int) -> None:
        """Make an image that is held the current one; raises ContractError where it is not held any more."""
        with self._core.lock:
            self._core.open_images().address(image)
            self.image_id = image

    def drop(self, image: int) -> None:
        """Forget an image; its memory serves the next one. Nothing happens where it is not held."""
        with self._core.lock:
            self._core.open_images().drop(image)
