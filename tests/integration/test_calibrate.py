"""`trt-sam calibrate` on the stand-in: photos to a Q/DQ graph and a report; embeddings of another encoder are refused."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from PIL import Image as PillowImage

from calibrators import pipeline
from calibrators.calibration import MARGIN
from calibrators.sources import from_folder
from tests.fixtures.exports import copy_standin_graph, standin
from trt_sam.commands import calibrate
from trt_sam.errors import InputError
from trt_sam.feeds.scenes import HELD_OUT_SEED, make_scene
from trt_sam.imaging.embeddings import embed_photo, load_embedding, save_embedding

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def _cached_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "export_decoder", copy_standin_graph)


def run(*flags: object) -> int:
    parser = argparse.ArgumentParser()
    calibrate.add_arguments(parser)
    return calibrate.run(parser.parse_args([str(flag) for flag in flags]))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(2):
        scene = make_scene(HELD_OUT_SEED + 5000 + number)
        PillowImage.fromarray(scene.image).save(folder / f"scene{number}.png")
    return folder


def test_photos_to_an_int8_graph_and_a_report(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    output, report_path = tmp_path / "int8.onnx", tmp_path / "report.json"
    flags = ("--checkpoint", "standin", "--photos", photos, "--prompts-per-image", 4, "--calibrator", "entropy")
    assert run(*flags, "--output", output, "--json", report_path) == 0
    out, _ = capsys.readouterr()
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == [
        "calibrating on few images: 2, give 16 or more"
    ]
    assert out.count("\n") == 1
    assert "int8, 5 tensors by entropy, 74% of multiply-adds; 2 images, 8 prompts" in out

    report = json.loads(report_path.read_text())
    assert [row["group"] for row in report["tensors"]] == [
        "block0.image",
        "block0.image_out",
        "block1.image",
        "block1.image_out",
        "final.image",
    ]
    assert report["checkpoint_sha256"] == standin().sha256
    assert (report["feeds"]["images"], report["feeds"]["prompts"], len(report["feeds"]["fingerprint"])) == (2, 8, 64)
    for row in report["tensors"]:
        assert row["scale"] == row["amax"] / 127
        assert 0 < row["amax"] <= MARGIN * row["largest"] * (1 + 1e-6)
        assert 0 <= row["clipped"] < 0.01
        assert row["calibrator"] == "entropy"

    model = onnx.load(output)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["trt_sam.options"])["precision"] == "int8"
    about = json.loads(metadata["trt_sam.calibration"])
    assert about["fingerprint"] == report["feeds"]["fingerprint"]
    assert about["quantization"]["tiers"] == ["A"]
    # The graph has the scales of the report, as float16.
    found = sorted(float(scale) for scale in activation_scales(model).values())
    assert found == sorted(float(np.float16(row["scale"])) for row in report["tensors"])


def activation_scales(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.input[0]: onnx.numpy_helper.to_array(stored[node.input[1]])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def test_embeddings_of_another_encoder_are_refused_and_nothing_is_written(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "embeddings"
    folder.mkdir()
    for photo in sorted(photos.iterdir()):
        save_embedding(folder / f"{photo.stem}.npz", embed_photo(photo, standin().image_encoder()))
    assert [each.prompts for each in from_folder(folder, None, standin().image_encoder().sha256)] == [None, None]
    for path in folder.iterdir():
        save_embedding(path, dataclasses.replace(load_embedding(path), encoder_sha256="ef" * 32))
    with pytest.raises(InputError, match="another image encoder"):
        run("--checkpoint", "standin", "--embeddings", folder, "--output", tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()
