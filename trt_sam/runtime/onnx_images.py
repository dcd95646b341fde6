"""The images of an `OnnxRunner`: embeddings and photos, held by number, photos embedded by the set's image encoder."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.errors import GraphError
from trt_sam.graph.advice import EXPORT_SET
from trt_sam.imaging.frame import to_frame
from trt_sam.runtime.call.given import host_array
from trt_sam.runtime.call.pending import PendingImage
from trt_sam.runtime.held import HeldImages
from trt_sam.runtime.interface import checked_embedding, is_photo
from trt_sam.runtime.onnx_encoder import OnnxEncoder

__all__ = ["OnnxImages"]

Given = ParamSpec("Given")
Result = TypeVar("Result")


class OnnxImages:
    """The half of `OnnxRunner` that holds images; the other half runs the decoder on them."""

    def __init__(
        self, path: Path, encoder: Path | None, checkpoint_sha256: str, threads: int | None, device: str, capacity: int
    ) -> None:
        """Hold at most `capacity` images where the decoder at `path` runs ("cpu" or "cuda"); `encoder` is its set's, if any."""
        self._path, self._encoder_path, self._threads, self._device = path, encoder, threads, device
        self._checkpoint_sha256 = checkpoint_sha256
        self._encoder: OnnxEncoder | None = None
        self._held = HeldImages(capacity)
        self._image: Any = None
        self._image_id = 0
        self._worker: ThreadPoolExecutor | None = None

    @property
    def image_id(self) -> int:
        """0 before the first `set_image`, then a new number after each."""
        return self._image_id

    @property
    def takes_photos(self) -> bool:
        """Whether it was opened on a set with an image encoder."""
        return self._encoder_path is not None

    @property
    def encoder_sha256(self) -> str:
        """Hash of the weights of the set's image encoder, which is opened for it; empty where it is not known."""
        return self._opened_encoder().sha256 if self.takes_photos else ""

    def embed(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed a photo, uint8 [height, width, 3] RGB of any size, to float32 [1, 256, 64, 64].

        The encoder is opened by the first call.

        Raises:
            GraphError: there is no image encoder, or it belongs to another decoder.
            InputError: not such an array, or too narrow to be scaled.
            InferenceError: execution failed, or the runner is closed.
        """
        self._require_open()
        return self._opened_encoder().embed(rgb)

    def set_image(self, image: Any) -> None:
        """Keep a copy of an image where the graph runs, for the calls that follow; its number is then `image_id`.

        Args:
            image: an embedding float32 [1, 256, 64, 64]. Of a set with an image encoder it may be a photo, uint8
                [height, width, 3] RGB of any size.

        Raises:
            ContractError: another dtype or shape, a value that is not finite, or an array on a GPU.
            GraphError: a photo, and there is no image encoder.
            InferenceError: execution failed, or the runner is closed.
        """
        self._image_id = self.add_image(image)
        self._image = self._held.get(self._image_id)

    def add_image(self, image: Any) -> int:
        """As `set_image`, without making it the current one; gives its number, for `use_image` and `image=`."""
        return self._add(image, self._embed_now)

    def submit_image(self, image: Any) -> PendingImage:
        """As `add_image`, a photo on a thread of the runner's; returns at once. Calls on its number wait for it."""
        number = self._add(image, lambda *frame: self._on_worker(self._embed_now, *frame))
        return PendingImage(number, self._held.get(number))

    def use_image(self, image: int) -> None:
        """Make an image that is held the current one; raises ContractError where it is not held any more."""
        self._image, self._image_id = self._held.get(image), image

    def drop_image(self, image: int) -> None:
        """Forget an image, the current one too for calls by number. Nothing happens where it is not held."""
        self._held.drop(image)

    def _add(self, image: Any, embed: Callable[..., Any]) -> int:
        """Hold an image, a photo as what `embed` gives of its frame: an embedding where the graph runs, or its future."""
        self._require_open()
        found = host_array(image, "image_embeddings")
        if is_photo(found):
            return self._held.put(embed(self._opened_encoder(), *to_frame(found)))
        return self._held.put(self._placed(checked_embedding(found)))

    def _embed_now(self, encoder: OnnxEncoder, frame: npt.NDArray[np.uint8], size: npt.NDArray[np.int32]) -> Any:
        return self._placed(encoder.embed_frame(frame, size))

    def _placed(self, embedding: npt.NDArray[np.float32]) -> Any:
        ort = require("onnxruntime", "to run an ONNX graph")
        return ort.OrtValue.ortvalue_from_numpy(embedding, self._device, 0)

    def _opened_encoder(self) -> OnnxEncoder:
        if self._encoder_path is None:
            raise GraphError(
                f"{self._path} was opened without an image encoder; give an embedding, or open a set with one: {EXPORT_SET}"
            )
        if self._encoder is None:
            encoder = OnnxEncoder(self._encoder_path, threads=self._threads)
            if encoder.checkpoint_sha256 != self._checkpoint_sha256:
                raise GraphError(
                    f"{self._encoder_path} is the encoder of another checkpoint than {self._path}; export both from one"
                )
            self._encoder = encoder
        return self._encoder

    def _on_worker(self, work: Callable[Given, Result], *given: Given.args, **named: Given.kwargs) -> Future[Result]:
        """Have the runner's one thread do it, after what it was given before."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="trt-sam-onnx")
        return self._worker.submit(work, *given, **named)

    def _close_images(self) -> None:
        """What the thread works on ends first, what waits is dropped."""
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)
        self._image = None
        self._held.clear()
        if self._encoder is not None:
            self._encoder.close()

    def _require_open(self) -> None:
        """Raise InferenceError where the runner is closed."""
        raise NotImplementedError
