"""`load_checkpoint`: SAM's decoder, and its image encoder on demand, from any of the forms they are published in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trt_sam.download import CATALOGUE, DATA_FOLDER, STANDINS, check_source, fetch
from trt_sam.errors import CheckpointError
from trt_sam.model import naming
from trt_sam.model.hardened import harden
from trt_sam.model.sam import SamDecoder
from trt_sam.model.state import check_fit, some, state_sha256
from trt_sam.model.weights import download, read_folder, read_pth, read_safetensors

if TYPE_CHECKING:
    from trt_sam.model.image_encoder import ImageEncoder

__all__ = ["DATA_FOLDER", "STANDINS", "Checkpoint", "load_checkpoint"]

_VIT_KINDS = {(768, 12): "vit_b", (1024, 24): "vit_l", (1280, 32): "vit_h", (128, 4): "vit_standin"}
_META_CONSTANTS = frozenset({"pixel_mean", "pixel_std"})
_SAM2 = re.compile(r"(^|\.)(sam_mask_decoder\.|memory_attention\.|maskmem_tpos_enc|mask_decoder\.pred_obj_score_head\.)")
_HF_SETTINGS: dict[str, dict[str, object]] = {
    "prompt_encoder_config": {"image_size": 1024, "patch_size": 16, "hidden_act": "gelu"},
    "mask_decoder_config": {"num_attention_heads": 8, "hidden_act": "relu"},
}
"""What a `SamModel` config may change without changing any shape; the decoder here has it fixed."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint."""

    decoder: SamDecoder = field(repr=False)
    """float32, in eval mode."""
    encoder_kind: str
    """"vit_b", "vit_l", "vit_h", "vit_standin", "vit_other", "mobile_sam", "efficientvit", "unknown" or "none"."""
    sha256: str
    """Of the decoder's float32 state (`state_sha256`): the same whichever form the weights came in."""
    source: str
    """What was asked for."""
    _open_encoder: Callable[[], ImageEncoder] = field(repr=False, compare=False)

    def image_encoder(self) -> ImageEncoder:
        """Build the image encoder, float32 on the CPU; nothing of it is read before this.

        Raises:
            CheckpointError: there is none, or none of a kind that can be run here, or its weights do not fit.
        """
        encoder = self._open_encoder()
        encoder.checkpoint_sha256 = self.sha256
        return encoder

    @property
    def has_image_encoder(self) -> bool:
        """Whether there is an image encoder of a kind that can be run here."""
        return self.encoder_kind == "mobile_sam" or self.encoder_kind.startswith("vit_")

    @property
    def encoder_sha256(self) -> str:
        """Hash of the image encoder's weights, as embedding files have it; "" where it cannot be run here."""
        return self.image_encoder().sha256 if self.has_image_encoder else ""


def load_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Load a checkpoint.

    Args:
        source: a name of `trt_sam.download.CATALOGUE` ("mobile_sam"), which is downloaded into the cache where it is not there;
            a `.pth` or `.safetensors` in Meta's names or in those of `SamModel`, also as a trainer saves it, in a dictionary
            and beside other objects, which are passed over; a Hugging Face folder of `SamModel`; a hub id
            (`facebook/sam-vit-base`); "standin" or "standin-hard".

    LayerNorm epsilons are those of Meta's code (1e-5 in the decoder's transformer), whatever config.json says: transformers
    computes with 1e-6 there, with weights that were trained with 1e-5.

    Raises:
        CheckpointError: it cannot be read or is not a SAM; the message names up to five keys of each fault.
        MissingDependencyError: a package that this source needs is not installed.
    """
    text = os.fspath(source)
    if text in CATALOGUE:
        return _from_pth(fetch(text), text)
    path = Path(text)
    if text in STANDINS:
        folder = DATA_FOLDER / "standin"
        if not folder.is_dir():
            raise CheckpointError(f"the stand-in checkpoint is missing from this installation ({folder}); reinstall trt-sam")
        return _from_folder(folder, text, prepare=harden if text == "standin-hard" else None)
    if path.is_dir():
        return _from_folder(path, text)
    check_source(text)
    if not path.exists():
        return _from_folder(download(text), text)
    if path.suffix == ".safetensors":
        return _from_state(read_safetensors(path), str(path), text)
    return _from_pth(path, text)


def _from_pth(path: Path, source: str) -> Checkpoint:
    return _from_state(read_pth(path), str(path), source)


def _from_folder(folder: Path, source: str, prepare: Callable[[SamDecoder], SamDecoder] | None = None) -> Checkpoint:
    config, state = read_folder(folder)
    vision = None
    if config is not None:
        _check_config(config, folder)
        vision = config.get("vision_config")
        vision = vision if isinstance(vision, dict) else {}
    return _from_state(state, str(folder), source, vision, prepare)


def _from_state(
    state: dict[str, Tensor],
    place: str,
    source: str,
    vision: dict[str, Any] | None = None,
    prepare: Callable[[SamDecoder], SamDecoder] | None = None,
) -> Checkpoint:
    """A checkpoint of a state in Meta's names or in those of `SamModel`.

    Args:
        state: all tensors; changed.
        place: where they came from, for messages.
        source: what was asked for.
        vision: the image encoder's settings of a config.json; None where they are read off the shapes.
        prepare: changes the decoder.
    """
    sam2 = next((name for name in state if _SAM2.search(name)), None)
    if sam2 is not None:
        raise CheckpointError(
            f"checkpoint {place} is a SAM 2 ({sam2}), whose decoder is another; give a SAM: vit_b, vit_l, vit_h or MobileSAM"
        )
    hf = naming.uses_hf_names(state)
    if hf:
        copy = state.pop(naming.HF_TIED_COPY, None)
        if copy is not None and not torch.equal(copy, state.setdefault(naming.HF_TIED_SOURCE, copy)):
            raise CheckpointError(f"{place}: {naming.HF_TIED_COPY} differs from {naming.HF_TIED_SOURCE}; they must be equal")
        renamed, unknown = naming.hf_to_meta(state)
        decoder, encoder = _split(renamed)
        # An unknown name stays as it is, to be reported with the other misfits.
        decoder |= {name: state[name] for name in unknown if not name.startswith(naming.HF_ENCODER_PREFIX)}
        encoder |= {name: state[name] for name in unknown if name.startswith(naming.HF_ENCODER_PREFIX)}
    else:
        decoder, encoder = _split({name: value for name, value in state.items() if name not in _META_CONSTANTS})
    return _checkpoint(decoder, encoder, vision if hf else None, place, source, prepare, hf=hf)


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(decoder with everything unknown, image encoder) of a state in Meta's names."""
    encoder = {name: value for name, value in state.items() if name.startswith(naming.ENCODER_PREFIX)}
    return {name: value for name, value in state.items() if name not in encoder}, encoder


