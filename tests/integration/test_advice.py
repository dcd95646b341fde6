"""What a message advises, followed: TensorRT-RTX builds a damaged set again as it was, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.advice import advised
from trt_sam.cli import main
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import ManifestError


def made(folder: Path) -> dict[str, Any]:
    """What the manifest says was built, without when and how long."""
    data: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    del data["created"], data["recipe"]["backend"]  # the advice says which
    for graph in data["graphs"]:
        for file in ("engine", "layers"):
            del graph[file]
    return data


def test_a_damaged_set_is_built_again_by_the_advice(tmp_path: Path) -> None:
    folder = tmp_path / "a set"
    flags = ["--checkpoint", "standin-hard", "--recipe", "standin", "--max-points", "8", "--mask-bits"]
    assert main(["build", *flags, "--compute-capability", "8.9", "--output", str(folder)]) == 0
    before = made(folder)
    with (folder / "decoder.engine").open("r+b") as file:
        file.write(b"damage")
    with pytest.raises(ManifestError) as caught:
        open_manifest(folder)
    words = advised(str(caught.value))
    assert words[:3] == ["build", "--checkpoint", "standin-hard"]  # not the recipe's
    assert main(words) == 0
    open_manifest(folder)
    assert made(folder) == before
