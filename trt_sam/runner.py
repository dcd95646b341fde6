"""The TensorRT runner: a built engine behind the interface of `trt_sam.interface.Runner`.

Everything is allocated when it is opened, for the largest shapes of the profiles. A call is one copy to the GPU, the
inference and one copy back, queued on one stream of its own, then one wait.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from trt_sam._engine import Engine, ExecutionContext, Limits
from trt_sam.contract import EMBEDDING_SHAPE, TensorSpec
from trt_sam.cuda import Device, Stream, page_locked
from trt_sam.errors import ContractError, InferenceError, ManifestError
from trt_sam.interface import checked_embedding, checked_inputs

__all__ = ["DecoderRunner"]

Array = npt.NDArray[Any]

_EMBEDDING = "image_embeddings"
_EMBEDDING_BYTES = 4 * prod(EMBEDDING_SHAPE)
_ALIGNMENT = 256
"""What TensorRT asks of tensor addresses."""


@dataclass(frozen=True)
class _Layout:
    """Where the tensors of calls with the same shapes lie in the blocks, and numpy views of the page-locked ones."""

    profile: int
    shapes: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    offsets: Mapping[str, int]
    input_bytes: int
    output_bytes: int


class DecoderRunner:
    """Runs a decoder engine on a GPU. Any thread may call it; calls wait for each other.

    Args:
        engine: the engine; `open` makes one from an engine set.
        device: the GPU; the runner owns it and closes it.

    Raises:
        InferenceError: the GPU has too little memory for the largest shapes, or CUDA failed.
    """

    def __init__(self, engine: Engine, device: Device) -> None:
        self.inputs: tuple[TensorSpec, ...] = engine.inputs
        self.outputs: tuple[TensorSpec, ...] = engine.outputs
        self.limits: Limits = engine.limits
        self.image_id = 0
        self._engine: Engine | None = engine
        self._closed = False
        self._device = device
        self._stream: Stream = None  # type: ignore[assignment]  # until CUDA gives it, see _close
        self._lock = threading.Lock()
        self._layouts: dict[tuple[object, ...], _Layout] = {}
        self._contexts: list[ExecutionContext] = []
        self._small = tuple(spec for spec in self.inputs if spec.name != _EMBEDDING)
        most = {name: high for name, (_, high) in self.limits.items()}
        try:
            self._stream = stream = device.stream()
            input_bytes = self._extent(self._small, most)
            output_bytes = self._extent(self.outputs, most)
            self._resident = device.buffer(_EMBEDDING_BYTES)
            self._passing = device.buffer(_EMBEDDING_BYTES)  # an embedding that came with a feed, for its call only
            self._device_in = device.buffer(input_bytes)
            self._device_out = device.buffer(output_bytes)
            self._host_embedding = page_locked(device, _EMBEDDING_BYTES)
            self._host_in = page_locked(device, input_bytes)
            self._host_out = page_locked(device, output_bytes)
            with device.active():
                for profile in range(len(engine.profiles)):
                    self._contexts.append(engine.context(profile, stream.handle))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, role: str = "decode", device: int = 0) -> Self:
        """Open the engine of the set in `folder` (or of a manifest file) that has `role`, on GPU number `device`.

        Raises:
            MissingDependencyError: PyCUDA, or the TensorRT that built the set, is not installed.
            ManifestError: no set, a changed file, or one that does not fit this TensorRT or GPU; says what to do.
            InferenceError: no usable GPU, or too little memory.
        """
        from trt_sam.manifest import open_manifest
        from trt_sam.tensorrt import load_flavour

        manifest = open_manifest(folder, verify=False)  # `read` below checks the one file that is used
        graph = manifest.graph(role)
        flavour = load_flavour("rtx" if manifest.flavour == "tensorrt_rtx" else "tensorrt")
        manifest.check_fits(flavour, None)
        gpu = Device(device)
        try:
            manifest.check_fits(flavour, gpu.compute_capability)
            plan = manifest.read(graph.engine)
            with gpu.active():
                logger = flavour.trt.Logger(flavour.trt.Logger.WARNING)
                runtime = flavour.trt.Runtime(logger)
                flavour.check_engine(runtime, plan)
                deserialized = runtime.deserialize_cuda_engine(plan)
                if deserialized is None:
                    raise ManifestError(f"{flavour.title} could not load {graph.engine.name}; its log has the reason")
                profiles = [
                    {name: (getattr(shapes, name)[0], getattr(shapes, name)[2]) for name in graph.limits}
                    for shapes in manifest.recipe.profiles
                ]
                engine = Engine(flavour.trt, deserialized, graph.inputs, graph.outputs, profiles, keep=(runtime, logger))
                # The runner's close must drop the last references, in the right order.
                del deserialized, runtime, logger
        except BaseException:
            gpu.close()
            raise
        return cls(engine, gpu)

    def set_image(self, embedding: npt.NDArray[np.float32]) -> None:
        """Keep `embedding` float32 [1, 256, 64, 64] on the GPU for the calls that follow.

        Raises:
            ContractError: another dtype or shape, or a value that is not finite.
            InferenceError: CUDA failed, or the runner is closed.
        """
        checked = checked_embedding(embedding)
        with self._call():
            self._upload_embedding(checked, self._resident.address)
            # The staging memory is written again by the next embedding, which may come before the next run.
            self._stream.synchronize()
            self.image_id += 1

    def run(self, feed: Mapping[str, Array], *, copy: bool = True) -> dict[str, Array]:
        """Run one feed, as `trt_sam.interface.Runner.run`.

        Args:
            feed: arrays by input name, not changed; Meta's feed is taken too. `image_embeddings` may be left out after
                `set_image`; where it is given, it counts for this call only.
            copy: False gives views of the runner's page-locked memory, in the graph's own dtypes: valid until its next `run`,
                readable until they are dropped, also after `close`.

        Returns:
            Every output by name: float32 arrays that belong to the caller, or the views.

        Raises:
            ContractError: the feed does not fit the graph, or there is no image.
            InferenceError: execution failed (the message says so if that closed the runner), or the runner is closed.
        """
        with self._call():
            checked = checked_inputs(feed, self.inputs, self.limits, has_image=self.image_id > 0)
            layout = self._layout(checked)
            embedding = self._resident.address
            if _EMBEDDING in checked:
                embedding = self._passing.address
                self._upload_embedding(checked[_EMBEDDING], embedding)
            for name, view in layout.inputs.items():
                np.copyto(view, checked[name])
            self._enqueue(layout, embedding)
            self._stream.synchronize()
            if not copy:
                return dict(layout.outputs)
            return {name: view.astype(np.float32) for name, view in layout.outputs.items()}

    def device_times(self, feed: Mapping[str, Array], count: int) -> list[float]:
        """Run one feed `count` times (after one that does not count) and time the inference alone, without copies.

        Returns milliseconds between CUDA events before and after each, every one waited for before the next is queued.

        Raises:
            ContractError: the feed does not fit the graph, or there is no image.
            InferenceError: execution failed, or the runner is closed.
        """
        with self._call(), contextlib.ExitStack() as stack:
            checked = checked_inputs(feed, self.inputs, self.limits, has_image=self.image_id > 0)
            layout = self._layout(checked)
            embedding = self._resident.address
            if _EMBEDDING in checked:
                embedding = self._passing.address
                self._upload_embedding(checked[_EMBEDDING], embedding)
            for name, view in layout.inputs.items():
                np.copyto(view, checked[name])
            self._enqueue(layout, embedding)
            self._stream.synchronize()
            first, last = self._device.event(timing=True), self._device.event(timing=True)
            stack.callback(first.close)
            stack.callback(last.close)
            times = []
            for _ in range(count):
                first.record(self._stream)
                self._contexts[layout.profile].enqueue(self._stream.handle)
                last.record(self._stream)
                last.synchronize()
                times.append(last.elapsed_ms(first))
            return times

    def close(self) -> None:
        """Free everything; safe to call again. A call under way on another thread ends first."""
        with self._lock:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """One call at a time, in the GPU's context, leaving nothing queued whatever happens."""
        with self._lock:
            if self._engine is None:
                raise InferenceError("the runner is closed; open a new one")
            try:
                with self._device.active():
                    yield
            except ContractError:
                raise  # found before anything was queued
            except BaseException as error:
                self._settle(error)
                raise

    def _settle(self, error: BaseException) -> None:
        """After a failure: wait for what is queued, which reads memory that the next call writes; close where that fails."""
        try:
            with self._device.active():
                self._stream.synchronize()
        except InferenceError:
            self._close()
            raise InferenceError(f"{error}; the runner is closed, open a new one") from error

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(InferenceError), self._device.active():
            if self._stream is not None:
                # Memory must not go while queued work needs it; what fails here was told by the call it belongs to.
                with contextlib.suppress(InferenceError):
                    self._stream.synchronize()
            # TensorRT frees device memory here: contexts before their engine, all before CUDA's context is switched away.
            self._contexts.clear()
            self._engine = None
        self._contexts.clear()
        self._engine = None
        self._layouts.clear()
        # Arrays that the caller still holds keep the page-locked memory; without any it is freed here.
        self._host_embedding = self._host_in = self._host_out = np.empty(0, np.uint8)
        self._device.close()

    def _upload_embedding(self, embedding: Array, address: int) -> None:
        np.copyto(self._host_embedding.view(np.float32).reshape(EMBEDDING_SHAPE), embedding)
        self._stream.upload(address, self._host_embedding)

    def _enqueue(self, layout: _Layout, embedding: int) -> None:
        context = self._contexts[layout.profile]
        host = self._engine.host_inputs if self._engine else frozenset()
        context.set_shape(_EMBEDDING, EMBEDDING_SHAPE)
        context.set_address(_EMBEDDING, embedding)
        for name, view in layout.inputs.items():
            context.set_shape(name, layout.shapes[name])
            if name in host:
                context.set_address(name, view.ctypes.data)
            else:
                context.set_address(name, self._device_in.address + layout.offsets[name])
        for name in layout.outputs:
            context.set_address(name, self._device_out.address + layout.offsets[name])
        self._stream.upload(self._device_in.address, self._host_in[: layout.input_bytes])
        context.enqueue(self._stream.handle)
        self._stream.download(self._host_out[: layout.output_bytes], self._device_out.address)

    def _layout(self, feed: Mapping[str, Array]) -> _Layout:
        """The layout for the shapes of a checked feed, made at the first call with them."""
        sizes: dict[str, int] = {}
        for spec in self._small:
            sizes.update({dim: n for dim, n in zip(spec.dims, feed[spec.name].shape, strict=True) if isinstance(dim, str)})
        if "orig_im_size" in feed:
            sizes["height"], sizes["width"] = (int(n) for n in feed["orig_im_size"])
        key = tuple(sizes.items())
        if key not in self._layouts:
            self._layouts[key] = self._make_layout(sizes)
        return self._layouts[key]

    def _make_layout(self, sizes: Mapping[str, int]) -> _Layout:
        assert self._engine is not None
        profile = _fitting(self._engine.profiles, sizes)
        shapes = {s.name: _shape(s, sizes) for s in (*self._small, *self.outputs)}
        offsets: dict[str, int] = {}
        views: list[dict[str, Array]] = []
        ends = []
        for specs, block in ((self._small, self._host_in), (self.outputs, self._host_out)):
            here, at, end = {}, 0, 0
            for spec in specs:
                nbytes = prod(shapes[spec.name]) * np.dtype(spec.dtype).itemsize
                offsets[spec.name], end = at, at + nbytes
                here[spec.name] = block[at:end].view(spec.dtype).reshape(shapes[spec.name])
                at = _aligned(end)
            views.append(here)
            ends.append(end)
        return _Layout(profile, shapes, views[0], views[1], offsets, ends[0], ends[1])

    @staticmethod
    def _extent(specs: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> int:
        return sum(_aligned(prod(_shape(spec, sizes)) * np.dtype(spec.dtype).itemsize) for spec in specs)


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _fitting(profiles: tuple[Limits, ...], sizes: Mapping[str, int]) -> int:
    """The first profile that takes `sizes`, raises ContractError where none does."""
    for index, limits in enumerate(profiles):
        if all(limits[dim][0] <= size <= limits[dim][1] for dim, size in sizes.items() if dim in limits):
            return index
    asked = ", ".join(f"{dim} = {size}" for dim, size in sizes.items())
    taken = "; or ".join(", ".join(f"{dim} {low} to {high}" for dim, (low, high) in p.items()) for p in profiles)
    raise ContractError(f"no profile of this engine takes {asked}; it takes {taken}; split or pad the call")
