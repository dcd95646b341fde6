"""The encoder and the decoder as `sam` calls them: inside of Triton (BLS), whatever executes them.

An embedding never goes to a client. On a GPU it stays where the encoder's engine left it, as long as the engine gives float32;
a float16 one is widened on the host, as the decoder takes float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import TensorSpec
from trt_sam.errors import InferenceError, first_line
from trt_sam.imaging.frame import to_frame
from trt_sam.runtime.held import HeldImages
from trt_sam.serve.triton.config import DECODER, ENCODER
from trt_sam.serve.triton.models.backend import Array, utils

__all__ = ["CallsDecoder"]

_EMBEDDING = "image_embeddings"
_ASKED = ("low_res_masks", "iou_predictions")


class CallsDecoder:
    """A `serve.model.ServedRunner` that takes pictures and holds the embeddings of `images` of them."""

    takes_photos = True

    def __init__(self, contract: Path, images: int) -> None:
        """Call the models that `contract`, the file beside `sam`'s model.py, tells of."""
        said = json.loads(contract.read_text(encoding="utf-8"))
        self._inputs, self._outputs = (tuple(_spec(*each) for each in said[kind]) for kind in ("inputs", "outputs"))
        self._limits = {name: (low, high) for name, (low, high) in said["limits"].items()}
        self._most: int = said["most_prompts"]
        self._stays_on_gpu = said["on_gpu"] and said["embedding_dtype"] == "float32"
        self._held = HeldImages(images)
        self._image: Any = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Of the decoder."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Of the decoder."""
        return self._outputs

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        """Of the decoder's engine."""
        return self._limits

    def add_image(self, image: npt.NDArray[np.uint8]) -> int:
        """Embed uint8 [height, width, 3] RGB and hold it; gives its number."""
        frame, size = to_frame(image)
        (found,) = self._call(ENCODER, {"image": frame, "image_size": size}, [_EMBEDDING], on_gpu=self._stays_on_gpu)
        # On the host a tensor lies in memory that the server and its models share, of which there is little.
        held = np.array(found.as_numpy(), np.float32) if found.is_cpu() else found
        return self._held.put(held)

    def use_image(self, image: int) -> None:
        """Take it for the calls that follow; ContractError where it is not held any more."""
        self._image = self._held.get(image)

    def drop_image(self, image: int) -> None:
        """Forget it."""
        self._held.drop(image)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The decoder's answer to a feed without embedding."""
        found = self._call(DECODER, {_EMBEDDING: self._image, **feed}, list(_ASKED), on_gpu=False)
        return {name: each.as_numpy() for name, each in zip(_ASKED, found, strict=True)}

    def most_prompts(self, num_tokens: int, *, with_mask: bool = False) -> int:
        """Prompts of one call."""
        return self._most

    def close(self) -> None:
        """Forget all images."""
        self._held.clear()
        self._image = None

    def _call(self, model: str, arrays: Mapping[str, Any], outputs: list[str], *, on_gpu: bool) -> list[Any]:
        triton = utils()
        where = triton.TRITONSERVER_MEMORY_GPU if on_gpu else triton.TRITONSERVER_MEMORY_CPU
        request = triton.InferenceRequest(
            model_name=model,
            inputs=[_tensor(triton, name, array) for name, array in arrays.items()],
            requested_output_names=outputs,
            preferred_memory=triton.PreferredMemory(where, 0),
        )
        answer = request.exec()
        if answer.has_error():
            raise InferenceError(f"{model}: {first_line(Exception(answer.error().message()))}")
        return [triton.get_output_tensor_by_name(answer, name) for name in outputs]


def _tensor(triton: Any, name: str, array: Any) -> Any:
    return triton.Tensor(name, np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array


def _spec(name: str, dtype: str, dims: list[int | str]) -> TensorSpec:
    return TensorSpec(name, dtype, tuple(dims))
