"""A slot: everything that one call needs while it is under way, allocated once.

A slot has a stream, blocks for inputs and outputs on the GPU and in page-locked memory, the image embedding, and one activation
block for all its execution contexts, of which only one runs at a time. Each bucket has a context of its own, because a CUDA
graph fixes context, shapes and addresses.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_BYTES, EMBEDDING_SHAPE
from trt_sam.cuda.device import Device
from trt_sam.cuda.graphs import is_captured, order
from trt_sam.cuda.page_locked import page_locked
from trt_sam.cuda.streams import Event, Stream
from trt_sam.errors import ContractError, InferenceError
from trt_sam.runner.engine import Engine, ExecutionContext
from trt_sam.runner.images.residents import Resident
from trt_sam.runner.images.staging import Staging
from trt_sam.runner.plans.layout import Bucket, Layout, extent, scratch_extent
from trt_sam.runner.program import Program

__all__ = ["Slot"]

Array = npt.NDArray[Any]
EMBEDDING = "image_embeddings"
_PER_THREAD_STREAM = 2


class Slot:
    """See the module. Whoever took it from the runner alone may use it, in the device's context; it is freed with the device.

    Args:
        device: owns the memory.
        engines: those that run here; all have the blocks in common.
        graphs: record the inference as a CUDA graph where that can be done.
        blocking: sleep in `wait` instead of whatever CUDA chooses.

    Raises:
        InferenceError: the GPU has too little memory.
    """

    def __init__(self, device: Device, engines: Sequence[Engine], *, graphs: bool, blocking: bool = False) -> None:
        self.device = device
        self._graphs = graphs
        self.lock = threading.Lock()
        """Held while the owner waits, so that nobody frees the slot meanwhile."""
        self.closed = False
        self.owner: Callable[[], object] = lambda: None
        """Gives the runner, for those who use the slot without holding it: it must not be dropped, and closed, meanwhile."""
        self._pending = False
        self._readers: set[int] = set()
        self._read: list[Event] = []
        """After what streams were given that will read no more."""
        self._image: int | None = None
        self._padded: object = None
        self._programs: dict[tuple[int, Bucket], Program] = {}
        sizes = [{name: high for name, (_, high) in engine.limits.items()} for engine in engines]
        inputs = max(extent([s for s in e.inputs if s.name != EMBEDDING], n) for e, n in zip(engines, sizes, strict=True))
        outputs = max(extent(e.outputs, n) for e, n in zip(engines, sizes, strict=True))
        self.stream = Stream(device, urgent=True)
        self._event = Event(device)
        self._alarm = Event(device, blocking=True) if blocking else None
        self.embedding = device.buffer(EMBEDDING_BYTES)
        self.device_in = device.buffer(inputs)
        self.device_out = device.buffer(outputs)
        self._activations = device.buffer(max(256, *(engine.activation_bytes for engine in engines)))
        self.host_in = page_locked(device, inputs)
        self.host_out = page_locked(device, outputs)
        # Not page-locked: the pages that no call needs are never there.
        self.scratch = np.empty(
            max(scratch_extent(e.inputs, e.outputs, n) for e, n in zip(engines, sizes, strict=True)), np.uint8
        )
        """Host memory of whatever call is under way: bool masks, and the check of a mask input."""

    @property
    def graphs_held(self) -> int:
        """CUDA graphs recorded so far."""
        return sum(len(program.graphs) for program in self._programs.values())

    def program(self, engine: Engine, bucket: Bucket, layout: Layout) -> Program:
        """The program of a bucket, made at its first use, with one inference on zeros, which are a valid prompt.

        Raises:
            InferenceError: TensorRT or CUDA failed.
        """
        key = (id(engine), bucket)
        found = self._programs.get(key)
        if found is None:
            found = self._programs[key] = self._make_program(engine, bucket, layout)
        return found

    @property
    def pending(self) -> bool:
        """Whether work may be queued that nobody has waited for."""
        return self._pending

    def belong_to(self, owner: Callable[[], object]) -> None:
        """Say what gives the runner."""
        self.owner = owner

    def work_begins(self) -> None:
        """Before work is queued: whoever takes the slot next waits for it."""
        self._pending = True

    def work_has_run(self) -> None:
        """What was queued has been waited for by other means than `wait`."""
        self._pending = False

    def mark(self) -> Event | None:
        """An event after all that is queued, or None where nothing is."""
        if not self._pending:
            return None
        self._event.record(self.stream)
        return self._event

    def has_image(self, image: int | None) -> bool:
        """Whether the embedding of the image with this number is in the slot; None: of one without a number."""
        return image == self._image

    def is_padded_for(self, plan: object) -> bool:
        """Whether the input block has the padding of a plan."""
        return self._padded is plan

    def padded_for(self, plan: object) -> None:
        """The input block has the padding of a plan now; None: of nobody who fills it again."""
        self._padded = plan

    def lent_to(self, reader: int) -> None:
        """A stream (its handle) was given work that may read the outputs, under `lock`: the next call waits for it."""
        self._readers.add(reader)

    def returned_by(self, reader: int) -> None:
        """A stream has been given all its reads, under `lock`: an event stands for it from now on, and its handle is not used.

        Raises:
            ContractError: it is being captured, or there is no such stream.
            InferenceError: CUDA failed.
        """
        captured = is_captured(reader)
        if captured is not False:
            raise ContractError(
                f"stream {reader:#x} is being captured; end the capture before"
                if captured
                else f"there is no stream {reader:#x} (any more); release before it is destroyed"
            )
        event = Event(self.device)
        try:
            event.record_on(reader)
        except BaseException:
            event.close()
            raise
        self._read.append(event)
        self._readers.discard(reader)

    @property
    def has_readers(self) -> bool:
        """Whether `begin` has to be called."""
        return bool(self._readers or self._read)

    def begin(self) -> None:
        """Before anything of a call is queued: what writes the outputs comes after whatever reads them.

        Raises:
            ContractError: a reader's stream is being captured, and cannot be waited for.
            InferenceError: CUDA failed.
        """
        while self._read:
            self.stream.wait(self._read[-1])
            self._read.pop().close()
        while self._readers:
            reader = next(iter(self._readers))
            captured = is_captured(reader)
            if captured:
                raise ContractError(
                    f"stream {reader:#x} took device masks of this slot and is being captured; end the capture before"
                )
            if captured is None or reader == _PER_THREAD_STREAM:
                # Gone, but what it was given may run on; or a name that means another stream on this thread.
                self.device.synchronize()
            else:
                order(reader, self.stream.handle)
            self._readers.discard(reader)

    def bring(self, image: int, resident: Resident) -> None:
        """Queue the copy of an image's embedding, for which the GPU waits where it is still on its way."""
        self.stream.wait(resident.written)
        self.stream.copy(self.embedding.address, resident.address, EMBEDDING_BYTES)
        self._image = image

    def bring_own(self, staging: Staging) -> None:
        """Queue the copy of an embedding that is no image of the runner's."""
        self._pending = True
        self._image = None
        self.stream.upload(self.embedding.address, staging.block)
        staging.queued(self.stream)

    def wait(self) -> None:
        """Wait for what is queued; raises what went wrong in it."""
        if self._alarm is None:
            self.stream.synchronize()
        else:
            self._alarm.record(self.stream)
            self._alarm.synchronize()
        self._pending = False

    def forget(self) -> None:
        """After a failure: nothing in the blocks is known."""
        self._image = self._padded = None

    def abandon(self) -> None:
        """In a forked process, where nothing here can be used: whoever asks finds it closed, and no lock held."""
        self.closed, self.lock = True, threading.Lock()

    def close(self) -> None:
        """Wait, and drop all that holds device memory of TensorRT; the device frees the rest. May be called again."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            # Memory must not go while queued work needs it; what fails here was told by the call it belongs to.
            with contextlib.suppress(InferenceError):
                self.stream.synchronize()
            for program in self._programs.values():
                program.close()
            self._programs.clear()
            self._padded = None
            # Arrays that the caller still holds keep the page-locked memory; without any it is freed here.
            self.host_in = self.host_out = self.scratch = np.empty(0, np.uint8)

    def _make_program(self, engine: Engine, bucket: Bucket, layout: Layout) -> Program:
        context = self._context(engine, bucket, layout, own_strategy=False)
        # Shape tensors are read when work is queued: a recording would keep the first call's values.
        recorded = self._graphs and not engine.host_inputs
        if recorded and not context.can_be_captured(self.stream.handle):
            # Only TensorRT-RTX answers so. Its own strategy records what it can; both at once is forbidden.
            context = self._context(engine, bucket, layout, own_strategy=True)
            recorded = False
        program = Program(engine, context, self.stream, recorded)
        if not engine.host_inputs:
            # What TensorRT does at the first run only (memory, compilation) must not fall into a recording, or into a call. On
            # zeros, because new memory and another bucket's coordinates are no labels: the decoder would read beside its table.
            self._pending = True
            self.stream.zero(self.device_in.address, self.device_in.size)
            program.enqueue_unrecorded()
        return program

    def _context(self, engine: Engine, bucket: Bucket, layout: Layout, *, own_strategy: bool) -> ExecutionContext:
        memory = self._activations.address
        context = engine.context(bucket.profile, self.stream.handle, memory, own_strategy=own_strategy)
        context.set_shape(EMBEDDING, EMBEDDING_SHAPE)
        context.set_address(EMBEDDING, self.embedding.address)
        for spec in engine.inputs:
            if spec.name == EMBEDDING:
                continue
            context.set_shape(spec.name, layout.shapes[spec.name])
            at = layout.offsets[spec.name]
            host = spec.name in engine.host_inputs
            context.set_address(spec.name, (self.host_in.ctypes.data if host else self.device_in.address) + at)
        for spec in engine.outputs:
            context.set_address(spec.name, self.device_out.address + layout.offsets[spec.name])
        return context