def _checkpoint(
    decoder_state: Mapping[str, Tensor],
    encoder_state: Mapping[str, Tensor],
    config: dict[str, Any] | None,
    place: str,
    source: str,
    prepare: Callable[[SamDecoder], SamDecoder] | None,
    *,
    hf: bool,
) -> Checkpoint:
    decoder = _build_decoder(decoder_state, place, hf=hf)
    if prepare is not None:
        decoder = prepare(decoder)
    decoder.checkpoint_sha256 = state_sha256(decoder.state_dict())
    kind = _encoder_kind(encoder_state)

    def open_encoder() -> ImageEncoder:
        from trt_sam.model.image_encoder import build_image_encoder

        return build_image_encoder(encoder_state, kind, config, source)

    return Checkpoint(decoder, kind, decoder.checkpoint_sha256, source, open_encoder)


def _build_decoder(state: Mapping[str, Tensor], place: str, *, hf: bool) -> SamDecoder:
    if not any(name.startswith("mask_decoder.") for name in state):
        held = ", ".join(list(state)[:3]) or "no decoder key"
        raise CheckpointError(
            f"checkpoint {place} is not a SAM: it has no mask_decoder keys ({held}); give vit_b, vit_l or vit_h"
        )
    with torch.device("meta"):  # no random weights that would be thrown away
        decoder = SamDecoder()
    expected = decoder.state_dict()
    # Faults are told in the names that the file has.
    shown, needed = (naming.in_hf_names(state), naming.in_hf_names(expected)) if hf else (state, expected)
    check_fit(shown, needed, f"checkpoint {place} does not fit SAM's decoder")
    # Copies, because what was read may be mapped to a file that can change.
    copies = {name: value.to(torch.float32, copy=True).contiguous() for name, value in state.items()}
    decoder.load_state_dict(copies, assign=True)
    broken = [name for name, value in decoder.state_dict().items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise CheckpointError(f"checkpoint {place} holds NaN or infinity in {some(broken)}; download it again")
    decoder.refresh_position_encoding()
    decoder.requires_grad_(False)
    return decoder.eval()


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    if config.get("model_type") != "sam":
        raise CheckpointError(f"{folder}/config.json has model_type {config.get('model_type')!r}, must be 'sam' (SamModel)")
    for section, settings in _HF_SETTINGS.items():
        given = config.get(section) or {}
        for name, needed in settings.items():
            if given.get(name, needed) != needed:
                raise CheckpointError(f"{folder}/config.json has {section}.{name} = {given[name]!r}, must be {needed!r}")


def _encoder_kind(state: Mapping[str, Tensor]) -> str:
    """Recognise the image encoder by key names and dimensions."""
    if not state:
        return "none"
    names = [name.removeprefix(naming.ENCODER_PREFIX) for name in state]
    if any(name.startswith("patch_embed.seq.") for name in names):
        return "mobile_sam"
    if any(name.startswith("backbone.stages.") for name in names):
        return "efficientvit"
    projection = state.get(f"{naming.ENCODER_PREFIX}patch_embed.proj.weight")
    blocks = {name.split(".")[1] for name in names if name.startswith("blocks.")}
    if projection is None or projection.ndim != 4 or not blocks:
        return "unknown"
    return _VIT_KINDS.get((projection.shape[0], len(blocks)), "vit_other")
