"""SAM's ViT in graph form against `Vit` itself, with random weights, in PyTorch."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.fixtures.random_vit import random_vit
from trt_sam.model.encoders import vit_graph
from trt_sam.model.encoders.vit import VitSettings
from trt_sam.model.encoders.vit_graph import VitGraph

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SMALL = VitSettings(width=96, depth=3, heads=3, mlp_width=64, global_blocks=(1,), grid=20)
PIXELS = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        VitSettings(width=128, depth=2, heads=2, mlp_width=64, global_blocks=(1,), grid=20),
        VitSettings(width=160, depth=2, heads=2, mlp_width=64, global_blocks=(0,), grid=20),
        dataclasses.replace(SMALL, absolute_positions=False),
        dataclasses.replace(SMALL, relative_positions=False),
        dataclasses.replace(SMALL, qkv_bias=False),
        dataclasses.replace(SMALL, window=10),
        dataclasses.replace(SMALL, window=0),
        dataclasses.replace(SMALL, epsilon=0.1),
    ],
    ids=[
        "small",
        "heads as in vit_b",
        "heads as in vit_h",
        "no absolute",
        "no relative",
        "no bias",
        "windows that fit",
        "no windows",
        "epsilon",
    ],
)
def test_it_is_the_same(settings: VitSettings) -> None:
    vit = random_vit(settings)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    expected = vit(PIXELS)
    for fused in (True, False):
        found = VitGraph(vit, fused=fused)(PIXELS)
        assert found.shape == expected.shape
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert all(torch.equal(before[name], value) for name, value in vit.state_dict().items())


def test_heads_in_turns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = random_vit(SMALL)
    together = VitGraph(vit, fused=False)(PIXELS)
    monkeypatch.setattr(vit_graph, "_SCORES_AT_ONCE", 2 * 400 * 400)
    found = VitGraph(vit, fused=False)(PIXELS)
    assert float((found - together).abs().max() / together.abs().max()) < 1e-6


def test_half_is_float16_and_close() -> None:
    vit = random_vit(SMALL)
    form = VitGraph(vit, half=True)
    assert {tensor.dtype for tensor in (*form.parameters(), *form.buffers())} == {torch.float16}
    expected = vit(PIXELS)
    assert float((form(PIXELS.half()).float() - expected).abs().max() / expected.abs().max()) < 0.02
