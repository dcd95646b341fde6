"""Checkpoints that are refused: weights that do not fit, code in a pickle, damaged files and folders."""

from __future__ import annotations

import os
import pickle
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import assert_same, make_state, save_file, write_folder
from torch import Tensor

from trt_sam.errors import CheckpointError
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.model.naming import meta_to_hf

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return make_state()


def test_misfits_are_named_up_to_five(tmp_path: Path, state: dict[str, Tensor]) -> None:
    misfit = {name: value for name, value in state.items() if ".self_attn." not in name}
    misfit |= {"mask_decoder.hf_token.weight": torch.zeros(1), "mask_decoder.mask_tokens.weight": torch.zeros(5, 256)}
    misfit["mask_decoder.iou_token.weight"] = torch.zeros(1, 256, dtype=torch.int64)
    torch.save(misfit, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "a.pth")
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("self_attn") == 5
    assert "missing mask_decoder.transformer.layers.0.self_attn.q_proj.weight, " in message
    assert "and 11 more; unexpected mask_decoder.hf_token.weight; " in message
    assert "mask_decoder.mask_tokens.weight is float32 [5, 256], must be [4, 256]" in message
    assert "mask_decoder.iou_token.weight is int64 [1, 256], must be [1, 256]" in message


def test_misfits_of_a_folder_have_its_names(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder = write_folder(tmp_path / "hf", state)
    hf = meta_to_hf(state)[0]
    del hf["mask_decoder.upscale_conv1.weight"]
    save_file(hf | {"mask_decoder.strange": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"missing mask_decoder\.upscale_conv1\.weight; unexpected mask_decoder\.strange;"
    ):
        load_checkpoint(folder)


def test_weights_must_be_finite(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state | {"mask_decoder.iou_token.weight": torch.full((1, 256), float("nan"))}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in mask_decoder\.iou_token\.weight"):
        load_checkpoint(tmp_path / "a.pth")


class Code:
    """What a hostile pickle does: call something when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["TRT_SAM_TEST_TRAP"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(
    tmp_path: Path, state: dict[str, Tensor], zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    monkeypatch.setenv("TRT_SAM_TEST_TRAP", str(trap))
    torch.save({"model": state, "args": Code()}, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"holds the Python object posix\.mkdir; code in a checkpoint is never run"
    ) as caught:
        load_checkpoint(tmp_path / "evil.pth")
    assert "\n" not in str(caught.value)
    assert not trap.exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Code()))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "plain.pth")
    assert not trap.exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())  # the trap is real: plain unpickling falls into it
    assert trap.exists()


def test_bad_files_are_one_line(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "whole.pth")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    whole, legacy = (tmp_path / "whole.pth").read_bytes(), (tmp_path / "legacy.pth").read_bytes()
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": 1}, tmp_path / "number.pth")
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save(types.SimpleNamespace(x=1), tmp_path / "object.pth")
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "script.pt"))
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_bytes(b"<html>404: Not Found</html>" * 9)
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut_legacy.pth").write_bytes(legacy[: len(legacy) // 2])
    (tmp_path / "model.safetensors").write_bytes(b"x")
    for name, message in (
        ("list.pth", "holds a list, must hold a dictionary"),
        ("number.pth", "'a' is a int, must be a tensor"),
        ("other.pth", r"not a SAM: it has no mask_decoder keys \(conv.weight\)"),
        ("object.pth", "SimpleNamespace"),
        ("script.pt", "is a TorchScript archive, a compiled model; what is needed are its weights"),
        ("empty.pth", "is empty"),
        ("text.pth", "is not a PyTorch checkpoint"),
        ("cut.pth", "damaged, truncated"),
        ("cut_legacy.pth", "damaged, truncated"),
        ("missing.pth", "checkpoint not found"),
        ("some/missing.pth", "checkpoint not found"),
        ("model.safetensors", "is damaged or truncated"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_bad_folders_are_one_line(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder = write_folder(tmp_path / "hf", state)
    whole = (folder / "model.safetensors").read_bytes()
    config, weights = folder / "config.json", folder / "model.safetensors"
    for path, data, message in (
        (config, b"{", "config.json is not JSON"),
        (config, b"[]", "holds a list"),
        (config, b'{"model_type": "sam_hq"}', "model_type 'sam_hq', must be 'sam'"),
        (
            config,
            b'{"model_type": "sam", "mask_decoder_config": {"num_attention_heads": 4}}',
            "num_attention_heads = 4, must be 8",
        ),
        (config, b'{"model_type": "sam", "prompt_encoder_config": {"image_size": 512}}', "image_size = 512, must be 1024"),
        (weights, whole[: len(whole) // 2], "damaged or truncated"),
        (weights, b"", "is empty"),
        (weights, None, "not found: .*model.safetensors"),
    ):
        before = path.read_bytes()
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(folder)
        assert "\n" not in str(caught.value)
        path.write_bytes(before)
    assert_same(load_checkpoint(folder).decoder, state)
