"""Decoder weights and the folders that hold them, for the tests of loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trt_sam.model import SamDecoder
from trt_sam.model.naming import meta_to_hf

save_file = pytest.importorskip("safetensors.torch").save_file


def make_state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: value.clone() for name, value in SamDecoder().state_dict().items()}


def write_folder(folder: Path, meta: dict[str, Tensor], *, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    hf, unknown = meta_to_hf(meta)
    assert unknown == []
    save_file({name: value.to(dtype).contiguous() for name, value in hf.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "sam"} | config))
    return folder


def assert_same(decoder: SamDecoder, state: dict[str, Tensor]) -> None:
    loaded = decoder.state_dict()
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], value.float()), name
