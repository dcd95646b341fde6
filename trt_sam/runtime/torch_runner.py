"""`TorchRunner`: the decoder in PyTorch behind the runners' interface. The reference, and what runs before any export."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from trt_sam.contract import TensorSpec, input_specs, output_specs, size_of
from trt_sam.errors import InferenceError
from trt_sam.model import SamDecoder
from trt_sam.runtime.interface import PROMPTS_PER_PASS, checked_embedding, checked_inputs, passes

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TorchRunner"]

Array = npt.NDArray[Any]


class TorchRunner:
    """Runs a float32 `SamDecoder` on the CPU; the interface is `interface.Runner`. Takes mask_input, gives four masks."""

    def __init__(self, decoder: SamDecoder) -> None:
        """Run `decoder` (in eval mode); it is shared, not copied."""
        self._decoder: SamDecoder | None = decoder
        self._image: npt.NDArray[np.float32] | None = None
        self._image_id = 0
        self.checkpoint_sha256: str = getattr(decoder, "checkpoint_sha256", "")
        """Of the decoder's weights as they were loaded; empty where they are from no checkpoint."""
        self.inputs: tuple[TensorSpec, ...] = input_specs(mask_input=True)
        self.outputs: tuple[TensorSpec, ...] = output_specs()
        self.limits: Mapping[str, tuple[int, int]] = {"num_prompts": (1, 2**31 - 1), "num_points": (1, 2**31 - 1)}

    @property
    def image_id(self) -> int:
        """0 before the first `set_image`, then a new number after each."""
        return self._image_id

    def set_image(self, embedding: npt.NDArray[np.float32]) -> None:
        """Keep a copy of `embedding` float32 [1, 256, 64, 64]; raises ContractError where it is not that."""
        self._image = checked_embedding(embedding)
        self._image_id += 1

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one feed (see `interface.Runner.run`); every output by name, float32, owned by the caller.

        Many prompts are computed `most_prompts` at a time: beside the results, memory does not grow with their number.

        Raises:
            ContractError: the feed does not fit, or there is no image.
            InferenceError: PyTorch failed, or the runner is closed.
        """
        if self._decoder is None:
            raise InferenceError("the PyTorch runner is closed; open a new one")
        arrays = checked_inputs(feed, self.inputs, self.limits, has_image=self._image is not None)
        if self._image is not None:
            arrays.setdefault("image_embeddings", self._image)
        sizes = {"num_prompts": len(arrays["point_coords"])}
        outputs = {spec.name: np.empty([size_of(dim, sizes) for dim in spec.dims], spec.dtype) for spec in self.outputs}
        try:
            for rows in passes(sizes["num_prompts"], PROMPTS_PER_PASS):
                # The image is shared by all prompts.
                parts = (arrays[s.name] if s.name == "image_embeddings" else arrays[s.name][rows] for s in self.inputs)
                with torch.inference_mode():
                    results = self._decoder(*map(torch.from_numpy, parts))
                for spec, tensor in zip(self.outputs, results, strict=True):
                    outputs[spec.name][rows] = tensor.numpy()
        except (RuntimeError, MemoryError) as error:
            raise InferenceError(f"the decoder failed in PyTorch ({str(error).partition(chr(10))[0]})") from error
        return outputs

    def most_prompts(self, num_tokens: int, *, with_mask: bool = False, image_size: tuple[int, int] | None = None) -> int:
        """How many prompts are computed at once, whatever their `num_tokens` and mask; a call takes more, which take turns."""
        return PROMPTS_PER_PASS

    def close(self) -> None:
        """Let go of the decoder and the image; safe to call again."""
        self._decoder = self._image = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
