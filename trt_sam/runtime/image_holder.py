"""The image of a `Predictor`: set, restored, forgotten, and kept apart between threads; the attributes are `SamPredictor`'s."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.contract import FRAME_SIZE
from trt_sam.errors import ContractError, InputError
from trt_sam.imaging.origin import check_encoder_of_runner
from trt_sam.imaging.photos import frame_shape
from trt_sam.runtime.interface import Runner, checked_embedding
from trt_sam.runtime.prompt_tokens import as_array, as_image_size
from trt_sam.runtime.transform import FrameTransform

if TYPE_CHECKING:
    import torch

__all__ = ["ImageHolder", "ImageNotSetError", "ImageReplacedError", "SetImage", "SupportsEmbed"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


class ImageNotSetError(InputError, RuntimeError):
    """A prediction was asked for before there is an image; a RuntimeError too, as in Meta's predictor."""


class ImageReplacedError(InputError, RuntimeError):
    """A thread asked for masks of the image that it had set, and another thread has set another since."""


_turns: WeakKeyDictionary[Runner, threading.Lock] = WeakKeyDictionary()
_turns_lock = threading.Lock()


def _turn_of(runner: Runner) -> threading.Lock:
    """The lock that all predictors of a runner share: setting an image and running belong together."""
    with _turns_lock:
        return _turns.setdefault(runner, threading.Lock())


def _takes_photos(runner: Runner) -> bool:
    """Whether the runner has an image encoder of its own."""
    return bool(getattr(runner, "takes_photos", False))


class SupportsEmbed(Protocol):
    """An image encoder, such as `Checkpoint.image_encoder()` gives."""

    def embed(self, rgb: npt.NDArray[np.uint8]) -> FloatArray:
        """Embed uint8 [height, width, 3] RGB to float32 [1, 256, 64, 64]."""


@dataclass
class SetImage:
    """An image that was set. A call takes it once, so that embedding and size always are of the same one."""

    embedding: FloatArray
    size: tuple[int, int]
    """(height, width) of the original."""
    runner_id: int = 0
    """The runner's number of it; read and changed in the runner's turn only."""
    number: int = field(default_factory=itertools.count(1).__next__)
    """Of all images of all predictors."""


@dataclass(frozen=True)
class _EncoderSettings:
    img_size: int = FRAME_SIZE


@dataclass
class _Model:
    """What users of Meta's predictor read of `predictor.model`."""

    mask_threshold: float = 0.0
    """A pixel belongs to the mask where its logit is above this, as in SAM; may be changed."""
    image_format: str = "RGB"
    image_encoder: _EncoderSettings = field(default_factory=_EncoderSettings)

    @property
    def device(self) -> torch.device:
        """The CPU: tensors are taken from any device and given there."""
        device: torch.device = require("torch", "to name a device").device("cpu")
        return device


