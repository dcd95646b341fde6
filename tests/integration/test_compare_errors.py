"""What `trt-sam compare` refuses in one line: graphs, golden data, folders and flags that nothing can be judged by."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.engine_sets import tiny_set
from tests.fixtures.exports import standin_graph
from tests.fixtures.planted import PLANTS, planted
from tests.helpers import error_line
from trt_sam.cli import main
from trt_sam.machine.driver import gpu_compute_capability
from trt_sam.recipe import GraphOptions

FEW = ("--prompts", "8", "--min-prompts", "8")


@pytest.fixture(scope="module")
def graph() -> Path:
    return standin_graph(GraphOptions(precision="fp32", target="gpu", mask_input=True, full_resolution=True))


def test_a_reference_with_a_nan_is_no_reference(graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(planted(onnx.load(graph), PLANTS["NaN in one pixel"]), tmp_path / "nan.onnx")
    assert main(["compare", str(tmp_path / "nan.onnx"), str(graph), *FEW]) == 2
    assert "values that are NaN or infinite on" in error_line(capsys.readouterr().err)


@pytest.mark.parametrize("output", ["low_res_masks", "iou_predictions"])
def test_a_graph_without_an_output_is_one_line(
    graph: Path, golden: Path, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(graph)
    kept = [each for each in model.graph.output if each.name != output]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, tmp_path / "less.onnx")
    assert main(["compare", "--golden", str(golden), str(tmp_path / "less.onnx"), *FEW]) == 2
    assert f"is a damaged or changed graph: missing, expected {output}" in error_line(capsys.readouterr().err)


@pytest.mark.skipif(gpu_compute_capability() is not None, reason="this machine has a GPU")
def test_an_engine_without_a_gpu_says_what_to_compare_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_set(tmp_path / "set")
    for place in ("set", "set/decoder.engine", "set/manifest.json"):
        assert main(["compare", str(tmp_path / place), "standin"]) == 2
        error = error_line(capsys.readouterr().err)
        assert "cannot execute here: this machine has no NVIDIA GPU or driver" in error
        assert str(tmp_path / "set" / "decoder.onnx") in error


def write_bad_files(golden: Path, place: Path) -> None:
    (place / "cut.npz").write_bytes(golden.read_bytes()[:5000])
    shutil.copy(golden, place / "golden.npz")
    with np.load(golden) as file:
        arrays = {name: file[name] for name in file.files}
    scores = arrays["iou_predictions"].copy()
    scores[0, 0] += 0.1
    np.savez(place / "edited.npz", **{**arrays, "iou_predictions": scores})
    (place / "unknown.toml").write_text("[tolerances]\nlogits = 0.1\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["standin", "missing.onnx"], "not found: missing.onnx"),
        (["no/such/place.pth", "standin"], "checkpoint not found"),
        (["standin", "standin", "--prompts", "0"], "--prompts is 0"),
        (["standin", "standin", "--device", "gpu"], "must be cuda:N"),
        (["standin", "standin", "--embeddings", "missing"], "embeddings folder not found"),
        (["standin", "standin", "--photos", "empty"], "no image"),
        (["standin", "standin", "--random-embeddings", "--embeddings", "empty"], "exclude each other"),
        (["standin", "standin", "--min-iou", "2"], "--min-iou is 2.0, must be from 0 to 1"),
        (["standin", "standin", "--tolerance", "logits=1"], "the output 'logits'; outputs are"),
        (["standin", "standin", "--tolerance", "masks"], "must be OUTPUT=X"),
        (["standin", "standin", "--tolerance", "masks=1"], "a tolerance for masks, which no candidate gives"),
        (
            ["standin", "standin", "--layers"],
            "--layers compares ONNX graphs, and standin is none; name a graph of it that was exported",
        ),
        (["--golden", "golden.npz", "standin", "--layers"], "leave --golden out"),
        (["standin", "standin", "--limits", "missing.toml"], "file of limits not found"),
        (["standin", "empty"], "neither a manifest.json"),
        (["standin", "junk.onnx"], "not an ONNX graph"),
        (["standin"], "there is a reference but no candidate"),
        (["standin", "standin", "--embeddings", "empty"], "no embedding file (.npz, .npy, .safetensors) in empty"),
        (["standin", "standin", "--limits", "unknown.toml"], "unknown.toml: there is a limit for the output 'logits'"),
        (["--golden", "cut.npz", "standin"], "cut short or damaged"),
        (["--golden", "edited.npz", "standin"], "was changed after it was written"),
        (["--golden", "unknown.toml", "standin"], "is no golden data of trt-sam golden"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.onnx").write_bytes(b"not onnx at all")
    write_bad_files(golden, tmp_path)
    code = main(["compare", *arguments])
    assert code == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert error.count("error: ") == 1


@pytest.mark.parametrize("flag", ["--photos", "--embeddings"])
def test_an_empty_folder_is_told_before_a_checkpoint_is_loaded(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "standin", "standin", flag, str(tmp_path)]) == 2
    assert "opening" not in capsys.readouterr().err
