"""SAM's ViT against transformers' with the same random weights, and its settings from both kinds of checkpoint."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trt_sam.errors import CheckpointError
from trt_sam.model.encoders import vit as vit_module
from trt_sam.model.encoders.vit import Vit, VitSettings
from trt_sam.model.encoders.vit_settings import settings_of_config, settings_of_state
from trt_sam.model.naming import ENCODER_PREFIX, HF_ENCODER_PREFIX, hf_to_meta

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TOLERANCE = 1e-5
"""Relative to the largest |value|, in float32."""

PUBLISHED = {
    "vit_b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "global_attn_indexes": [2, 5, 8, 11]},
    "vit_l": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "global_attn_indexes": [5, 11, 17, 23]},
    "vit_h": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "global_attn_indexes": [7, 15, 23, 31]},
}
SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_dim": 96, "global_attn_indexes": [1]}


def theirs(settings: dict[str, Any], *, device: str = "cpu") -> nn.Module:
    """transformers' encoder with random weights; it starts many at zero, which would hide a fault."""
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    with torch.device(device):
        model = SamVisionEncoder(transformers.SamVisionConfig(**settings)).eval().requires_grad_(False)
    if device == "cpu":
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            # Scaled by their fan-in, so that a deep model stays within float32's reach.
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "pos" not in name else 0.1
            parameter.copy_(spread * torch.randn(parameter.shape) + float("norm" in name and name.endswith("weight")))
    return model


def meta_state(model: nn.Module) -> dict[str, Tensor]:
    renamed, unknown = hf_to_meta({f"{HF_ENCODER_PREFIX}{name}": value for name, value in model.state_dict().items()})
    assert unknown == []
    return renamed


def ours(model: nn.Module, settings: VitSettings) -> Vit:
    vit = Vit(settings).eval().requires_grad_(False)
    vit.load_state_dict({name.removeprefix(ENCODER_PREFIX): value for name, value in meta_state(model).items()})
    return vit


def distance(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({**PUBLISHED["vit_b"], "num_hidden_layers": 2, "global_attn_indexes": [1]}, id="vit_b, two blocks"),
        pytest.param({**PUBLISHED["vit_h"], "num_hidden_layers": 2, "global_attn_indexes": [0]}, id="vit_h, two blocks"),
        pytest.param({**SMALL, "use_abs_pos": False}, id="no absolute positions"),
        pytest.param({**SMALL, "use_rel_pos": False}, id="no relative positions"),
        pytest.param({**SMALL, "qkv_bias": False}, id="no bias of queries, keys and values"),
        pytest.param({**SMALL, "window_size": 16}, id="windows that divide the picture"),
        pytest.param({**SMALL, "window_size": 0}, id="no windows"),
        pytest.param({**SMALL, "layer_norm_eps": 0.1}, id="another epsilon"),
    ],
)
def test_agrees_with_transformers(settings: dict[str, Any]) -> None:
    """On pictures of 320 x 320, where a global block has a hundredth of the work; all else is as at 1024."""
    model = theirs({**settings, "image_size": 320})
    vit = ours(model, dataclasses.replace(settings_of_config(settings, "x"), grid=20))
    pixels = torch.randn(2, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(pixels).last_hidden_state
        assert distance(vit(pixels), expected) < TOLERANCE


@pytest.mark.slow
def test_the_whole_of_vit_b_agrees_with_transformers() -> None:
    model = theirs(PUBLISHED["vit_b"])
    vit = ours(model, settings_of_state(meta_state(model), "x.pth"))
    pixels = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = distance(vit(pixels), model(pixels).last_hidden_state)
    print(f"relative distance {found:.1e}")
    assert found < TOLERANCE


def test_heads_in_turns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention = vit_module.Attention(VitSettings(width=96, depth=1, heads=3, mlp_width=8, global_blocks=(0,), grid=8), 8)
    attention.requires_grad_(False)
    nn.init.normal_(attention.rel_pos_h)
    nn.init.normal_(attention.rel_pos_w)
    x = torch.randn(1, 8, 8, 96)
    together = attention(x)
    monkeypatch.setattr(vit_module, "_SCORES_AT_ONCE", 2 * 64 * 64)
    assert distance(attention(x), together) < 1e-6


def test_published_sizes_are_read_off_both_kinds_of_checkpoint() -> None:
    """vit_b, vit_l and vit_h as transformers builds them, without a byte of weights."""
    for kind, settings in PUBLISHED.items():
        model = theirs(settings, device="meta")
        config = model.config.to_dict()
        read = settings_of_state(meta_state(model), f"{kind}.pth")
        assert read == settings_of_config(config, kind)
        assert read == VitSettings(
            width=settings["hidden_size"],
            depth=settings["num_hidden_layers"],
            heads=settings["num_attention_heads"],
            mlp_width=4 * settings["hidden_size"],
            global_blocks=tuple(settings["global_attn_indexes"]),
        )
        assert {f"{ENCODER_PREFIX}{name}": v.shape for name, v in meta_vit(read).state_dict().items()} == {
            name: value.shape for name, value in meta_state(model).items()
        }
    assert settings_of_config({}, "x") == settings_of_config(PUBLISHED["vit_b"], "x")


def meta_vit(settings: VitSettings) -> Vit:
    with torch.device("meta"):
        return Vit(settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 512}, "image_size is 512, must be 1024"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', must be gelu"),
        ({"output_channels": 128}, "output_channels is 128, must be 256"),
        ({"hidden_size": 770}, "hidden_size is 770, must be a multiple of num_attention_heads, 12"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, must be a whole number of at least 1"),
        ({"num_attention_heads": "12"}, "num_attention_heads is '12', must be a whole number of at least 1"),
        ({"window_size": -1}, "window_size is -1, must be a whole number of at least 0"),
        ({"mlp_dim": 2.5}, "mlp_dim is 2.5, must be a whole number of at least 1"),
        ({"mlp_ratio": None}, "mlp_ratio is None, must be a positive number"),
        ({"global_attn_indexes": 3}, "global_attn_indexes is 3, must be a list of numbers of blocks"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps is 'x', must be a positive number"),
        ({"use_rel_pos": 1}, "use_rel_pos is 1, must be true or false"),
    ],
)
def test_a_config_that_cannot_be_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"checkpoint a-folder: vision_config.{re.escape(message)}$"):
        settings_of_config(change, "a-folder")