class ImageHolder:
    """What a `Predictor` knows of its image. A call takes the whole of it at once; the last that was set counts."""

    def __init__(self, runner: Runner, image_encoder: SupportsEmbed | None, *, shared: bool) -> None:
        """See `Predictor`."""
        self.model = _Model()
        self.transform = FrameTransform()
        self._runner = runner
        self._turn = _turn_of(runner)
        check_encoder_of_runner(image_encoder, runner)
        # A runner of a set with an image encoder embeds by itself.
        self._encoder = cast(SupportsEmbed, runner) if image_encoder is None and _takes_photos(runner) else image_encoder
        self._shared = shared
        self._image: SetImage | None = None
        self._own = threading.local()
        """`number`: that of the image that this thread has set last, 0 where it has reset it."""
        self._given: dict[str, Any] = {}
        """Attributes that were assigned to restore an image, until `is_image_set` is."""

    def set_image(self, image: npt.NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Embed `image`, uint8 [height, width, 3] in `image_format` ("RGB" or "BGR"), for the predictions that follow.

        Raises:
            InputError: there is no image encoder, or not such an image.
        """
        if image_format not in ("RGB", "BGR"):
            raise InputError(f"image_format is {image_format!r}, must be RGB or BGR")
        encoder = self._require_encoder()
        image = as_array("image", image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"image is {image.dtype} {list(image.shape)}, must be uint8 [height, width, 3]")
        rgb = image if image_format == "RGB" else np.ascontiguousarray(image[..., ::-1])
        self.set_image_embedding(encoder.embed(rgb), (image.shape[0], image.shape[1]))

    def set_torch_image(self, transformed_image: torch.Tensor, original_image_size: Sequence[int]) -> None:
        """Embed an image that `transform` has scaled already.

        Args:
            transformed_image: [1, 3, height, width] RGB, 0 to 255, long side 1024; rounded to whole numbers.
            original_image_size: (height, width) before that.

        Raises:
            InputError: there is no image encoder, or the image is not such a tensor, or not of the scaled original size.
        """
        encoder = self._require_encoder()
        size = as_image_size(original_image_size, "original_image_size")
        image = as_array("transformed_image", transformed_image)
        expected = (1, 3, *frame_shape(*size))
        if image.shape != expected:
            raise InputError(
                f"transformed_image has shape {list(image.shape)}, must be {list(expected)} for an original of "
                f"{size[1]}x{size[0]}"
            )
        rgb = np.ascontiguousarray(image[0].transpose(1, 2, 0).round().clip(0, 255).astype(np.uint8))
        self.set_image_embedding(encoder.embed(rgb), size)

    def set_image_embedding(self, embedding: Array, original_size: Sequence[int]) -> None:
        """Take `embedding` [1, 256, 64, 64] of an image of `original_size` (height, width); a float32 copy is kept on the host.

        Raises:
            InputError: not such an embedding, or an impossible size.
        """
        try:
            size = as_image_size(original_size)
            frame_shape(*size)
            found = as_array("image_embeddings", embedding)
            with np.errstate(over="ignore"):
                image = SetImage(checked_embedding(found.astype(np.float32) if found.dtype.kind == "f" else found), size)
            with self._turn:
                self._runner.set_image(image.embedding)
                image.runner_id = self._runner.image_id
                self._image = image
        except BaseException:
            self.reset_image()  # the one before must not answer for this one
            raise
        self._own.number = image.number

    def reset_image(self) -> None:
        """Forget the image."""
        self._image, self._own.number = None, 0

    def get_image_embedding(self) -> FloatArray:
        """A copy of the embedding that is set, float32 [1, 256, 64, 64]; ImageNotSetError where there is none."""
        return self._require_image().embedding.copy()

    @property
    def device(self) -> torch.device:
        """Where tensors are given: the CPU, wherever the runner computes."""
        return self.model.device

    @property
    def is_image_set(self) -> bool:
        """Whether there is an image. Setting it True takes the `features` and `original_size` that were assigned before."""
        return self._image is not None

    @is_image_set.setter
    def is_image_set(self, value: bool) -> None:
        given, self._given = self._given, {}
        if not value:
            self.reset_image()
        elif given:
            missing = [name for name in ("features", "original_size") if name not in given]
            if missing:
                raise InputError(
                    f"is_image_set = True needs {' and '.join(missing)} assigned before; or use set_image_embedding"
                )
            self.set_image_embedding(given["features"], given["original_size"])
        else:
            self._require_image()

    @property
    def features(self) -> torch.Tensor | None:
        """The embedding as a float32 tensor [1, 256, 64, 64], a copy; None where there is no image.

        Assigned, with `original_size`, before `is_image_set = True`, it brings back an image that was embedded before.
        """
        image = self._image
        return None if image is None else require("torch", "to give a tensor").from_numpy(image.embedding.copy())

    @features.setter
    def features(self, value: Any) -> None:
        self._given["features"] = value

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the image; (0, 0) where there is none."""
        image = self._image
        return (0, 0) if image is None else image.size

    @original_size.setter
    def original_size(self, value: Sequence[int]) -> None:
        self._given["original_size"] = value

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the image in the 1024 frame; (0, 0) where there is none. Follows from `original_size`."""
        image = self._image
        return (0, 0) if image is None else frame_shape(*image.size)

    @input_size.setter
    def input_size(self, value: Sequence[int]) -> None:
        as_image_size(value, "input_size")

    def _bring_back(self, image: SetImage) -> None:
        """Make `image` the runner's current one, where another is, or where it has gone for others."""
        use = getattr(self._runner, "use_image", None)
        if use is not None:
            with contextlib.suppress(ContractError):
                use(image.runner_id)
                return
        elif self._runner.image_id == image.runner_id:
            return
        self._runner.set_image(image.embedding)
        image.runner_id = self._runner.image_id

    def _require_encoder(self) -> SupportsEmbed:
        if self._encoder is None:
            raise InputError("this Predictor has no image encoder: pass one, or give the embedding to set_image_embedding")
        return self._encoder

    def _require_image(self) -> SetImage:
        image = self._image
        if image is None:
            raise ImageNotSetError("no image is set; call set_image or set_image_embedding before predict")
        own = getattr(self._own, "number", 0)
        if own not in (0, image.number) and not self._shared:
            raise ImageReplacedError(
                "another thread has set another image on this Predictor since this thread set its own; give each thread or "
                "request a Predictor of its own over the same runner, or make it with shared=True where the last image set is "
                "meant for all threads"
            )
        return image
