"""The image encoder of a set on a GPU: a photo from the host to an embedding in device memory.

It has a stream of its own, of the lowest priority, so that clicks on images that are there go before it, and memory of its own,
which its photos use one after the other. The embedding is copied on the device to wherever it is wanted.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_BYTES, EMBEDDING_SHAPE, FRAME_SIZE, encoder_input_specs, encoder_output_specs
from trt_sam.cuda.device import Device
from trt_sam.cuda.page_locked import page_locked
from trt_sam.cuda.streams import Stream
from trt_sam.errors import InferenceError, ManifestError
from trt_sam.runner.engine import Engine
from trt_sam.runner.images.staging import Stages, Staging
from trt_sam.runner.program import Program

__all__ = ["Encoder"]

_FRAME_AT = 256
"""Where the picture begins in the input block, after its size: TensorRT wants addresses aligned so."""
_ROW_BYTES = FRAME_SIZE * 3


class Encoder:
    """Used in the device's context; under which lock, each method says.

    Args:
        device: owns the memory.
        engine: of an `encode` graph, whose embedding is float32.
        graphs: record the inference as a CUDA graph where that can be done.

    Raises:
        ManifestError: the engine gives another embedding.
        InferenceError: the GPU has too little memory.
    """

    def __init__(self, device: Device, engine: Engine, *, graphs: bool) -> None:
        if (engine.inputs, engine.outputs) != (encoder_input_specs(), encoder_output_specs()) or engine.host_inputs:
            given = "; ".join(map(str, (*engine.inputs, *engine.outputs)))
            raise ManifestError(f"the image encoder's engine has {given}: it was built by another version; build the set again")
        self._device, self._engine, self._graphs = device, engine, graphs
        self.lock = threading.Lock()
        """Held while a photo waits, so that nobody frees the memory meanwhile; the runner's lock may be taken before it."""
        self.closed = False
        self.stream = Stream(device)
        nbytes = _FRAME_AT + FRAME_SIZE * _ROW_BYTES
        self._input = device.buffer(nbytes)
        self._output = device.buffer(EMBEDDING_BYTES)
        self._activations = device.buffer(max(256, engine.activation_bytes))
        self._stages = Stages(device, nbytes)
        self._found: npt.NDArray[np.float32] | None = None
        self._program: Program | None = None

    def stage(self, picture: npt.NDArray[np.uint8]) -> Staging:
        """A scaled photo, uint8 [height, width, 3], in a staging memory; under `lock`: this waits where both are still read."""
        staging = self._stages.next()
        height, width, _ = picture.shape
        staging.block[:8].view(np.int32)[:] = height, width
        frame: npt.NDArray[np.uint8] = staging.block[_FRAME_AT:].reshape(FRAME_SIZE, FRAME_SIZE, 3)
        frame[:height, :width] = picture
        return staging

    def encode(self, staging: Staging, address: int | None = None) -> None:
        """Queue the encoder on a staged photo, and the copy of its embedding to `address`; under the runner's lock.

        After an error the stream must be waited for.

        Raises:
            InferenceError: TensorRT or CUDA failed.
        """
        program = self._made()
        height = int(staging.block[:4].view(np.int32)[0])
        # What lies beyond the photo may hold anything: rows below it are not copied.
        self.stream.upload(self._input.address, staging.block[: _FRAME_AT + height * _ROW_BYTES])
        staging.queued(self.stream)
        program.enqueue()
        if address is not None:
            self.stream.copy(address, self._output.address, EMBEDDING_BYTES)

    def download(self) -> None:
        """Queue the copy of the last embedding to the host, under the runner's lock."""
        if self._found is None:
            self._found = page_locked(self._device, EMBEDDING_BYTES).view(np.float32).reshape(EMBEDDING_SHAPE)
        self.stream.download(self._found.reshape(-1).view(np.uint8), self._output.address)

    def embedding(self) -> npt.NDArray[np.float32]:
        """A copy of what was downloaded, once the stream has been waited for; raises InferenceError where it is not finite."""
        assert self._found is not None
        if not np.isfinite(self._found).all():
            raise InferenceError("the image encoder gave an embedding with NaN or infinity; build it with --precision fp32")
        return self._found.copy()

    def warm_up(self) -> None:
        """Make what the first photo would make, and queue one inference; under the runner's lock."""
        self._made()

    def close(self) -> None:
        """Wait, and drop what holds device memory of TensorRT; the device frees the rest. May be called again."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            with contextlib.suppress(InferenceError):
                self.stream.synchronize()
            if self._program is not None:
                self._program.close()
            self._program = self._found = None
            self._stages.close()

    def _made(self) -> Program:
        if self._program is None:
            self._program = self._make()
        return self._program

    def _make(self) -> Program:
        context = self._context(own_strategy=False)
        recorded = self._graphs
        if recorded and not context.can_be_captured(self.stream.handle):
            context = self._context(own_strategy=True)
            recorded = False
        program = Program(self._engine, context, self.stream, recorded)
        # What TensorRT does at the first run only must not fall into a recording.
        self.stream.zero(self._input.address, self._input.size)
        program.enqueue_unrecorded()
        program.record()
        return program

    def _context(self, *, own_strategy: bool) -> Any:
        engine = self._engine
        context = engine.context(0, self.stream.handle, self._activations.address, own_strategy=own_strategy)
        size, image = self._input.address, self._input.address + _FRAME_AT
        for spec, address in zip(engine.inputs, (image, size), strict=True):
            context.set_shape(spec.name, tuple(int(n) for n in spec.dims))
            context.set_address(spec.name, address)
        context.set_address(engine.outputs[0].name, self._output.address)
        return context
