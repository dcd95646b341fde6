"""The TensorRT runner: built engines behind the interface of `trt_sam.runtime.interface.Runner`, and a faster one for prompts.

A call is one copy to the GPU, one launch of a CUDA graph and one copy back, queued on the stream of a slot; see `_slot`. What a
call needs is made at the first call like it, or by `warm_up`; calls after that allocate nothing.

Locks: slots are handed out by a queue; the locks of uploads and of photos are held by whoever brings an image; the runner's
while work is queued and images change, never while anybody waits for the GPU; a slot's by whoever waits for it, those of the
images, the encoder and a submitted image by whoever waits there. Taken in this order only.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import warnings
import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_BYTES, TensorSpec
from trt_sam.cuda.device import Device
from trt_sam.cuda.streams import Event
from trt_sam.errors import ContractError
from trt_sam.runner.call import RunnerOptions
from trt_sam.runner.core import Core
from trt_sam.runner.counters import Counters
from trt_sam.runner.dispatch import Dispatch
from trt_sam.runner.engine import Engine, Limits
from trt_sam.runner.images.calls import ImageCalls
from trt_sam.runner.images.encoder import Encoder
from trt_sam.runner.images.submitted import SubmittedImage
from trt_sam.runner.images.uploads import Images
from trt_sam.runner.open import open_engines
from trt_sam.runner.plans.layout import Buckets
from trt_sam.runner.prompt_calls import PromptCalls
from trt_sam.runner.prompts import CallMaker
from trt_sam.runner.slot import Slot

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["DecoderRunner"]


_WAITS = ("auto", "spin", "block")


class DecoderRunner(PromptCalls):
    """Runs decoder engines on a GPU. Any thread may call it.

    Args:
        engine: the engine, or several of one set: without and with a mask input. `open` makes them from an engine set.
        device: the GPU; the runner owns it and closes it, and empties a list of engines before.
        encoder: the engine of the set's image encoder, for a runner that takes photos.
        in_flight: slots: how many calls may be under way at once. Each has memory for the largest shapes.
        image_bytes: bound of the memory for images (4 MiB each); the least recently used goes first.
        graphs: record the inference of each bucket as a CUDA graph.
        prompt_buckets: numbers of prompts that are executed; calls between them are filled up. None: powers of two.
        point_buckets: the same for points.
        wait: how a thread waits for its result. "auto" is CUDA's choice, which spins on a core where the machine has cores to
            spare. "spin" always does, and sets that for the whole process: the lowest latency. "block" sleeps until the driver
            wakes it: the core is free, and the wake-up comes on top.

    Raises:
        ContractError: `in_flight` or `image_bytes` is too small, buckets are no sizes that the engine takes, or another `wait`.
        InferenceError: the GPU has too little memory for the largest shapes, or CUDA failed.
    """

    def __init__(
        self,
        engine: Engine | list[Engine],
        device: Device,
        *,
        encoder: Engine | None = None,
        in_flight: int = 1,
        image_bytes: int = 64 * 2**20,
        graphs: bool = True,
        prompt_buckets: Sequence[int] | None = None,
        point_buckets: Sequence[int] | None = None,
        wait: Literal["auto", "spin", "block"] = "auto",
    ) -> None:
        engines = [engine] if isinstance(engine, Engine) else engine
        decoders, encoders = list(engines), [encoder] if encoder is not None else []
        engines += encoders
        self._core = core = Core(engines, device)
        self._images = ImageCalls(core)
        self._dispatch = Dispatch(core, self._images.uploading)
        # With both, the graph with the mask is what the caller sees; calls without a mask take the other.
        widest = max(decoders, key=lambda e: len(e.inputs))
        self.inputs: tuple[TensorSpec, ...] = widest.inputs
        self.outputs: tuple[TensorSpec, ...] = widest.outputs
        self.limits: Limits = widest.limits
        self.checkpoint_sha256 = widest.checkpoint_sha256
        """Hash of the decoder's weights; empty where the set does not know it."""
        try:
            if in_flight < 1 or image_bytes < EMBEDDING_BYTES:
                raise ContractError(
                    f"in_flight is {in_flight}, must be 1 or more; image_bytes is {image_bytes}, must hold an image"
                )
            if wait not in _WAITS:
                raise ContractError(f"wait is {wait!r}, must be one of {', '.join(_WAITS)}")
            if wait == "spin":
                device.spin()
            core.calls = CallMaker([(e, Buckets(e.profiles, prompt_buckets, point_buckets)) for e in decoders])
            slots = (Slot(device, decoders, graphs=graphs, blocking=wait == "block") for _ in range(in_flight))
            with device.active():
                pending = functools.partial(_marks, core.slots)
                core.furnish(
                    slots,
                    lambda: Images(device, image_bytes // EMBEDDING_BYTES, pending),
                    lambda: Encoder(device, encoder, graphs=graphs) if encoder is not None else None,
                    weakref.ref(self),
                )
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        role: str | None = None,
        device: int = 0,
        runtime_cache: bool = True,
        photos: bool = True,
        **options: Unpack[RunnerOptions],
    ) -> Self:
        """Open the engine set in `folder` (or of a manifest file) on GPU number `device`.

        Args:
            folder: of the set.
            role: of the one graph to open; None opens the decoder, and the one that takes a mask where the set has it, and the
                image encoder where it has one.
            device: number of the GPU.
            runtime_cache: keep what TensorRT-RTX compiles beside the engine, for the next start.
            photos: False leaves the image encoder out, and its memory on the GPU: images are then embeddings.
            options: as the class takes them (`in_flight`, `image_bytes`, `graphs`, `prompt_buckets`, `point_buckets`, `wait`).

        Raises:
            MissingDependencyError: PyCUDA, or the TensorRT that built the set, is not installed.
            ManifestError: no set, a changed file, or one that does not fit this TensorRT or GPU; says what to do.
            GraphError: the image encoder is of another checkpoint than the decoder.
            InferenceError: no usable GPU, or too little memory.
        """
        gpu, engines, encoders = open_engines(folder, role, device, runtime_cache=runtime_cache, encoder=photos)
        try:
            # The runner's close must drop the last references to the engines.
            encoder = encoders.pop() if encoders else None
            return cls([engines.pop(0) for _ in range(len(engines))], gpu, encoder=encoder, **options)
        except BaseException:
            gpu.close()
            raise

    @property
    def closed(self) -> bool:
        """Closed by `close`, or by a failure after which the GPU's context cannot be used."""
        return self._core.closed

    @property
    def image_id(self) -> int:
        """0 before the first `set_image`, then the number of the current image."""
        return self._images.image_id

    @property
    def counters(self) -> Counters:
        """What it has done so far: a copy, which stays as it is."""
        return dataclasses.replace(self._core.counters)

    @property
    def graphs_held(self) -> int:
        """CUDA graphs recorded so far, over all slots."""
        return self._core.graphs_held

    @property
    def images_held(self) -> int:
        """Images whose embedding is on the GPU now."""
        return self._core.images_held

    @property
    def takes_photos(self) -> bool:
        """Whether it was opened on a set with an image encoder."""
        return self._core.encoder is not None

    def embed(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed a photo, uint8 [height, width, 3] RGB of any size, to float32 [1, 256, 64, 64] on the host.

        `set_image` of the photo itself keeps the embedding on the GPU.

        Raises:
            GraphError: there is no image encoder.
            InputError: not such an array, or too narrow to be scaled.
            InferenceError: execution failed, the embedding is not finite, or the runner is closed.
        """
        return self._images.embed(rgb)

    def set_image(self, image: Any) -> None:
        """Keep an image on the GPU for the calls that follow; its number is then `image_id`. Nobody waits for it on the host.

        Args:
            image: an embedding float32 [1, 256, 64, 64]. A numpy array is checked, and copied through page-locked memory.
                Whatever offers DLPack or `__cuda_array_interface__` on this GPU (a torch CUDA tensor) is copied there and never
                seen by the host, so it is not looked through for NaN. It must be contiguous float32: nothing is converted on
                the GPU. Of a set with an image encoder it may be a photo, uint8 [height, width, 3] RGB of any size: on the
                host, where it is scaled; its embedding stays on the GPU, and is not looked through.

        When this returns, the source may change or go: what is lent is kept until it is copied, and torch's current stream, or
        the one that `__cuda_array_interface__` names, waits for that. Only a producer of which neither is known is waited for.

        Raises:
            ContractError: another dtype, shape, layout or GPU, a value that is not finite, or a source that was freed.
            GraphError: a photo, and there is no image encoder.
            InputError: a photo that is too narrow to be scaled, or not RGB.
            InferenceError: CUDA failed, or the runner is closed. What fails later on the GPU, the next call tells.
        """
        self._images.set(image)

    def add_image(self, image: Any) -> int:
        """As `set_image`, without making it the current one; gives its number, for `use_image` and `image=`."""
        return self._images.add(image)

    def submit_image(self, image: Any) -> SubmittedImage:
        """As `add_image`; what it gives tells whether the image is there, or waits for it."""
        return self._images.submit(image)

    def use_image(self, image: int) -> None:
        """Make an image that is held the current one; raises ContractError where it is not held any more."""
        self._images.use(image)

    def drop_image(self, image: int) -> None:
        """Forget an image; its memory serves the next one. Nothing happens where it is not held."""
        self._images.drop(image)

    def warm_up(self, sizes: Iterable[tuple[int, int]] | None = None, *, image_size: tuple[int, int] | None = None) -> None:
        """Make what first calls would make: in every slot contexts, compiled kernels, CUDA graphs, each run once; the same of
        the image encoder; and the memory of all images that `image_bytes` has room for.

        Args:
            sizes: (num_prompts, num_tokens) of calls to come; tokens are the points, and two corners or one "not a point".
                None: all buckets. Calls while others are under way wait for them.
            image_size: (height, width) of images to come, for full-resolution graphs; None: the largest that the engine takes.

        Raises:
            ContractError: a size beyond the engine's profiles.
            InferenceError: TensorRT or CUDA failed, or the runner is closed.
        """
        self._core.check_open()
        self._dispatch.warm_up(self._core.calls.warm_up_kinds(None if sizes is None else list(sizes), image_size))

    def close(self) -> None:
        """Free everything; safe to call again. A wait under way on another thread ends first; other results are lost.

        A runner that is dropped is closed too, with a ResourceWarning; one that is open when Python exits, without.
        """
        self._core.close()

    def __del__(self) -> None:
        if not hasattr(self, "_core") or self._core.closed or sys.is_finalizing():
            return
        try:
            warnings.warn(f"a {type(self).__name__} was dropped without close()", ResourceWarning, source=self, stacklevel=2)
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _marks(slots: Sequence[Slot]) -> list[Event]:
    """Events after which nothing that is queued now reads resident images any more; under the core's lock.

    Of slots, not of the runner: the images would hold their runner, and one that is dropped would not be closed at once.
    """
    return [mark for slot in slots if (mark := slot.mark()) is not None]
