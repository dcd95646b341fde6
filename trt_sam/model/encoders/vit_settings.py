"""The sizes of a checkpoint's ViT: from the shapes of a Meta state, or from the vision_config of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trt_sam.contract import FRAME_SIZE
from trt_sam.errors import CheckpointError
from trt_sam.model import naming
from trt_sam.model.encoders.vit import VitSettings

__all__ = ["settings_of_config", "settings_of_state"]

_PATCH = 16
_GRID = FRAME_SIZE // _PATCH
_FIXED = {"image_size": FRAME_SIZE, "patch_size": _PATCH, "num_channels": 3, "output_channels": 256, "hidden_act": "gelu"}
"""What the decoder and `Vit` need; also transformers' defaults."""
_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
"""transformers' defaults where a config.json leaves them out."""


def settings_of_config(config: Mapping[str, Any], source: str) -> VitSettings:
    """Take the settings from a vision_config.

    Raises:
        CheckpointError: it asks for something else than a SAM ViT, or for what cannot be.
    """

    def refuse(name: str, needed: object) -> CheckpointError:
        return CheckpointError(f"checkpoint {source}: vision_config.{name} is {config[name]!r}, must be {needed}")

    def whole(name: str, default: int, least: int = 1) -> int:
        value = config.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise refuse(name, f"a whole number of at least {least}")
        return value

    def flag(name: str) -> bool:
        value = config.get(name, True)
        if not isinstance(value, bool):
            raise refuse(name, "true or false")
        return value

    for name, needed in _FIXED.items():
        if config.get(name, needed) != needed:
            raise refuse(name, needed)
    width, depth, heads = (whole(name, default) for name, default in _SIZES.items())
    if width % heads:
        raise CheckpointError(
            f"checkpoint {source}: vision_config.hidden_size is {width}, must be a multiple of num_attention_heads, {heads}"
        )
    ratio, blocks, epsilon = (
        config.get(name, default)
        for name, default in (("mlp_ratio", 4.0), ("global_attn_indexes", [2, 5, 8, 11]), ("layer_norm_eps", 1e-6))
    )
    if not isinstance(ratio, int | float) or not ratio > 0:
        raise refuse("mlp_ratio", "a positive number")
    if not isinstance(blocks, list | tuple) or not all(isinstance(number, int) for number in blocks):
        raise refuse("global_attn_indexes", "a list of numbers of blocks")
    if not isinstance(epsilon, int | float) or not epsilon > 0:
        raise refuse("layer_norm_eps", "a positive number")
    return VitSettings(
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=whole("mlp_dim", int(width * ratio)),
        global_blocks=tuple(blocks),
        window=whole("window_size", 14, least=0),
        absolute_positions=flag("use_abs_pos"),
        relative_positions=flag("use_rel_pos"),
        qkv_bias=flag("qkv_bias"),
        epsilon=float(epsilon),
    )


def settings_of_state(state: Mapping[str, Tensor], source: str) -> VitSettings:
    """Read the settings off the shapes of a Meta ViT: its relative positions tell head width and window size.

    Raises:
        CheckpointError: these shapes are not Meta's.
    """
    prefix = naming.ENCODER_PREFIX
    try:
        depth = len({name.split(".")[2] for name in state if name.startswith(f"{prefix}blocks.")})
        projection = state[f"{prefix}patch_embed.proj.weight"]
        spans = [state[f"{prefix}blocks.{i}.attn.rel_pos_h"].shape for i in range(depth)]
        mlp_width = state[f"{prefix}blocks.0.mlp.lin1.weight"].shape[0]
        heads = projection.shape[0] // spans[0][1]
        windows = {(span[0] + 1) // 2 for span in spans} - {_GRID}
        (window,) = windows or {14}
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        raise CheckpointError(
            f"the image encoder of checkpoint {source} is not Meta's ViT (patch_embed.proj, blocks.N.attn.rel_pos_h, one "
            "window size); give an unmodified vit_b, vit_l or vit_h"
        ) from None
    if heads < 1:
        raise CheckpointError(f"the image encoder of checkpoint {source} has heads wider than its tokens; it is damaged")
    return VitSettings(
        width=projection.shape[0],
        depth=depth,
        heads=heads,
        mlp_width=mlp_width,
        global_blocks=tuple(i for i, span in enumerate(spans) if (span[0] + 1) // 2 == _GRID),
        window=window,
        absolute_positions=f"{prefix}pos_embed" in state,
        qkv_bias=f"{prefix}blocks.0.attn.qkv.bias" in state,
    )
