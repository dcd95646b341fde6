"""A decoder graph in a session of ONNX Runtime: what it takes and gives, and one pass of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import TensorSpec
from trt_sam.runtime.graph_check import checked_options
from trt_sam.runtime.session import Providers, open_session, specs_of

__all__ = ["OnnxDecoder"]

Array = npt.NDArray[Any]

_CUDA_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


class OnnxDecoder:
    """One graph; `OnnxRunner` has one, or some of a set, and explains the arguments and errors."""

    def __init__(
        self,
        path: Path,
        threads: int | None,
        providers: Providers | None,
        *,
        emulate_quantization: bool,
        prepared: bool = False,
    ) -> None:
        """Open the graph at `path`; a `prepared` one takes the image's terms for its embedding. Raises as `OnnxRunner`."""
        self._session, provider = open_session(path, threads, providers, emulate_quantization=emulate_quantization)
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.inputs = specs_of(self._session.get_inputs())
        self.outputs = specs_of(self._session.get_outputs())
        self.prepared = prepared
        self.options = checked_options(path, self.metadata, self.inputs, self.outputs, prepared=prepared)
        self.device = "cuda" if provider in _CUDA_PROVIDERS else "cpu"

    @property
    def checkpoint_sha256(self) -> str:
        """Hash of the decoder weights in the graph; empty where its exporter did not know it."""
        return self.metadata.get("trt_sam.checkpoint_sha256", "")

    def execute(self, feed: Mapping[str, Array], rows: slice, image: Mapping[str, Any], outputs: Mapping[str, Array]) -> None:
        """One pass: the prompts in `rows` of `feed`, into the same rows of `outputs`.

        Args:
            feed: contiguous and checked; what the graph does not take is left out.
            rows: of the prompts.
            image: OrtValues by name, of what the graph takes of the image: `image_embeddings`, if the feed has none; or terms.
            outputs: every output of the graph, contiguous, in its dtype.
        """
        binding = self._session.io_binding()
        for name, value in image.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in _rows_of(feed, self.inputs, rows).items():
            binding.bind_cpu_input(name, array)
        for name, array in _rows_of(outputs, self.outputs, rows).items():
            binding.bind_output(name, "cpu", 0, np.dtype(array.dtype).type, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)


def _rows_of(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], rows: slice) -> dict[str, Array]:
    """Views of the prompts in `rows`; what has no axis of prompts is whole, what `specs` do not name is left out."""
    return {
        spec.name: arrays[spec.name][rows] if spec.dims[0] == "num_prompts" else arrays[spec.name]
        for spec in specs
        if spec.name in arrays
    }
