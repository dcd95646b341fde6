"""Loading checkpoints. The image encoders here are a few tensors with the right names: enough to be recognised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_files import assert_same, make_state, save_file, write_folder
from torch import Tensor

from trt_sam.errors import CheckpointError
from trt_sam.model import checkpoint as checkpoint_module
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.model.naming import HF_TIED_COPY, HF_TIED_SOURCE, hf_to_meta, meta_to_hf
from trt_sam.model.state import state_sha256

# Written down by hand from Meta's and transformers' code, as a check of the table.
KNOWN_NAMES = {
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": "shared_image_embedding.positional_embedding",
    "prompt_encoder.point_embeddings.3.weight": "prompt_encoder.point_embed.3.weight",
    "prompt_encoder.mask_downscaling.4.bias": "prompt_encoder.mask_embed.layer_norm2.bias",
    "mask_decoder.transformer.layers.1.norm3.weight": "mask_decoder.transformer.layers.1.layer_norm3.weight",
    "mask_decoder.transformer.norm_final_attn.bias": "mask_decoder.transformer.layer_norm_final_attn.bias",
    "mask_decoder.output_upscaling.3.weight": "mask_decoder.upscale_conv2.weight",
    "mask_decoder.output_hypernetworks_mlps.2.layers.1.bias": "mask_decoder.output_hypernetworks_mlps.2.layers.0.bias",
    "mask_decoder.iou_prediction_head.layers.2.weight": "mask_decoder.iou_prediction_head.proj_out.weight",
    "image_encoder.pos_embed": "vision_encoder.pos_embed",
    "image_encoder.patch_embed.proj.bias": "vision_encoder.patch_embed.projection.bias",
    "image_encoder.blocks.11.norm2.weight": "vision_encoder.layers.11.layer_norm2.weight",
    "image_encoder.blocks.0.attn.rel_pos_w": "vision_encoder.layers.0.attn.rel_pos_w",
    "image_encoder.blocks.7.mlp.lin2.bias": "vision_encoder.layers.7.mlp.lin2.bias",
    "image_encoder.neck.1.bias": "vision_encoder.neck.layer_norm1.bias",
    "image_encoder.neck.2.weight": "vision_encoder.neck.conv2.weight",
}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return make_state()


def test_names_go_both_ways() -> None:
    assert meta_to_hf({meta: meta for meta in KNOWN_NAMES}) == ({hf: meta for meta, hf in KNOWN_NAMES.items()}, [])
    assert hf_to_meta({hf: hf for hf in KNOWN_NAMES.values()}) == (KNOWN_NAMES, [])
    strange = [
        "mask_decoder.hf_token.weight",
        "image_encoder.blocks.0.attn.rel_pos_h.weight",
        "xprompt_encoder.no_mask_embed.weight",
    ]
    assert meta_to_hf(dict.fromkeys(strange, 0)) == ({}, strange)
    assert hf_to_meta(dict.fromkeys(strange, 0)) == ({}, strange)


def test_every_decoder_name_has_its_own_partner(state: dict[str, Tensor]) -> None:
    renamed, unknown = meta_to_hf({name: name for name in state})
    assert unknown == []
    assert len(renamed) == len(state)
    assert hf_to_meta(renamed) == ({name: name for name in state}, [])


def test_all_forms_load_to_bit_equal_decoders(tmp_path: Path, state: dict[str, Tensor]) -> None:
    constants = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    torch.save(state | constants, tmp_path / "plain.pth")
    torch.save({"model": state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "wrapped.pth")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "prefixed.pt")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    folder = write_folder(tmp_path / "hf", state)
    sources: list[str | Path] = [tmp_path / n for n in ("plain.pth", "wrapped.pth", "prefixed.pt", "legacy.pth")]
    hashes = set()
    for source in [*sources, folder, str(folder)]:
        loaded = load_checkpoint(source)
        assert_same(loaded.decoder, state)
        assert not loaded.decoder.training
        assert (loaded.encoder_kind, loaded.source) == ("none", str(source))
        hashes.add(loaded.sha256)
    assert hashes == {state_sha256(state)}
    decoder = load_checkpoint(folder).decoder
    assert torch.equal(decoder.image_pe, decoder.prompt_encoder.pe_layer.grid((64, 64)))


def test_hash_sees_values_names_and_shapes() -> None:
    ones = torch.ones(2, 3)
    states = [{"a": ones}, {"b": ones}, {"a": ones.T}, {"a": 2 * ones}, {"a": ones, "b": ones}]
    assert len({state_sha256(state) for state in states}) == len(states)
    assert state_sha256({"a": ones, "b": 2 * ones}) == state_sha256({"b": 2 * ones.half(), "a": ones})


def test_half_precision_and_shards(tmp_path: Path, state: dict[str, Tensor]) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        folder = write_folder(tmp_path / str(dtype), state, dtype=dtype)
        assert_same(load_checkpoint(folder).decoder, {name: value.to(dtype) for name, value in state.items()})
    folder = write_folder(tmp_path / "sharded", state)
    (folder / "model.safetensors").unlink()
    hf = list(meta_to_hf(state)[0].items())
    shards = {"model-00001-of-00002.safetensors": dict(hf[:50]), "model-00002-of-00002.safetensors": dict(hf[50:])}
    for name, part in shards.items():
        save_file(part, folder / name)
    index = {"weight_map": {tensor: name for name, part in shards.items() for tensor in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load_checkpoint(folder).decoder, state)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors"):
        load_checkpoint(folder)
    index["weight_map"]["x"] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="must be a file of the same folder"):
        load_checkpoint(folder)


def test_tied_copy_may_be_there_but_not_differ(tmp_path: Path, state: dict[str, Tensor]) -> None:
    hf = meta_to_hf(state)[0]
    folder = write_folder(tmp_path / "hf", state)
    for extra, removed in ((hf[HF_TIED_SOURCE].clone(), ""), (hf[HF_TIED_SOURCE].clone(), HF_TIED_SOURCE)):
        tensors = {name: value for name, value in hf.items() if name != removed}
        save_file(tensors | {HF_TIED_COPY: extra}, folder / "model.safetensors")
        assert_same(load_checkpoint(folder).decoder, state)
    save_file(hf | {HF_TIED_COPY: 2 * hf[HF_TIED_SOURCE]}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="must be equal"):
        load_checkpoint(folder)


def vit(dims: int, layers: int) -> dict[str, Tensor]:
    blocks = {f"blocks.{i}.attn.qkv.weight": torch.zeros(1) for i in range(layers)}
    return blocks | {"patch_embed.proj.weight": torch.zeros(dims, 3, 1, 1)}


@pytest.mark.parametrize(
    ("kind", "encoder"),
    [
        ("vit_b", vit(768, 12)),
        ("vit_l", vit(1024, 24)),
        ("vit_h", vit(1280, 32)),
        ("vit_standin", vit(128, 4)),
        ("vit_other", vit(384, 12)),
        ("mobile_sam", {"patch_embed.seq.0.c.weight": torch.zeros(1), "layers.0.blocks.0.conv1.c.weight": torch.zeros(1)}),
        ("efficientvit", {"backbone.stages.0.op_list.0.main.conv.weight": torch.zeros(1), "norm.weight": torch.zeros(1)}),
        ("unknown", {"features.0.weight": torch.zeros(1)}),
    ],
)
def test_encoder_kinds(tmp_path: Path, state: dict[str, Tensor], kind: str, encoder: dict[str, Tensor]) -> None:
    torch.save(state | {f"image_encoder.{name}": value for name, value in encoder.items()}, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded.encoder_kind == kind
    assert loaded.sha256 == state_sha256(state)
    assert loaded.has_image_encoder == (kind.startswith("vit") or kind == "mobile_sam")
    if not loaded.has_image_encoder:
        with pytest.raises(CheckpointError, match=rf"\({kind}\) that cannot be run here; bring embeddings from a file"):
            loaded.image_encoder()


def test_decoder_alone_has_no_encoder(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds no image encoder; bring embeddings from a file: \.npz with image_emb"):
        load_checkpoint(tmp_path / "a.pth").image_encoder()


def test_hub_id(tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        CheckpointError, match=r"cannot get 'someone/some-sam' from the Hugging Face hub \(LocalEntryNotFound"
    ) as e:
        load_checkpoint("someone/some-sam")
    assert "\n" not in str(e.value)
    folder = write_folder(tmp_path / "hf", state)
    asked: list[str] = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, allow_patterns: asked.append(name) or str(folder))
    loaded = load_checkpoint("someone/some-sam")
    assert_same(loaded.decoder, state)
    assert (asked, loaded.source) == (["someone/some-sam"], "someone/some-sam")


def test_standins(tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "DATA_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="missing from this installation"):
        load_checkpoint("standin")
    write_folder(tmp_path / "standin", state, dtype=torch.float16)
    standin, hard = load_checkpoint("standin"), load_checkpoint("standin-hard")
    assert_same(standin.decoder, {name: value.half() for name, value in state.items()})
    assert standin.sha256 != hard.sha256
    assert hard.sha256 == load_checkpoint("standin-hard").sha256
    lin1 = "mask_decoder.transformer.layers.0.mlp.lin1.weight"
    assert hard.decoder.state_dict()[lin1].abs().max() > 20 * standin.decoder.state_dict()[lin1].abs().max()
