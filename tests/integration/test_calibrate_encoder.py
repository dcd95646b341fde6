"""`trt-sam calibrate --encoder`: the stand-in's small ViT through every step, and what is told of bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from calibrators.encoder_pipeline import quantize_encoder
from calibrators.pictures import picture_feeds
from tests.fixtures.pinned_rtx import pinned_rtx
from tests.fixtures.real import photo_file
from trt_sam._files import sha256_of
from trt_sam.cli import main
from trt_sam.engine.builder import build_engine
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import GraphError, RecipeError
from trt_sam.graph.metadata import check_encoder, read_graph
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.quantize.share import find_products, product_groups
from trt_sam.recipe import EngineRecipe
from trt_sam.runtime.onnx_encoder import OnnxEncoder

pytestmark = pytest.mark.usefixtures("one_torch_thread")

PHOTOS = ("chelsea.png", "rocket.jpg")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        shutil.copy(photo_file(name), folder)
    return folder


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Exports are compared with PyTorch by other tests, and few prompts judge."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trt_sam.graph.encoder.compare_with_pytorch", lambda *_: (0.0, 0.0))
        patch.setattr("calibrators.encoder_pipeline._JUDGED_IMAGES", 1)
        patch.setattr("calibrators.encoder_pipeline._JUDGED_PROMPTS", 4)
        yield


@pytest.fixture(scope="module")
def calibrated(photos: Path, quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph, with its report beside it."""
    path = tmp_path_factory.mktemp("calibrated") / "encode_int8.onnx"
    command = ["calibrate", "--checkpoint", "standin", "--encoder", "--photos", str(photos), "--output", str(path)]
    assert main([*command, "--json", str(path.with_suffix(".json"))]) == 0
    return path


def test_the_graph_and_what_it_says_of_itself(calibrated: Path, photos: Path) -> None:
    graph = read_graph(calibrated)
    assert check_encoder(graph) == "int8"
    assert graph.quantized
    assert graph.calibrated is not None
    assert graph.calibrated["image_sha256"] == [each.digest.hex() for each in picture_feeds(photos).pictures]
    assert graph.calibrated["photo_sha256"] == [sha256_of(photos / name) for name in PHOTOS]
    assert graph.calibration == picture_feeds(photos).fingerprint
    model = onnx.load(calibrated)
    blocks = sum(node.op_type == "Softmax" for node in model.graph.node)
    # LayerNorm, attention and GELU each give one tensor that is quantized once; each product has its weight.
    assert graph.nodes["QuantizeLinear"] == 3 * blocks
    assert graph.nodes["DequantizeLinear"] == 6 * blocks


def test_the_report(calibrated: Path) -> None:
    report = json.loads(calibrated.with_suffix(".json").read_text())
    assert report["sha256"] == sha256_of(calibrated)
    assert {row["calibrator"] for row in report["tensors"]} == {"max"}
    assert [row["group"] for row in report["tensors"]][:3] == ["block0.qkv", "block0.attn_out", "block0.mlp_in"]
    assert report["agreement"]["prompts"] == 4
    assert report["agreement"]["mean_iou"] > 0.98
    assert 0.1 < report["quantized_share"] < 0.9


def test_the_embedding_is_near_float32s(calibrated: Path, photos: Path) -> None:
    (feed, *_) = picture_feeds(photos)
    found = OnnxEncoder(calibrated, threads=1).embed_frame(feed["image"], feed["image_size"])
    expected = load_checkpoint("standin").image_encoder().embed(np.asarray(Image.open(photos / PHOTOS[0]).convert("RGB")))
    difference = np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())
    print(f"relative difference {difference:.4f}")
    assert 0 < difference < 0.05


def test_a_vit_builds(calibrated: Path) -> None:
    depth = sum(node.op_type == "Softmax" for node in onnx.load(calibrated).graph.node)
    result = build_engine(calibrated, EngineRecipe(compute_capabilities=("8.9",)), flavour=pinned_rtx())
    (kernels,) = result.kernels
    print(kernels)
    assert kernels.int8_products == 3 * depth
    assert kernels.fused_attentions == depth
    assert result.warnings == ()


