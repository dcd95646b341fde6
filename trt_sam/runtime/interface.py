"""What every runner of a decoder graph offers, whatever executes it. numpy only.

`OnnxRunner` (ONNX Runtime), `TorchRunner` (PyTorch) and the TensorRT runner have this interface; `Predictor` and the
comparison use nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from trt_sam.contract import EMBEDDING_SHAPE, TensorSpec, adapt_meta_feed, check_feed
from trt_sam.errors import ContractError
from trt_sam.runtime.call.decoded import Asked, Decoded, Masks, Numbers

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = [
    "PROMPTS_PER_PASS",
    "Call",
    "ImageCall",
    "PromptRunner",
    "Runner",
    "as_given",
    "checked_embedding",
    "checked_inputs",
    "is_photo",
    "passes",
]

Array = npt.NDArray[Any]

PROMPTS_PER_PASS = 8
"""How many prompts a runner on the CPU computes at once; more take turns, so that their intermediate tensors (about 36 MB a
prompt) take at most some 300 MB, and are no slower for it."""


class Runner(Protocol):
    """Runs a decoder graph. Not thread-safe: give each thread a runner of its own."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs, in order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs, in order, with the types that the graph has; `run` gives all but `mask_bits` as float32."""

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        """Least and largest value of each dynamic dimension, by name."""

    @property
    def image_id(self) -> int:
        """0 before the first `set_image`, then a new number after each: tells whose image is set."""

    def set_image(self, embedding: npt.NDArray[np.float32]) -> None:
        """Keep a copy of `embedding` float32 [1, 256, 64, 64] for the calls that follow.

        Raises:
            ContractError: another dtype or shape, or a value that is not finite.
        """

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one feed; a feed made for Meta's ONNX export is taken too (`contract.adapt_meta_feed`).

        Args:
            feed: arrays by input name, not changed. `image_embeddings` may be left out after `set_image`; where it is given,
                it counts for this call only.

        Returns:
            Every output by name, float32 (`mask_bits` uint8), in arrays that belong to the caller.

        Raises:
            ContractError: the feed does not fit the graph, or there is no image.
            InferenceError: execution failed, or the runner is closed.
        """

    def close(self) -> None:
        """Free everything; safe to call again."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Call(Protocol):
    """What `submit` gives: a call that is under way. For one thread."""

    def done(self) -> bool:
        """Whether what was queued has run; returns at once."""

    def result(self, *, copy: bool = False) -> Decoded:
        """Wait for the result, with `copy` in arrays that belong to the caller."""

    def drop(self) -> None:
        """Give the result up. May be called again."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class ImageCall(Protocol):
    """What `submit_image` gives: an image that is under way."""

    @property
    def number(self) -> int:
        """Of the image, at once; calls on it wait until it is there."""

    def done(self) -> bool:
        """Whether the image is there; returns at once."""

    def result(self) -> int:
        """Wait until it is there; gives its number."""


class PromptRunner(Runner, Protocol):
    """What `OnnxRunner` and `DecoderRunner` have in common: code written for the one runs with the other.

    Images are known by number; an image is an embedding or, of a set with an image encoder, a photo. Arguments are explained at
    `DecoderRunner.submit`.
    """

    @property
    def takes_photos(self) -> bool:
        """Whether it was opened on a set with an image encoder."""

    def embed(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed a photo, uint8 [height, width, 3] RGB of any size, to float32 [1, 256, 64, 64]."""

    def submit_image(self, image: Any) -> ImageCall:
        """As `add_image`, without waiting."""

    def add_image(self, image: Any) -> int:
        """Keep an image, and give its number."""

    def use_image(self, image: int) -> None:
        """Make an image that is held the current one; raises ContractError where it is not held any more."""

    def drop_image(self, image: int) -> None:
        """Forget an image. Nothing happens where it is not held."""

    def decode(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        masks: Masks = "best",
        copy: bool = False,
        **asked: Unpack[Asked],
    ) -> Decoded:
        """Decode prompts, coordinates in the 1024 frame, and wait."""

    def decode_many(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        masks: Masks = "best",
        **asked: Unpack[Asked],
    ) -> Decoded:
        """As `decode`, for any number of prompts; the arrays belong to the caller. `image` may name one for each prompt."""

    def submit(
        self,
        points: Numbers = None,
        labels: Numbers = None,
        boxes: Numbers = None,
        mask_input: Numbers = None,
        *,
        masks: Masks = "best",
        **asked: Unpack[Asked],
    ) -> Call:
        """As `decode`, without waiting."""

    def most_prompts(self, num_tokens: int, *, with_mask: bool = False, image_size: tuple[int, int] | None = None) -> int:
        """How many prompts of `num_tokens` tokens each are computed at once."""


def checked_embedding(embedding: Array) -> npt.NDArray[np.float32]:
    """Return a copy of an image embedding, float32 [1, 256, 64, 64], or raise ContractError."""
    spec = TensorSpec("image_embeddings", "float32", EMBEDDING_SHAPE)
    # A copy, because the runner keeps it and the caller may write on into the original.
    return np.array(check_feed({spec.name: embedding}, (spec,))[spec.name])


def is_photo(image: Array) -> bool:
    """Whether what `set_image` was given is meant as a photo, uint8 [height, width, 3], not as an embedding."""
    return bool(image.dtype == np.uint8 and image.ndim == 3)


def checked_inputs(
    feed: Mapping[str, Array],
    inputs: tuple[TensorSpec, ...],
    limits: Mapping[str, tuple[int, int]],
    *,
    has_image: bool,
) -> dict[str, Array]:
    """Adapt and check a feed for `Runner.run`; the result lacks `image_embeddings` where the image that is set counts.

    Raises:
        ContractError: the feed does not fit, or it has no image and none is set.
    """
    adapted = adapt_meta_feed(feed, inputs)
    if "image_embeddings" not in adapted:
        if not has_image:
            raise ContractError("there is no image: give image_embeddings in the feed, or call set_image before run")
        inputs = tuple(spec for spec in inputs if spec.name != "image_embeddings")
    return check_feed(adapted, inputs, limits)


def passes(num_prompts: int, most: int) -> Iterator[slice]:
    """The rows of a feed of `num_prompts`, at most `most` at a time, in order."""
    return (slice(start, min(start + most, num_prompts)) for start in range(0, num_prompts, most))


def as_given(output: Array, *, copy: bool = False) -> Array:
    """An output as `Runner.run` gives it: float32 but for bytes of bits; a copy only where it must be, or `copy` asks."""
    return output.astype(np.uint8 if output.dtype == np.uint8 else np.float32, copy=copy)
