"""The TensorRT runner: built engines behind the interface of `trt_sam.runtime.interface.Runner`, and a faster one for prompts.

A call is one copy to the GPU, one launch of a CUDA graph and one copy back, queued on the stream of a slot; see `_slot`. What a
call needs is made at the first call like it, or by `warm_up`; calls after that allocate nothing.

Locks: slots are handed out by a queue; the lock of uploads is held by whoever brings an image; the runner's lock while work is
queued and images change, never while anybody waits for the GPU in a call (but for the upload of a feed's own image); a slot's
lock by whoever waits for it, and the images' by whoever waits for an upload. Taken in this order only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy.typing as npt

from trt_sam.contract import EMBEDDING_BYTES, TensorSpec
from trt_sam.cuda.device import Device
from trt_sam.cuda.streams import Event
from trt_sam.errors import ContractError
from trt_sam.runner.call import Decoded
from trt_sam.runner.engine import Engine, Limits
from trt_sam.runner.image_calls import ImageCalls
from trt_sam.runner.images import Images
from trt_sam.runner.layout import Buckets
from trt_sam.runner.lease import Lease
from trt_sam.runner.many import decode_many
from trt_sam.runner.open import open_engines
from trt_sam.runner.plan import Plan
from trt_sam.runner.prompts import CallMaker, Kind, Known, Prompts
from trt_sam.runner.slot import Slot
from trt_sam.runner.submission import Submission
from trt_sam.runtime.interface import as_given

__all__ = ["DecoderRunner"]

Array = npt.NDArray[Any]

_WAITS = ("auto", "block")
_NOTHING = contextlib.nullcontext()
_POLL_SECONDS = 0.001
"""Between two looks at the slots that a warm-up waits for."""


class DecoderRunner(ImageCalls):
    """Runs decoder engines on a GPU. Any thread may call it.

    Args:
        engine: the engine, or several of one set: without and with a mask input. `open` makes them from an engine set.
        device: the GPU; the runner owns it and closes it, and empties a list of engines before.
        in_flight: slots: how many calls may be under way at once. Each has memory for the largest shapes.
        image_bytes: bound of the memory for images (4 MiB each); the least recently used goes first.
        graphs: record the inference of each bucket as a CUDA graph.
        prompt_buckets: numbers of prompts that are executed; calls between them are filled up. None: powers of two.
        point_buckets: the same for points.
        wait: how a thread waits for its result. "auto" is CUDA's choice, which spins on a core where the machine has cores to
            spare: the lowest latency. "block" sleeps until the driver wakes it: the core is free, and the wake-up comes on top.

    Raises:
        ContractError: `in_flight` or `image_bytes` is too small, buckets are no sizes that the engine takes, or another `wait`.
        InferenceError: the GPU has too little memory for the largest shapes, or CUDA failed.
    """

    def __init__(
        self,
        engine: Engine | list[Engine],
        device: Device,
        *,
        in_flight: int = 1,
        image_bytes: int = 64 * 2**20,
        graphs: bool = True,
        prompt_buckets: Sequence[int] | None = None,
        point_buckets: Sequence[int] | None = None,
        wait: str = "auto",
    ) -> None:
        engines = [engine] if isinstance(engine, Engine) else engine
        super().__init__(engines, device)
        self._warming = threading.Lock()
        # With both, the graph with the mask is what the caller sees; calls without a mask take the other.
        widest = max(engines, key=lambda e: len(e.inputs))
        self.inputs: tuple[TensorSpec, ...] = widest.inputs
        self.outputs: tuple[TensorSpec, ...] = widest.outputs
        self.limits: Limits = widest.limits
        try:
            if in_flight < 1 or image_bytes < EMBEDDING_BYTES:
                raise ContractError(
                    f"in_flight is {in_flight}, must be 1 or more; image_bytes is {image_bytes}, must hold an image"
                )
            if wait not in _WAITS:
                raise ContractError(f"wait is {wait!r}, must be one of {', '.join(_WAITS)}")
            self._calls = CallMaker([(e, Buckets(e.profiles, prompt_buckets, point_buckets)) for e in engines])
            with device.active():
                self._slots.extend(Slot(device, engines, graphs=graphs, blocking=wait == "block") for _ in range(in_flight))
                self._images = Images(device, image_bytes // EMBEDDING_BYTES, functools.partial(_pending_events, self._slots))
            for slot in self._slots:
                slot.owner = weakref.ref(self)
                self._free.put(slot)
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
        **options: Any,
    ) -> Self:
        """Open the engine set in `folder` (or of a manifest file) on GPU number `device`.

        Args:
            folder: of the set.
            role: of the one graph to open; None opens the decoder, and the one that takes a mask where the set has it.
            device: number of the GPU.
            runtime_cache: keep what TensorRT-RTX compiles beside the engine, for the next start.
            options: as the class takes them.

        Raises:
            MissingDependencyError: PyCUDA, or the TensorRT that built the set, is not installed.
            ManifestError: no set, a changed file, or one that does not fit this TensorRT or GPU; says what to do.
            InferenceError: no usable GPU, or too little memory.
        """
        gpu, engines = open_engines(folder, role, device, runtime_cache=runtime_cache)
        try:
            # The runner's close must drop the last references to the engines.
            return cls([engines.pop(0) for _ in range(len(engines))], gpu, **options)
        except BaseException:
            gpu.close()
            raise

    def decode(
        self, points: Any = None, labels: Any = None, boxes: Any = None, mask_input: Any = None, **asked: Any
    ) -> Decoded:
        """Decode prompts on the current image, and wait. Arguments and errors are those of `submit`; and `copy=True` gives
        results that belong to the caller.

        Returns views of the slot's memory, valid until its next use: until the next call where `in_flight` is 1, or `in_flight`
        calls later. Where several threads call, take `copy=True`.
        """
        copy = asked.pop("copy", False)
        self._check_open()
        with self._device.active():  # once, where `submit` and `result` would switch to it and back each
            return self.submit(points, labels, boxes, mask_input, **asked).result(copy=copy)

    def submit(
        self,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        mask_input: Any = None,
        *,
        image: int | None = None,
        masks: str = "best",
        bits: bool | str = False,
        image_size: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> Submission:
        """Queue prompts, and return at once.

        Args:
            points: [num_prompts, num_points, 2] or [num_points, 2], (x, y) in the 1024 frame; the "not a point" that SAM
                wants after clicks without a box is added here.
            labels: as many, 1 foreground, 0 background, -2 absent.
            boxes: [num_prompts, 4] or [4], (x0, y0, x1, y1) in the 1024 frame.
            mask_input: float32 [num_prompts, 1, 256, 256], `low_res_masks` of an earlier call; needs a graph that takes it.
            image: number of a held image; None is the current one.
            masks: "best" (one per prompt, by SAM's rule), "all", or "device": all, left on the GPU.
            bits: give masks as bool instead of logits; or "packed": eight pixels to a byte, from a graph with `mask_bits`.
                Of such a graph only bits are copied, and `low_res_masks` is None; any other is thresholded on the host.
            image_size: (height, width) of the original image, for full-resolution graphs.
            timeout: seconds to wait for a free slot; 0 raises at once, None waits for ever.

        Raises:
            ContractError: prompts that do not fit, no image, or one that is not held any more.
            InferenceError: no slot became free, execution failed (the message says so if that closed the runner), or the runner
                is closed.
        """
        prompts = self._calls.prompts(points, labels, boxes, mask_input, masks, bits=bits, image_size=image_size)
        return self._submit(prompts, self._current if image is None else image, timeout)

    def decode_many(
        self, points: Any = None, labels: Any = None, boxes: Any = None, mask_input: Any = None, **asked: Any
    ) -> Decoded:
        """As `decode`, for any number of prompts: in calls of at most the profile's maximum, overlapping as far as slots allow.

        The result's arrays belong to the caller; `masks="device"` cannot be had here.

        Raises:
            ContractError, InferenceError: as `submit`.
        """
        return decode_many(self.submit, self._calls, points, labels, boxes, mask_input, {"image": self._current, **asked})

    def most_prompts(self, num_tokens: int, *, with_mask: bool = False, image_size: tuple[int, int] | None = None) -> int:
        """Largest number of prompts that one call takes, of `num_tokens` each: points, and two corners or one "not a point".

        Raises:
            InferenceError: the runner is closed.
        """
        return self._calls.most_prompts(num_tokens, with_mask=with_mask, image_size=image_size)

    def run(self, feed: Mapping[str, Array], *, copy: bool = True) -> dict[str, Array]:
        """Run one feed, as `trt_sam.runtime.interface.Runner.run`.

        Args:
            feed: arrays by input name, not changed; Meta's feed is taken too. `image_embeddings` may be left out after
                `set_image`; where it is given, it counts for this call only.
            copy: False gives views of the slot's page-locked memory, in the graph's own dtypes: valid until its next use,
                readable until they are dropped, also after `close`.

        Returns:
            Every output by name: float32 arrays (`mask_bits` uint8) that belong to the caller, or the views.

        Raises:
            ContractError: the feed does not fit the graph, or there is no image.
            InferenceError: execution failed (the message says so if that closed the runner), or the runner is closed.
        """
        self._check_open()
        checked = self._calls.feed(feed, has_image=self._current > 0)

        def read(plan: Plan) -> dict[str, Array]:
            return {name: as_given(array, copy=True) if copy else array for name, array in plan.outputs().items()}

        return self._submit(checked.prompts, self._current, None, checked.embedding).collect(read)

    def device_times(self, feed: Mapping[str, Array], count: int) -> list[float]:
        """Run one feed `count` times (after some that do not count) and time the inference alone, without copies.

        Returns milliseconds between CUDA events before and after each. All are queued at once, so that the GPU goes from one to
        the next and the times are its own: waited for one by one, each would begin with the wait for Python's launch.

        Raises:
            ContractError: the feed does not fit the graph, or there is no image.
            InferenceError: execution failed, or the runner is closed.
        """
        self._check_open()
        checked = self._calls.feed(feed, has_image=self._current > 0)

        def read(plan: Plan) -> list[float]:
            return plan.device_times(count)

        return self._submit(checked.prompts, self._current, None, checked.embedding, alone=True).collect(read)

    def warm_up(self, sizes: Iterable[tuple[int, int]] | None = None, *, image_size: tuple[int, int] | None = None) -> None:
        """Make what first calls would make: in every slot contexts, compiled kernels, CUDA graphs, each run once; and the
        memory of all images that `image_bytes` has room for.

        Args:
            sizes: (num_prompts, num_tokens) of calls to come; tokens are the points, and two corners or one "not a point".
                None: all buckets. Calls while others are under way wait for them.
            image_size: (height, width) of images to come, for full-resolution graphs; None: the largest that the engine takes.

        Raises:
            ContractError: a size beyond the engine's profiles.
            InferenceError: TensorRT or CUDA failed, or the runner is closed.
        """
        self._check_open()
        kinds = self._calls.warm_up_kinds(None if sizes is None else list(sizes), image_size)
        with self._warming:
            cold = set(self._slots)
            while cold:
                # One slot at a time: whoever holds some and waits for the rest could wait for a caller who does the same.
                lease = Lease(self._free)
                try:
                    slot = self._take(lease, None)
                    warm = slot not in cold
                    if not warm:
                        self._warm(lease, slot, kinds)
                        cold.discard(slot)
                finally:
                    lease.give_back()
                if warm:
                    time.sleep(_POLL_SECONDS)
        with self._lock:
            with self._device.active():
                self._open_images().allocate()
            self._save_runtime_caches()

    def _warm(self, lease: Lease, slot: Slot, kinds: list[tuple[Kind, Known]]) -> None:
        try:
            for kind, known in kinds:
                with self._lock:
                    self._check_open()
                    with self._device.active():
                        slot.begin()
                        plan = self._calls.plan(slot, kind, known)
                        if (plan.call.masks, plan.call.bits) == ("all", False):  # the others share its inference
                            plan.rehearse()
                with slot.lock:
                    self._check_open()
                    with self._device.active():
                        slot.wait()
        except BaseException as error:
            self._give_back(lease, error)
            raise

    def _submit(
        self, prompts: Prompts, image: int, timeout: float | None, embedding: Array | None = None, *, alone: bool = False
    ) -> Submission:
        """Queue a call; with `alone` its inference is also recorded without copies."""
        lease = Lease(self._free)
        try:
            slot = self._take(lease, timeout)
            with _NOTHING if embedding is None else self._uploading, self._lock:
                try:
                    plan = self._queue(slot, prompts, image, embedding, alone=alone)
                except BaseException as error:
                    self._failed(lease, error)
                    raise
            return Submission(lease, plan, self._give_back)
        except BaseException:
            lease.give_back()
            raise

    def _queue(self, slot: Slot, prompts: Prompts, image: int, embedding: Array | None, *, alone: bool) -> Plan:
        images = self._open_images()
        with self._device.active():
            if slot.readers:
                slot.begin()
            plan = self._calls.plan(slot, prompts.kind, prompts.known)
            if alone:
                plan.program.record()
            prompts.fill(plan)
            if embedding is not None:
                slot.image = None
                images.upload(embedding, slot.embedding.address)
                plan.launch(None, 0)
            elif image == 0:
                raise ContractError("there is no image; call set_image before")
            else:
                plan.launch(image, images.address(image))
        return plan


def _pending_events(slots: Sequence[Slot]) -> list[Event]:
    """After which nothing that is queued now reads resident images any more; under the runner's lock.

    Of slots, not of the runner: the images would hold their runner, and one that is dropped would not be closed at once.
    """
    pending = [slot for slot in slots if slot.pending]
    for slot in pending:
        slot.event.record(slot.stream)
    return [slot.event for slot in pending]
