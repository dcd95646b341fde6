"""`OnnxEncoder`: the image encoder of a graph in ONNX Runtime, photo to embedding. numpy, Pillow and onnxruntime; no torch."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._files import existing_file
from trt_sam._lazy import require
from trt_sam.contract import check_feed, encoder_input_specs, encoder_output_specs
from trt_sam.errors import GraphError, InferenceError, InputError
from trt_sam.graph.advice import EXPORT_SET
from trt_sam.imaging.frame import to_frame
from trt_sam.runtime.session import disabled_optimizers, reason_in, session_options, specs_of

__all__ = ["OnnxEncoder"]

ROLE = "encode"
_PROVIDERS = ("CPUExecutionProvider",)


class OnnxEncoder:
    """Runs an `encode` graph that `trt-sam export --encoder` wrote, on the CPU; `Predictor` takes it as its image encoder.

    ONNX Runtime computes a float16 graph in float32 on a CPU: it shows the rounding of weights, never overflow.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        """Open a graph.

        Args:
            path: the `.onnx` file.
            threads: CPU threads of one call; None takes the cores that this process may use.

        Raises:
            GraphError: the file is no ONNX graph, or not an image encoder of this package.
            InputError: it is missing or empty, or the number of threads is impossible.
            MissingDependencyError: onnxruntime is not installed.
        """
        ort = require("onnxruntime", "to run an ONNX graph")
        path = existing_file(path, "graph")
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}, must be at least 1; leave it out for the cores of this process")
        try:
            session = ort.InferenceSession(
                os.fspath(path),
                session_options(threads),
                providers=list(_PROVIDERS),
                disabled_optimizers=disabled_optimizers(_PROVIDERS),
            )
        except Exception as error:  # onnxruntime has a class per status, all directly under Exception
            raise GraphError(f"{path} is not an ONNX graph that can be loaded ({reason_in(error)}); export it again") from None
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        inputs, outputs = specs_of(session.get_inputs()), specs_of(session.get_outputs())
        fits = inputs == encoder_input_specs() and outputs in (
            encoder_output_specs(),
            encoder_output_specs(dtype="float16"),
        )
        if metadata.get("trt_sam.role") != ROLE or not fits:
            held = f"inputs {', '.join(map(str, inputs)) or 'none'}; outputs {', '.join(map(str, outputs)) or 'none'}"
            raise GraphError(f"{path} is not an image encoder ({held[:300]}); write one with {EXPORT_SET}")
        self._session: Any = session
        self._path = path
        self.sha256 = metadata.get("trt_sam.encoder_sha256", "")
        """Of the encoder's weights, as `ImageEncoder.sha256`; empty where its exporter did not know it."""
        self.checkpoint_sha256 = metadata.get("trt_sam.checkpoint_sha256", "")
        """Of the decoder that belongs to it."""

    def embed(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed a photo, uint8 [height, width, 3] RGB of any size, to float32 [1, 256, 64, 64].

        Raises:
            InputError: not such an array, or too narrow to be scaled.
            InferenceError: execution failed, the embedding is not finite, or the encoder is closed.
        """
        return self.embed_frame(*to_frame(rgb))

    def embed_frame(self, image: npt.NDArray[np.uint8], size: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """As `embed`, of the graph's own inputs, which `imaging.frame.to_frame` makes of a photo.

        Raises:
            ContractError: other types or shapes.
            InferenceError: as `embed`.
        """
        if self._session is None:
            raise InferenceError(f"the encoder of {self._path} is closed; open a new one")
        check_feed({"image": image, "image_size": size}, encoder_input_specs())
        try:
            found = self._session.run(None, {"image": image, "image_size": size})[0]
        except (Exception, MemoryError) as error:
            raise InferenceError(f"{self._path} failed in ONNX Runtime ({reason_in(error)})") from error
        embedding: npt.NDArray[np.float32] = found.astype(np.float32, copy=False)
        if not np.isfinite(embedding).all():
            raise InferenceError(f"{self._path} gave an embedding with NaN or infinity; export it in fp32")
        return embedding

    def close(self) -> None:
        """Free the session; safe to call again."""
        self._session = None