@pytest.mark.slow
def test_a_set_with_it(calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Engines by RTX; on a CPU the set's graphs take a photograph."""
    folder = tmp_path / "set"
    command = ["build", "--checkpoint", "standin", "--encoder-onnx", str(calibrated), "--backend", "rtx"]
    assert main([*command, "--compute-capability", "8.9", "--output", str(folder)]) == 0
    graph = open_manifest(folder).graph("encode")
    assert graph.options.precision == "int8"
    assert graph.calibration == read_graph(calibrated).calibration
    mask = tmp_path / "mask.png"
    segment = ["segment", str(photo_file("rocket.jpg")), "--set", str(folder), "--point", "320,200", "--output", str(mask)]
    assert main(segment) == 0
    assert np.asarray(Image.open(mask)).shape == (427, 640)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoder-onnx", "none.onnx"], "none.onnx"),
        (["--encoder-onnx", "other.onnx"], "other.onnx is not an image encoder"),
        (["--encoder", "--encoder-onnx", "other.onnx"], "not allowed with argument --encoder"),
    ],
)
def test_encoders_that_cannot_be_built(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [value], [value])), "other.onnx")
    try:
        code = main(["build", "--checkpoint", "standin", *flags, "--output", "set"])
    except SystemExit as ended:  # argparse's own
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.slow
def test_again_gives_the_same_bytes(calibrated: Path, photos: Path, tmp_path: Path) -> None:
    quantize_encoder(load_checkpoint("standin"), picture_feeds(photos), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == calibrated.read_bytes()


def test_what_is_quantized_already_is_refused(calibrated: Path) -> None:
    with pytest.raises(GraphError, match="is quantized already"):
        find_products(onnx.load(calibrated))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--embeddings", "E"], "--embeddings E is what an image encoder made, and cannot calibrate it; give --photos DIR"),
        (["--photos", "P", "--mask-input"], "--mask-input is of a decoder's calibration; with --encoder leave it out"),
        (["--photos", "P", "--prompts-per-image", "4"], "--prompts-per-image is of a decoder's calibration"),
        (["--photos", "P", "--random-prompts"], "--random-prompts is of a decoder's calibration"),
        (["--photos", "P", "--precision", "fp8"], "--precision is fp8, an image encoder is calibrated for int8"),
        (["--photos", "P", "--calibrator", "auto"], "--calibrator auto chooses for a decoder"),
        (["--photos", "P"], "P"),
        (["--photos", "EMPTY"], "EMPTY"),
    ],
)
def test_flags_that_cannot_be(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    assert main(["calibrate", "--checkpoint", "standin", "--encoder", *flags, "--output", "e.onnx"]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "e.onnx").exists()


def test_photographs_that_tell_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((40, 60, 3), 7, np.uint8)).save(tmp_path / "grey.png")
    command = [
        "calibrate",
        "--checkpoint",
        "standin",
        "--encoder",
        "--photos",
        str(tmp_path),
        "--output",
        str(tmp_path / "e.onnx"),
    ]
    assert main(command) == 2
    assert "grey.png is of one colour everywhere" in capsys.readouterr().err


def test_tiers_are_groups_of_layers() -> None:
    """Needs no calibration: names alone."""
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node("Softmax", ["x"], ["y"], name="encoder.blocks.0.attn/Softmax"),
                *(
                    onnx.helper.make_node("MatMul", ["x", name], [f"{name} y"], name=f"encoder.blocks.0.{name}/MatMul")
                    for name in ("attn.qkv", "attn.proj", "lin1", "lin2")
                ),
            ],
            "g",
            [],
            [],
            [onnx.numpy_helper.from_array(np.ones((4, 8), np.float32), n) for n in ("attn.qkv", "attn.proj", "lin1", "lin2")],
        )
    )
    onnx.helper.set_model_props(model, {"trt_sam.role": "encode"})
    assert list(product_groups(find_products(model))) == ["block0.qkv", "block0.attn_out", "block0.mlp_in"]
    assert list(product_groups(find_products(model, ("B",)))) == ["block0.mlp_out"]
    with pytest.raises(RecipeError, match="no product is left to quantize: tiers C"):
        find_products(model, ("C",))
    with pytest.raises(RecipeError, match=r"names 'block1\.qkv', which is no group of this graph; known are block0\.qkv"):
        find_products(model, keep_fp16=("block1.qkv",))
