"""`trt-sam build --precision int8`: data to engine in one command, and no finished step is done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from PIL import Image

import calibrators.pipeline
from calibrators.sources import digest_of
from tests.fixtures.exports import standin_graph
from tests.helpers import error_line
from trt_sam._files import sha256_of
from trt_sam.cli import main
from trt_sam.engine.manifest import open_manifest
from trt_sam.feeds.scenes import make_scene
from trt_sam.imaging.embeddings import load_embedding
from trt_sam.recipe import GraphOptions

pytestmark = pytest.mark.usefixtures("one_torch_thread")

FLAGS = [
    "--precision",
    "int8",
    "--backend",
    "rtx",
    "--compute-capability",
    "8.9",
    "--prompts-per-image",
    "2",
    "--calibrator",
    "max",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in (1, 2):
        Image.fromarray(make_scene(seed, 256).image).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def built(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built") / "set"

    def export(decoder: object, path: Path, options: GraphOptions, *, checkpoint_sha256: str) -> None:
        shutil.copy(standin_graph(options), path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrators.pipeline, "export_decoder", export)
        assert main(["build", "--checkpoint", "standin", "--photos", str(photos), *FLAGS, "--output", str(output)]) == 0
    return output


def test_one_command_gives_a_set_that_knows_its_calibration(built: Path) -> None:
    manifest = open_manifest(built)
    (graph,) = manifest.graphs
    assert graph.options.precision == "int8"
    (report_path,) = (built / "calibration").glob("int8-*.json")
    report = json.loads(report_path.read_text())
    assert manifest.calibration == report["inputs"]["feeds"]
    nodes = [node.op_type for node in onnx.load(built / "decoder.onnx").graph.node]
    assert "QuantizeLinear" in nodes
    assert graph.kernels[0].int8_products >= len(report["tensors"])
    assert len(list((built / "calibration" / "embeddings").glob("*.npz"))) == 2


def test_manifest_and_report_say_what_was_calibrated_on(built: Path, photos: Path) -> None:
    (graph,) = open_manifest(built).graphs
    (report_path,) = (built / "calibration").glob("int8-*.json")
    about, feeds = graph.calibrated, json.loads(report_path.read_text())["feeds"]
    assert about is not None
    assert about["photo_sha256"] == [sha256_of(photo) for photo in sorted(photos.iterdir())]
    embeddings = [load_embedding(path) for path in (built / "calibration" / "embeddings").glob("*.npz")]
    assert set(about["image_sha256"]) == {digest_of(each.image_embeddings).hex() for each in embeddings}
    assert sum(about["shares"].values()) == pytest.approx(1)
    assert (about["prompts"], about["seed"], about["alpha"]) == (4, 0, 1.0)
    assert set(about["calibrators"].values()) == {"max"}
    assert {name: about[name] for name in ("photo_sha256", "image_sha256", "shares", "seed", "fingerprint")} == {
        name: feeds[name] for name in ("photo_sha256", "image_sha256", "shares", "seed", "fingerprint")
    }


@pytest.mark.slow  # test_compare and test_default_limits judge quantized graphs
def test_the_graph_is_compared_with_pytorch(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--prompts", "8", "--min-prompts", "8", "--max-clear-flips", "1"]
    # Four prompts on two small scenes calibrated it: far from what 16 photographs give, and far from broken.
    wide = {"mean-iou": 0.8, "p5-iou": 0.5, "iou": 0.5, "mean-iou-four": 0.7, "p5-iou-four": 0.3, "sqnr-db": 10}
    limits = [text for name, value in wide.items() for text in (f"--min-{name}", str(value))]
    assert main(["compare", "standin", str(built / "decoder.onnx"), *few, *limits, "--json"]) == 0
    (judged,) = json.loads(capsys.readouterr().out)["candidates"]
    assert judged["passed"] is True
    assert judged["arithmetic"] == "quantized"
    assert judged["figures"]["iou_mean"] < 0.999, "this is the float graph"


def test_what_is_finished_is_not_done_again(
    photos: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "set"
    shutil.copytree(built, output)
    command = ["build", "--checkpoint", "standin", "--photos", str(photos), *FLAGS, "--output", str(output)]

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr(calibrators.pipeline, "quantize_decoder", refuse)
    before = (output / "manifest.json").read_bytes()
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (output / "manifest.json").read_bytes() == before

    # Interrupted after the calibration: only the engine is built.
    (output / "manifest.json").unlink()
    assert main(command) == 0
    assert open_manifest(output).calibration == json.loads(before)["calibration"]

    # Anything that changes is calibrated again: an option, a photo, a damaged graph.
    with pytest.raises(AssertionError, match="calibrated again"):
        main([*command, "--seed", "1"])
    changed = tmp_path / "photos"
    shutil.copytree(photos, changed)
    Image.fromarray(make_scene(3, 256).image).save(changed / "2.png")
    with pytest.raises(AssertionError, match="calibrated again"):
        main(["build", "--checkpoint", "standin", "--photos", str(changed), *FLAGS, "--output", str(output)])
    (graph,) = (output / "calibration").glob("int8-*.onnx")
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(AssertionError, match="calibrated again"):
        main(command)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--precision", "int8"], "needs calibration data"),
        (
            ["--precision", "fp16", "--embeddings", "x"],
            "--embeddings is of no use; leave it out, or give --precision int8 or fp8",
        ),
        (["--precision", "int8", "--embeddings", "missing"], "not found"),
        (["--precision", "int8", "--embeddings", "x", "--tiers", "D"], "tier"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["build", "--checkpoint", "standin", "--backend", "rtx", *flags, "--output", "set"]
    assert main(command) == 2
    assert words in error_line(capsys.readouterr().err)
    assert not (tmp_path / "set").exists()


def test_implicit_is_for_tensorrt_10_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "implicit.toml"
    recipe.write_text('[graph]\nprecision = "int8"\n[quantization]\nmethod = "implicit"\n')
    command = ["build", "--checkpoint", "standin", "--recipe", str(recipe), "--embeddings", str(tmp_path), "--backend", "rtx"]
    assert main([*command, "--output", str(tmp_path / "set")]) == 2
    assert '"explicit"' in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_data_for_a_ready_graph_are_of_no_use_and_the_advice_is_not_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--onnx", "x.onnx", "--precision", "int8", "--embeddings", "e", "--output", "set"]
    assert main(["build", *flags]) == 2
    error = capsys.readouterr().err
    assert "x.onnx has its types already" in error
    assert "leave it out, or give --checkpoint instead of --onnx to calibrate" in error
    assert "give --precision" not in error
