"""`EncoderModel`: the image encoder's graph in ONNX Runtime, with the inputs and output that its engine has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trt_sam.errors import ContractError
from trt_sam.runtime.onnx_encoder import OnnxEncoder
from trt_sam.serve.triton.models.backend import answered, input_array, parameter, response, version_folder

__all__ = ["EncoderModel"]


class EncoderModel:
    """`sam_encoder` of a repository for the CPU."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graph beside model.py."""
        self._encoder = OnnxEncoder(version_folder(args) / "model.onnx", threads=parameter(args, "threads", 0) or None)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request."""
        return answered(requests, self._answer)

    def finalize(self) -> None:
        """Free the graph."""
        self._encoder.close()

    def _answer(self, request: Any) -> Any:
        image, size = input_array(request, "image"), input_array(request, "image_size")
        if image is None or size is None:
            raise ContractError("image and image_size are both needed")
        return response({"image_embeddings": self._encoder.embed_frame(image, size)}, ["image_embeddings"])
