"""`OnnxPrepared`: the graphs `prepare` and `decode_prepared` of a set in ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.contract import EMBEDDING_SHAPE, TensorSpec, term_specs
from trt_sam.errors import GraphError
from trt_sam.runtime.decoders.graph import OnnxDecoder
from trt_sam.runtime.decoders.kept import MANY_PROMPTS, KeptTerms
from trt_sam.runtime.session import open_session, specs_of

__all__ = ["PREPARED_PER_PASS", "OnnxPrepared"]

Array = npt.NDArray[Any]
Terms = Mapping[str, Any]
"""OrtValues by the names of `contract.term_specs`."""


PREPARED_PER_PASS = 4
"""How many prompts the second graph computes at once: 300 boxes peak at 930 MB with 4 and 1070 MB with 8, at the same speed."""


class OnnxPrepared:
    """The decoder of a set in two graphs, which are opened when they are first needed."""

    def __init__(self, prepare: Path, decode: Path, threads: int | None, like: OnnxDecoder, many: int = MANY_PROMPTS) -> None:
        """`like` is the set's decoder in one graph, whose results these two have to give; `many` as in `KeptTerms`."""
        self._paths, self._threads, self._like = (prepare, decode), threads, like
        self._kept: KeptTerms[Terms] = KeptTerms(self._make, many=many)
        self._last: tuple[Array, Any] | None = None
        """The embedding that a feed brought last, and it as an OrtValue."""

    def terms(self, image: Any, num_prompts: int) -> Terms | None:
        """The terms for a call on `image`, see `KeptTerms`; None where the decoder in one graph is quicker.

        Args:
            image: an OrtValue float32 [1, 256, 64, 64] that is the same object for every call on it; or an array, known by
                what it holds: a feed may bring its embedding in every call.
            num_prompts: of the call.

        Raises:
            GraphError: the graphs cannot be opened, or are not of this decoder.
        """
        return self._kept.for_call(self._placed(image) if isinstance(image, np.ndarray) else image, num_prompts)

    @cached_property
    def decoder(self) -> OnnxDecoder:
        """The graph that takes terms; raises GraphError where it cannot be opened, or is another decoder's."""
        path = self._paths[1]
        decoder = OnnxDecoder(path, self._threads, None, emulate_quantization=False, prepared=True)
        expected = (self._like.options, self._like.outputs, self._like.checkpoint_sha256)
        if (decoder.options, decoder.outputs, decoder.checkpoint_sha256) != expected:
            raise GraphError(f"{path} is not of the decoder beside it, but of another checkpoint or form; write the set again")
        return decoder

    @cached_property
    def _prepare(self) -> Any:
        path = self._paths[0]
        session, _ = open_session(path, self._threads, None, emulate_quantization=False)
        metadata = session.get_modelmeta().custom_metadata_map
        expected = (TensorSpec("image_embeddings", "float32", EMBEDDING_SHAPE),)
        if (specs_of(session.get_inputs()), specs_of(session.get_outputs())) != (expected, term_specs()):
            raise GraphError(f"{path} is a damaged or changed graph: its tensors are not those of prepare; write the set again")
        if metadata.get("trt_sam.checkpoint_sha256", "") != self._like.checkpoint_sha256:
            raise GraphError(f"{path} is of another checkpoint than the decoder beside it; write the set again")
        return session

    def _placed(self, image: Array) -> Any:
        """The OrtValue of an embedding: the same one as of the last, where that held the same."""
        # Half a millisecond, where the terms take 45.
        if self._last is None or not np.array_equal(self._last[0], image):
            held = image.copy()  # the caller may write on into its own
            self._last = held, require("onnxruntime", "to run an ONNX graph").OrtValue.ortvalue_from_numpy(held, "cpu", 0)
        return self._last[1]

    def _make(self, image: Any) -> Terms:
        names = [spec.name for spec in term_specs()]
        found = self._prepare.run_with_ort_values(names, {"image_embeddings": image})
        return dict(zip(names, found, strict=True))
