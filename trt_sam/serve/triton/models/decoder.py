"""`DecoderModel`: the mask decoder's graph in ONNX Runtime, with the tensors that its engine has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trt_sam.runtime.interface import PROMPTS_PER_PASS
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.serve.faults import bad_prompt
from trt_sam.serve.settings import ServeSettings
from trt_sam.serve.triton.models.backend import answered, input_array, parameter, response, version_folder

__all__ = ["DecoderModel"]


_MOST_TOKENS = PROMPTS_PER_PASS * (ServeSettings().points + 4)
"""What `sam` sends at most: points, a box's corners, and what fills up. Memory grows with the square of a prompt's."""


class DecoderModel:
    """`sam_decoder` of a repository for the CPU."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graph beside model.py."""
        self._runner = OnnxRunner(version_folder(args) / "model.onnx", threads=parameter(args, "threads", 0) or None)
        self._names = [spec.name for spec in self._runner.inputs]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request."""
        return answered(requests, self._answer)

    def finalize(self) -> None:
        """Free the graph."""
        self._runner.close()

    def _answer(self, request: Any) -> Any:
        given = {name: input_array(request, name) for name in self._names}
        tokens = math.prod(getattr(given.get("point_labels"), "shape", ()))
        if tokens > _MOST_TOKENS:
            raise bad_prompt(f"the request has {tokens} points, at most {_MOST_TOKENS} go into one; send several")
        outputs = self._runner.run({name: array for name, array in given.items() if array is not None})
        return response(outputs, request.requested_output_names())
