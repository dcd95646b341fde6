"""Checkpoints as trainers and their tools leave them: Hugging Face names, wrappers, prefixes, objects beside the weights."""

from __future__ import annotations

import argparse
import builtins
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import assert_same, make_state, save_file, write_folder
from torch import Tensor

from trt_sam.errors import CheckpointError
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.model.naming import HF_TIED_COPY, HF_TIED_SOURCE, meta_to_hf

pytestmark = pytest.mark.usefixtures("one_torch_thread")

ENCODER = {"vision_encoder.patch_embed.projection.weight": torch.ones(768, 3, 16, 16)} | {
    f"vision_encoder.layers.{i}.layer_norm1.weight": torch.ones(1) for i in range(12)
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return make_state()


@pytest.fixture(scope="module")
def hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `SamModel(config).state_dict()` gives: both copies of the tied tensor, and the image encoder."""
    renamed = meta_to_hf(state)[0]
    return renamed | ENCODER | {HF_TIED_COPY: renamed[HF_TIED_SOURCE].clone()}


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.sam."])
@pytest.mark.parametrize("wrapper", ["", "model_state_dict", "state_dict", "net"])
def test_hugging_face_names_in_a_pth(
    hf: dict[str, Tensor], state: dict[str, Tensor], prefix: str, wrapper: str, tmp_path: Path
) -> None:
    saved: dict[str, Any] = prefixed(hf, prefix)
    torch.save({"epoch": 3, wrapper: saved, "loss": 0.5} if wrapper else saved, tmp_path / "tuned.pth")
    checkpoint = load_checkpoint(tmp_path / "tuned.pth")
    assert_same(checkpoint.decoder, state)
    assert checkpoint.encoder_kind == "vit_b"


def test_misfits_have_the_names_of_the_file(hf: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(
        {n: v for n, v in hf.items() if "upscale_conv1" not in n} | {"mask_decoder.odd": torch.ones(1)}, tmp_path / "a.pth"
    )
    with pytest.raises(CheckpointError, match=r"missing mask_decoder\.upscale_conv1\.weight, .*unexpected mask_decoder\.odd"):
        load_checkpoint(tmp_path / "a.pth")
    torch.save(hf | {HF_TIED_COPY: torch.zeros(2, 128)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="differs from shared_image_embedding"):
        load_checkpoint(tmp_path / "b.pth")


def test_a_lone_safetensors_file(hf: dict[str, Tensor], state: dict[str, Tensor], tmp_path: Path) -> None:
    for name, saved in (("hf", hf), ("meta", state), ("lightning", prefixed(state, "model.") | {"loss.weight": torch.ones(3)})):
        save_file({key: value.contiguous() for key, value in saved.items()}, tmp_path / f"{name}.safetensors")
        assert_same(load_checkpoint(tmp_path / f"{name}.safetensors").decoder, state)


@pytest.mark.parametrize("with_config", [True, False])
def test_a_folder_with_a_pytorch_model_bin(
    hf: dict[str, Tensor], state: dict[str, Tensor], with_config: bool, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "hf", state)
    (folder / "model.safetensors").unlink()
    if not with_config:
        (folder / "config.json").unlink()
    torch.save(hf, folder / "pytorch_model.bin")
    checkpoint = load_checkpoint(folder)
    assert_same(checkpoint.decoder, state)
    assert checkpoint.encoder_kind == "vit_b"


def test_shards_of_pytorch_model_bin(hf: dict[str, Tensor], state: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", state)
    (folder / "model.safetensors").unlink()
    first = dict(list(hf.items())[::2])
    torch.save(first, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({name: value for name, value in hf.items() if name not in first}, folder / "pytorch_model-00002-of-00002.bin")
    shards = {name: f"pytorch_model-0000{1 if name in first else 2}-of-00002.bin" for name in hf}
    (folder / "pytorch_model.bin.index.json").write_text(f'{{"weight_map": {shards!r}}}'.replace("'", '"'))
    assert_same(load_checkpoint(folder).decoder, state)


def test_a_folder_without_a_config(state: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", state)
    (folder / "config.json").unlink()
    assert_same(load_checkpoint(folder).decoder, state)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not found: .*model\.safetensors"):
        load_checkpoint(folder)


class Settings:
    """A trainer's own class."""

    def __init__(self) -> None:
        self.learning_rate = 1e-4


class Config(dict[str, Any]):
    """As mmengine's: a dictionary with more."""


class History(list[float]): ...


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights_are_passed_over(state: dict[str, Tensor], zipped: bool, tmp_path: Path) -> None:
    config, history = Config(lr=1), History([1.0, 2.0])
    trainer = {
        "args": argparse.Namespace(output=Path("runs"), betas=(0.9, 0.999)),
        "best": np.float64(0.91),
        "rng": np.arange(3),
        "settings": Settings(),
        "config": config,
        "history": history,
        "meters": defaultdict(list, loss=[1.0]),
        "seen": {1, 2},
        "model": prefixed(state, "module."),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": np.float32(1e-4)}]},
    }
    torch.save(trainer, tmp_path / "trainer.pth", _use_new_zipfile_serialization=zipped)
    assert_same(load_checkpoint(tmp_path / "trainer.pth").decoder, state)


def test_wrappers_leave_no_trace(state: dict[str, Tensor], tmp_path: Path) -> None:
    compiled = {name.replace("mask_decoder.", "mask_decoder._orig_mod."): value for name, value in state.items()}
    torch.save({"epoch": 1, **compiled}, tmp_path / "compiled.pth")
    assert_same(load_checkpoint(tmp_path / "compiled.pth").decoder, state)
    torch.save({"trainer": {"ema": prefixed(state, "_orig_mod.")}}, tmp_path / "deep.pth")
    assert_same(load_checkpoint(tmp_path / "deep.pth").decoder, state)


class Call:
    """What a hostile pickle does: call a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_executed(state: dict[str, Tensor], zipped: bool, tmp_path: Path) -> None:
    trap, kept = tmp_path / "trap", tmp_path / "kept"
    kept.mkdir()
    hostile = [
        Call(subprocess.check_call, ["touch", str(trap)]),
        Call(builtins.exec, f"open({str(trap)!r}, 'w')"),
        Call(builtins.getattr, Call(builtins.__import__, "os"), "system"),
        Call(shutil.rmtree, str(kept)),
        Call(builtins.open, str(trap), "w"),
    ]
    torch.save({"model": state, "args": hostile}, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    assert_same(load_checkpoint(tmp_path / "evil.pth").decoder, state)
    assert not trap.exists()
    assert kept.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)  # the traps are real
    assert trap.exists()
    assert not kept.exists()


def test_a_whole_model_and_numpy_weights_are_told_of(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(Settings(), tmp_path / "model.pth")
    with pytest.raises(
        CheckpointError, match=r"holds a Settings, must hold a dictionary of tensors by name; save the state_dict"
    ):
        load_checkpoint(tmp_path / "model.pth")
    torch.save(state | {"mask_decoder.iou_token.weight": np.zeros((1, 256))}, tmp_path / "numpy.pth")
    with pytest.raises(CheckpointError, match=r"'mask_decoder.iou_token.weight' is a .*, must be a tensor"):
        load_checkpoint(tmp_path / "numpy.pth")


@pytest.mark.parametrize(
    "names",
    [
        ["maskmem_tpos_enc", "image_encoder.trunk.pos_embed", "sam_mask_decoder.iou_token.weight"],
        ["memory_attention.layers.0.norm1.weight", "mask_decoder.iou_token.weight"],
        ["module.sam_mask_decoder.transformer.norm_final_attn.weight"],
    ],
)
def test_sam_2_is_called_by_its_name(names: list[str], tmp_path: Path) -> None:
    torch.save({"model": {name: torch.ones(1) for name in names}}, tmp_path / "sam2_hiera_tiny.pt")
    with pytest.raises(CheckpointError, match=r"is a SAM 2 .*give a SAM: vit_b, vit_l, vit_h or MobileSAM"):
        load_checkpoint(tmp_path / "sam2_hiera_tiny.pt")
