"""A deserialized TensorRT engine in the terms of the contract: what the runner knows of TensorRT 10, 11 and RTX.

All three have the calls used here under the same names; what differs when building is `trt_sam.engine.flavour`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_sam._files import write_atomically
from trt_sam.contract import TensorSpec
from trt_sam.errors import InferenceError, ManifestError
from trt_sam.runner.complaints import Complaints

__all__ = ["Engine", "ExecutionContext", "Limits"]

Limits = Mapping[str, tuple[int, int]]
"""Least and largest value of each dynamic dimension."""

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}


class Engine:
    """An engine whose tensors were checked against its manifest.

    Args:
        trt: the binding module (`Flavour.trt`).
        engine: its ICudaEngine.
        inputs: the graph's inputs, in order.
        outputs: the graph's outputs, in order.
        profiles: limits of each optimization profile, in the engine's order.
        keep: what must live as long as the engine, its runtime and logger.
        runtime_cache: file of TensorRT-RTX's compiled kernels; read where it exists and fits this GPU, written by
            `save_runtime_cache`. Without effect on other flavours.
        complaints: what TensorRT says when it refuses a call; None where nobody listens.

    Raises:
        ManifestError: tensors, types or profiles of the engine are not those that are said.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        profiles: Sequence[Limits],
        keep: object = None,
        runtime_cache: Path | None = None,
        complaints: Complaints | None = None,
    ) -> None:
        self._keep = keep
        self._complaints = complaints or Complaints()
        self._engine: Any = engine
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.profiles = tuple(profiles)
        self.checkpoint_sha256 = ""
        """Hash of the decoder's weights of its checkpoint, as the manifest has it; empty where that does not know it."""
        names = [str(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
        found = {}
        for name in names:
            dtype = engine.get_tensor_dtype(name).name
            side = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
            found[name] = (side, _DTYPES.get(dtype, dtype.lower()))
        said = {s.name: ("input", s.dtype) for s in self.inputs} | {s.name: ("output", s.dtype) for s in self.outputs}
        if found != said:
            raise ManifestError(
                f"the engine has the tensors {_listed(found)}, its manifest says {_listed(said)}; build it again"
            )
        if engine.num_optimization_profiles != len(self.profiles):
            count = engine.num_optimization_profiles
            raise ManifestError(f"the engine has {count} profiles, its manifest says {len(self.profiles)}; build it again")
        self._trt = trt
        self.activation_bytes = max(int(engine.get_device_memory_size_for_profile_v2(p)) for p in range(len(self.profiles)))
        """Scratch memory that a context needs while it runs; contexts that never run at once can share one block."""
        self.is_rtx = hasattr(trt, "CudaGraphStrategy")
        self._cache_path = runtime_cache
        self._cache: Any = None
        self._saved = b""  # digest of what the file holds
        host = trt.TensorLocation.HOST
        self.host_inputs = frozenset(s.name for s in self.inputs if engine.get_tensor_location(s.name) == host)
        """Shape tensors: TensorRT reads them from host memory when work is queued."""

    @property
    def limits(self) -> dict[str, tuple[int, int]]:
        """Least and largest value of each dynamic dimension over all profiles."""
        merged: dict[str, tuple[int, int]] = {}
        for profile in self.profiles:
            for name, (low, high) in profile.items():
                least, most = merged.get(name, (low, high))
                merged[name] = (min(least, low), max(most, high))
        return merged

    def context(self, profile: int, stream: int, memory: int, *, own_strategy: bool = False) -> ExecutionContext:
        """Make an execution context for one profile.

        Args:
            profile: its number.
            stream: handle of the stream that it will run on.
            memory: address of `activation_bytes` of device memory, which the caller keeps as long as the context.
            own_strategy: TensorRT-RTX records and replays the work by itself (never together with a capture of ours).

        Raises:
            InferenceError: TensorRT could not, which is nearly always for want of GPU memory.
        """
        user = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        how = self._runtime_config(user, own_strategy=own_strategy) if self.is_rtx else user
        said = self._complaints
        said.forget()
        context = self._engine.create_execution_context(how)
        if context is None:
            words = "TensorRT could not make an execution context; is the GPU out of memory? nvidia-smi tells"
            raise InferenceError(said.after(words))
        # Queued on the stream of the work to come. Only an engine's first context would have a profile, 0, without it.
        if not context.set_optimization_profile_async(profile, stream):
            raise InferenceError(said.after(f"TensorRT refused profile {profile}"))
        if self.activation_bytes:
            context.set_device_memory(memory, self.activation_bytes)
        return ExecutionContext(context, said)

    def close(self) -> None:
        """Let go of TensorRT's engine, after all contexts: who keeps this object, in an error's frames, keeps no GPU memory."""
        self._engine = self._keep = self._cache = None

    def save_runtime_cache(self) -> None:
        """Write what TensorRT-RTX has compiled, if anything is new, under the runner's lock.

        Raises:
            InputError: the file cannot be written.
            InferenceError: TensorRT-RTX gave nothing to write.
        """
        if self._cache is None or self._cache_path is None:
            return
        serialized = self._cache.serialize()
        if serialized is None:
            raise InferenceError(self._complaints.after("TensorRT-RTX could not serialize it"))
        data = bytes(serialized)
        digest = hashlib.sha256(data).digest()
        if digest != self._saved:
            write_atomically(self._cache_path, data)
            self._saved = digest

    def _runtime_config(self, allocation: Any, *, own_strategy: bool) -> Any:
        trt = self._trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(allocation)
        # A recorded graph keeps the kernels it was recorded with: they must be the final ones, not those that LAZY starts with.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        strategies = trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if own_strategy else strategies.DISABLED
        # Without one, each context would compile its kernels again.
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._cache_path is not None:
                self._load_runtime_cache(self._cache_path)
        config.set_runtime_cache(self._cache)
        return config

    def _load_runtime_cache(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError:
            return  # none yet: the kernels are compiled again
        # TensorRT-RTX checks version, GPU and driver, and says False for another's: then it is written anew.
        if self._cache.deserialize(data):
            self._saved = hashlib.sha256(data).digest()


class ExecutionContext:
    """One execution context; remembers what it was told, so that a call like the last one says nothing twice."""

    def __init__(self, context: Any, complaints: Complaints) -> None:
        self._context: Any = context
        self._complaints = complaints
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def close(self) -> None:
        """Let go of TensorRT's context; it cannot be used any more."""
        self._context = None

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises InferenceError where the shape is outside the profile."""
        if self._shapes.get(name) == shape:
            return
        if not self._context.set_input_shape(name, shape):
            raise InferenceError(f"TensorRT refused shape {list(shape)} for {name}; it is outside the engine's profile")
        self._shapes[name] = shape

    def set_address(self, name: str, address: int) -> None:
        """Say where a tensor lies: device memory, or host memory for a shape tensor."""
        if self._addresses.get(name) == address:
            return
        if not self._context.set_tensor_address(name, address):
            raise InferenceError(self._complaints.after(f"TensorRT refused the address of {name}"))
        self._addresses[name] = address

    def can_be_captured(self, stream: int) -> bool:
        """Whether a CUDA graph of ours can record it; TensorRT-RTX says, the others always can."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(stream))

    def enqueue(self, stream: int) -> None:
        """Queue the inference; raises InferenceError where TensorRT could not."""
        if not self._context.execute_async_v3(stream):
            raise InferenceError(self._complaints.after("TensorRT could not queue the inference"))


def _listed(tensors: Mapping[str, tuple[str, str]]) -> str:
    return ", ".join(f"{side} {name} {dtype}" for name, (side, dtype) in sorted(tensors.items()))
