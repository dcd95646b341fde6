"""The image encoder of a checkpoint: photo to embedding, once per photo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trt_sam.contract import EMBEDDING_SHAPE, FRAME_SIZE
from trt_sam.errors import CheckpointError
from trt_sam.imaging.frame import to_frame
from trt_sam.model import naming
from trt_sam.model.encoders import TinyViT, Vit, fold_for_inference, settings_of_config, settings_of_state
from trt_sam.model.state import check_fit, some, state_sha256

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "ImageEncoder", "build_image_encoder", "preprocess"]

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class ImageEncoder:
    """An image encoder in float32 on the CPU."""

    def __init__(self, model: Callable[[Tensor], Tensor], kind: str, sha256: str) -> None:
        """Wrap `model`, which makes float32 [1, 256, 64, 64] of what `preprocess` gives."""
        self.model = model
        """The module inside; TinyViT's is folded for inference."""
        self.kind = kind
        self.sha256 = sha256
        """Of the weights by their names (a ViT's in `SamVisionEncoder`, TinyViT's in MobileSAM), as `state_sha256` has it."""
        self.checkpoint_sha256 = ""
        """Of the decoder's weights of the same checkpoint (`Checkpoint.sha256`); empty where it is not from one."""

    def embed(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed a photo, uint8 [height, width, 3] RGB of any size, to float32 [1, 256, 64, 64].

        Raises:
            InputError: not such an array, or too narrow to be scaled.
        """
        pixels = torch.from_numpy(preprocess(rgb))
        with torch.inference_mode():
            embedding = self.model(pixels)
        return embedding.float().contiguous().numpy().copy()


def preprocess(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What the encoder sees of a photo, as Meta prepares it: float32 [1, 3, 1024, 1024].

    Long side scaled to 1024 with Pillow's bilinear filter on the 8-bit image, normalised, then padded with zeros at the
    bottom and on the right (so the padding is the mean colour, not black).

    Raises:
        InputError: `rgb` is not uint8 [height, width, 3], or too narrow.
    """
    frame, (height, width) = to_frame(rgb)
    mean, std = np.array(PIXEL_MEAN, dtype=np.float32), np.array(PIXEL_STD, dtype=np.float32)
    pixels = np.zeros((1, 3, FRAME_SIZE, FRAME_SIZE), dtype=np.float32)
    pixels[0, :, :height, :width] = ((frame[0, :height, :width].astype(np.float32) - mean) / std).transpose(2, 0, 1)
    return pixels


def build_image_encoder(state: Mapping[str, Tensor], kind: str, config: dict[str, Any] | None, source: str) -> ImageEncoder:
    """Build the encoder of a checkpoint.

    Args:
        state: its part of the checkpoint, in Meta's names.
        kind: as in `Checkpoint.encoder_kind`.
        config: vision settings of a Hugging Face config; None where the settings are to be read off the shapes.
        source: the checkpoint, for error messages.

    Raises:
        CheckpointError: there is no encoder, or none of a kind that can be run here, or the weights do not fit.
    """
    if kind == "mobile_sam":
        return _build_tiny_vit(state, source)
    if kind.startswith("vit_"):
        return _build_vit(state, kind, config, source)
    found = "holds no image encoder" if kind == "none" else f"has an image encoder ({kind}) that cannot be run here"
    raise CheckpointError(
        f"checkpoint {source} {found}; bring embeddings from a file: .npz with image_embeddings float32 "
        f"{list(EMBEDDING_SHAPE)} and original_size int64 [2] (trt_sam.embeddings.save_embedding writes one)"
    )


def _build_tiny_vit(state: Mapping[str, Tensor], source: str) -> ImageEncoder:
    with torch.device("meta"):  # no random weights that would be thrown away
        model = TinyViT()
    given = {name: value for name, value in state.items() if not _is_left_over(name)}
    expected = {name: value for name, value in _with_prefix(model.state_dict()).items() if not _is_left_over(name)}
    check_fit(given, expected, f"the image encoder of checkpoint {source} is not MobileSAM's TinyViT")
    weights = _without_prefix(_in_float32(given, source))
    # The counters stay behind, on no device; nothing reads them in eval mode.
    model.load_state_dict(weights, strict=False, assign=True)
    model.requires_grad_(False)
    return ImageEncoder(fold_for_inference(model.eval()), "mobile_sam", state_sha256(weights))


def _is_left_over(name: str) -> bool:
    """Whether an entry of MobileSAM's state is left from training: TinyViT's classifier, and the counters of its BatchNorms."""
    classifier = tuple(f"{naming.ENCODER_PREFIX}{part}." for part in ("norm_head", "head"))
    return name.startswith(classifier) or name.endswith(".num_batches_tracked")


def _build_vit(state: Mapping[str, Tensor], kind: str, config: dict[str, Any] | None, source: str) -> ImageEncoder:
    settings = settings_of_state(state, source) if config is None else settings_of_config(config, source)
    with torch.device("meta"):
        model = Vit(settings)
    expected = _with_prefix(model.state_dict())
    what = f"the image encoder of checkpoint {source} does not fit its settings"
    # Faults are told in the names that the file has.
    if config is None:
        check_fit(state, expected, what)
    else:
        check_fit(naming.in_hf_names(state), naming.in_hf_names(expected), what)
    weights = _in_float32(state, source)
    model.load_state_dict(_without_prefix(weights), assign=True)
    model.requires_grad_(False)
    hashed = {name.removeprefix(naming.HF_ENCODER_PREFIX): value for name, value in naming.in_hf_names(weights).items()}
    return ImageEncoder(model.eval(), kind, state_sha256(hashed))


def _with_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{naming.ENCODER_PREFIX}{name}": value for name, value in state.items()}


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(naming.ENCODER_PREFIX): value for name, value in state.items()}


def _in_float32(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        what = f"the image encoder of checkpoint {source}"
        raise CheckpointError(f"{what} holds NaN or infinity in {some(broken)}; download it again")
    return {name: value.to(torch.float32) for name, value in weights.items()}
