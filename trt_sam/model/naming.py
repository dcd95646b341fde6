"""Parameter names of SAM: Meta's (those of our modules) and those of Hugging Face's `SamModel`. One table, both directions.

In a row, `#` stands for a number that both sides share and a final `*` for `weight` or `bias`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

__all__ = ["ENCODER_PREFIX", "HF_ENCODER_PREFIX", "HF_TIED_COPY", "HF_TIED_SOURCE", "hf_to_meta", "in_hf_names", "meta_to_hf"]

T = TypeVar("T")

ENCODER_PREFIX = "image_encoder."
HF_ENCODER_PREFIX = "vision_encoder."

HF_TIED_SOURCE = "shared_image_embedding.positional_embedding"
HF_TIED_COPY = "prompt_encoder.shared_embedding.positional_embedding"
"""The same tensor again. transformers 5 leaves it out when it saves; older files hold both."""

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_BLOCK = "mask_decoder.transformer.layers.#"
_FINAL = "mask_decoder.transformer.final_attn_token_to_image"
_VIT, _HF_VIT = ENCODER_PREFIX + "blocks.#", HF_ENCODER_PREFIX + "layers.#"


def _mlp(name: str) -> Iterator[tuple[str, str]]:
    """Meta numbers an MLP's three layers; Hugging Face names the first and the last and numbers those between."""
    for number, hf in enumerate(("proj_in", "layers.0", "proj_out")):
        yield f"{name}.layers.{number}.*", f"{name}.{hf}.*"


_TABLE: tuple[tuple[str, str], ...] = (
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", HF_TIED_SOURCE),
    ("prompt_encoder.point_embeddings.#.weight", "prompt_encoder.point_embed.#.weight"),
    ("prompt_encoder.not_a_point_embed.weight", "prompt_encoder.not_a_point_embed.weight"),
    ("prompt_encoder.no_mask_embed.weight", "prompt_encoder.no_mask_embed.weight"),
    ("prompt_encoder.mask_downscaling.0.*", "prompt_encoder.mask_embed.conv1.*"),
    ("prompt_encoder.mask_downscaling.1.*", "prompt_encoder.mask_embed.layer_norm1.*"),
    ("prompt_encoder.mask_downscaling.3.*", "prompt_encoder.mask_embed.conv2.*"),
    ("prompt_encoder.mask_downscaling.4.*", "prompt_encoder.mask_embed.layer_norm2.*"),
    ("prompt_encoder.mask_downscaling.6.*", "prompt_encoder.mask_embed.conv3.*"),
    *(
        (f"{_BLOCK}.{attention}.{part}.*",) * 2
        for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        for part in _ATTENTION
    ),
    *((f"{_BLOCK}.norm{n}.*", f"{_BLOCK}.layer_norm{n}.*") for n in (1, 2, 3, 4)),
    *((f"{_BLOCK}.mlp.{part}.*",) * 2 for part in ("lin1", "lin2")),
    *((f"{_FINAL}.{part}.*",) * 2 for part in _ATTENTION),
    ("mask_decoder.transformer.norm_final_attn.*", "mask_decoder.transformer.layer_norm_final_attn.*"),
    ("mask_decoder.iou_token.weight", "mask_decoder.iou_token.weight"),
    ("mask_decoder.mask_tokens.weight", "mask_decoder.mask_tokens.weight"),
    ("mask_decoder.output_upscaling.0.*", "mask_decoder.upscale_conv1.*"),
    ("mask_decoder.output_upscaling.1.*", "mask_decoder.upscale_layer_norm.*"),
    ("mask_decoder.output_upscaling.3.*", "mask_decoder.upscale_conv2.*"),
    *_mlp("mask_decoder.output_hypernetworks_mlps.#"),
    *_mlp("mask_decoder.iou_prediction_head"),
    (ENCODER_PREFIX + "pos_embed", HF_ENCODER_PREFIX + "pos_embed"),
    (ENCODER_PREFIX + "patch_embed.proj.*", HF_ENCODER_PREFIX + "patch_embed.projection.*"),
    *((f"{_VIT}.norm{n}.*", f"{_HF_VIT}.layer_norm{n}.*") for n in (1, 2)),
    *((f"{_VIT}.{part}", f"{_HF_VIT}.{part}") for part in ("attn.rel_pos_h", "attn.rel_pos_w")),
    *((f"{_VIT}.{part}.*", f"{_HF_VIT}.{part}.*") for part in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")),
    (ENCODER_PREFIX + "neck.0.weight", HF_ENCODER_PREFIX + "neck.conv1.weight"),
    (ENCODER_PREFIX + "neck.1.*", HF_ENCODER_PREFIX + "neck.layer_norm1.*"),
    (ENCODER_PREFIX + "neck.2.weight", HF_ENCODER_PREFIX + "neck.conv2.weight"),
    (ENCODER_PREFIX + "neck.3.*", HF_ENCODER_PREFIX + "neck.layer_norm2.*"),
)


def _rules(rows: Iterator[tuple[str, str]]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Pairs of (pattern of a whole name, template of the other side's)."""
    rules = []
    for source, target in rows:
        pattern = re.escape(source).replace(r"\#", r"(\d+)").replace(r"\*", "(weight|bias)")
        groups = iter(range(1, 3))
        template = re.sub(r"[#*]", lambda _, groups=groups: rf"\g<{next(groups)}>", target)  # type: ignore[misc]
        rules.append((re.compile(pattern), template))
    return tuple(rules)


_TO_META = _rules((hf, meta) for meta, hf in _TABLE)
_TO_HF = _rules((meta, hf) for meta, hf in _TABLE)


_HF_ONLY = ("shared_image_embedding.", HF_ENCODER_PREFIX, "prompt_encoder.shared_embedding.", "mask_decoder.upscale_")


def uses_hf_names(names: Iterable[str]) -> bool:
    """Whether these are the names of a `SamModel`."""
    return any(name.startswith(_HF_ONLY) for name in names)


def hf_to_meta(state: Mapping[str, T]) -> tuple[dict[str, T], list[str]]:
    """Rename the entries of a `SamModel` state; returns those that have a Meta name, and the names that have none."""
    return _rename(state, _TO_META)


def meta_to_hf(state: Mapping[str, T]) -> tuple[dict[str, T], list[str]]:
    """Rename the entries of a Meta state; returns those that have a `SamModel` name, and the names that have none."""
    return _rename(state, _TO_HF)


def in_hf_names(state: Mapping[str, T]) -> dict[str, T]:
    """A Meta state in the names of `SamModel`; a name that has none there stays as it is."""
    renamed, unknown = meta_to_hf(state)
    return renamed | {name: state[name] for name in unknown}


def _rename(state: Mapping[str, T], rules: tuple[tuple[re.Pattern[str], str], ...]) -> tuple[dict[str, T], list[str]]:
    renamed: dict[str, T] = {}
    unknown: list[str] = []
    for name, value in state.items():
        match = next((found for rule in rules if (found := _apply(rule, name))), "")
        if match:
            renamed[match] = value
        else:
            unknown.append(name)
    return renamed, unknown


def _apply(rule: tuple[re.Pattern[str], str], name: str) -> str:
    match = rule[0].fullmatch(name)
    return match.expand(rule[1]) if match else ""
