"""A float16 graph on the CPU, every float16 tensor rounded as a GPU would."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.contract import TensorSpec
from trt_sam.errors import InferenceError
from trt_sam.runtime.interface import checked_embedding, checked_inputs
from trt_sam.runtime.onnx_runner import OnnxRunner

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EmulationRunner"]

Array = npt.NDArray[Any]


class EmulationRunner:
    """Runs a float16 graph in `emulation.Float16Emulation`; the interface is `interface.Runner`."""

    def __init__(self, path: str | os.PathLike[str], graph: OnnxRunner) -> None:
        """Emulate the graph at `path`, which `graph` has opened and checked; `graph` is closed."""
        from trt_sam.graph.float16 import Float16Emulation

        require("onnx", "to emulate FP16")
        self.inputs: tuple[TensorSpec, ...] = graph.inputs
        self.outputs: tuple[TensorSpec, ...] = graph.outputs
        self.limits: Mapping[str, tuple[int, int]] = graph.limits
        graph.close()
        self._emulation: Float16Emulation | None = Float16Emulation(path, threads=len(os.sched_getaffinity(0)))
        self._image: npt.NDArray[np.float32] | None = None
        self.image_id = 0

    @property
    def largest(self) -> float:
        """Largest |x| so far of any tensor that is float16 in the graph (65504 is float16's limit); NaN where there was one."""
        seen = list(self._emulation.largest.values()) if self._emulation is not None else []
        return float(np.max(seen)) if seen else 0.0

    def set_image(self, embedding: npt.NDArray[np.float32]) -> None:
        """Keep a copy of `embedding` float32 [1, 256, 64, 64]; raises ContractError where it is not that."""
        self._image = checked_embedding(embedding)
        self.image_id += 1

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one feed (see `interface.Runner.run`); every output by name, float32, owned by the caller.

        Raises:
            ContractError: the feed does not fit, or there is no image.
            InferenceError: the runner is closed.
        """
        if self._emulation is None:
            raise InferenceError("the emulation is closed; open a new one")
        arrays = checked_inputs(feed, self.inputs, self.limits, has_image=self._image is not None)
        if self._image is not None:
            arrays.setdefault("image_embeddings", self._image)
        outputs = self._emulation.run(arrays)
        return {spec.name: outputs[spec.name] for spec in self.outputs}

    def close(self) -> None:
        """Free the session; safe to call again."""
        self._emulation = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
