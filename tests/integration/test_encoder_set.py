"""Decoder and image encoder of one checkpoint in a set: photo in, masks out, without torch; and with engines."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.engine_sets import FILES, write_tiny_encoder, write_tiny_graph
from tests.fixtures.real import agreement, golden_masks, photo, photo_file, replay
from tests.helpers import error_line
from tests.real_weights import checkpoint_file
from trt_sam.accuracy.sides import open_side
from trt_sam.cli import main
from trt_sam.engine.manifest import open_manifest
from trt_sam.errors import GraphError, InputError, ManifestError, TrtSamError
from trt_sam.formats.lines import read_lines
from trt_sam.recipe import GraphOptions
from trt_sam.runner import DecoderRunner
from trt_sam.runtime.onnx_encoder import OnnxEncoder
from trt_sam.runtime.onnx_runner import OnnxRunner
from trt_sam.runtime.predictor import Predictor

PHOTO = "rocket.jpg"

TORCH_FREE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnx"):
            raise ModuleNotFoundError(f"{name} is not here", name=name)
sys.meta_path.insert(0, Refuse())
import numpy as np
from trt_sam import OnnxRunner, Predictor
from trt_sam.imaging.photos import read_image
with OnnxRunner(sys.argv[1]) as runner:
    predictor = Predictor(runner)
    predictor.set_image(read_image(sys.argv[2]))
    masks, scores, _ = predictor.predict(np.array([[320, 200]]), np.array([1]))
np.savez(sys.argv[3], masks=masks, scores=scores)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("set") / "mobile_sam"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((1, 2),))
        patch.setattr("trt_sam.graph.encoder.sample_pictures", smaller_samples)
        arguments = ["export", "--checkpoint", str(checkpoint_file("mobile_sam")), "--encoder", "--decode-mask"]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            assert main([*arguments, "--output", str(output)]) == 0
    (output.parent / "said.txt").write_text(said.getvalue())
    return output


def smaller_samples() -> list[tuple[np.ndarray, np.ndarray]]:
    """One picture is enough here: `test_encoder_graph` compares on photographs."""
    return [(np.full((1, 1024, 1024, 3), 90, np.uint8), np.array([700, 1024], np.int32))]


def test_the_export_says_what_it_is_at(folder: Path) -> None:
    said = [line.partition("] ")[2] for line in (folder.parent / "said.txt").read_text().splitlines()]
    files = ("decoder.onnx", "decoder_mask.onnx", "prepare.onnx", "decoder_prepared.onnx", "encoder.onnx")
    assert [line for line in said if not line.endswith(" s so far")] == [
        f"loading {checkpoint_file('mobile_sam')}",
        *(f"exporting in fp32: {file}, {step}" for file in files for step in ("tracing", "comparing with PyTorch")),
        "done",
    ]


def test_the_set_says_what_it_holds(folder: Path) -> None:
    manifest = open_manifest(folder)
    assert [graph.role for graph in manifest.graphs] == ["decode", "decode_mask", "prepare", "decode_prepared", "encode"]
    assert (manifest.flavour, manifest.target) == ("onnxruntime", "cpu")
    assert {graph.options.target for graph in manifest.graphs} == {"cpu"}
    assert manifest.recipe.checkpoint == str(checkpoint_file("mobile_sam"))
    assert len({graph.checkpoint_sha256 for graph in manifest.graphs}) == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        *("decoder.onnx", "decoder_mask.onnx", "decoder_prepared.onnx", "encoder.onnx", "manifest.json", "prepare.onnx")
    ]
    side = open_side(str(folder))
    side.runner.close()
    assert [path.name for path in side.left_out] == ["decoder_mask.onnx", "decoder_prepared.onnx"], "compare says so"


def test_inspect_tells_of_a_set_without_engines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"role (\w+), graph [\d.]+ MB", said) == ["decode", "decode_mask", "prepare", "decode_prepared", "encode"]
    assert "for onnxruntime" in said
    assert "kernels" not in said


def test_photo_in_masks_out(folder: Path) -> None:
    with OnnxRunner(folder) as runner:
        predictor = Predictor(runner)
        predictor.set_image(photo(PHOTO))
        mean, least, scores = agreement(replay(predictor, PHOTO), golden_masks(PHOTO))
        assert mean >= 0.9999
        assert least >= 0.999
        assert scores < 1e-4
        before = runner.image_id
        runner.set_image(photo(PHOTO))
        assert runner.image_id > before


def test_the_api_without_torch(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TORCH_FREE, str(folder), str(photo_file(PHOTO)), str(tmp_path / "found.npz")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        assert found["masks"].shape == (3, 427, 640)
        assert found["scores"].max() > 0.8


def test_segment_without_torch(folder: Path, tmp_path: Path) -> None:
    """The command as a user gives it, where importing torch, transformers and onnx fails."""
    code = TORCH_FREE.partition("import numpy")[0] + "from trt_sam.cli import main\nsys.exit(main(sys.argv[1:]))"
    mask = tmp_path / "mask.png"
    arguments = ["segment", str(photo_file(PHOTO)), "--set", str(folder), "--point", "320,200", "--output", str(mask)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ONNX Runtime (fp32 graph, CPU)" in done.stdout
    written = np.asarray(Image.open(mask))
    assert written.shape == (427, 640)
    with OnnxRunner(folder) as runner:
        predictor = Predictor(runner)
        predictor.set_image(photo(PHOTO))
        masks, scores, _ = predictor.predict(np.array([[320, 200]]), np.array([1]))
    np.testing.assert_array_equal(written > 0, masks[scores.argmax()])


def test_a_folder_of_photos_through_a_set(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(Path(__file__).parents[2] / "samples" / "astronaut.jpg", photos / "astronaut.jpg")
    (tmp_path / "prompts.json").write_text(json.dumps({"images": {"astronaut.jpg": [{"points": [[220, 400]], "labels": [1]}]}}))
    output = tmp_path / "masks.jsonl"
    words = ["segment", str(photos), "--set", str(folder), "--prompts", str(tmp_path / "prompts.json"), "--output", str(output)]
    assert main(words) == 0
    (line,) = read_lines(output)
    assert len(line["annotations"]) == 1
    assert line["annotations"][0]["area"] > 10_000
    assert "1 photo, 1 mask" in capsys.readouterr().out
    # The set counts by its contents: a copy is the same one, and another one under the same path is not.
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    words[words.index(str(folder))] = str(copy)
    assert main(words) == 0
    assert "0 photos, 0 masks, 1 were there" in capsys.readouterr().out
    manifest = json.loads((copy / "manifest.json").read_text())
    decoder = next(graph for graph in manifest["graphs"] if graph["role"] == "decode")
    before, decoder["onnx"]["sha256"] = decoder["onnx"]["sha256"], "ab" * 32
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert main(words) == 2
    assert f"--set (decode) was SHA-256 {before[:12]}, now SHA-256 abababababab; name another" in capsys.readouterr().err
    assert read_lines(output) == [line]


def test_engines_are_not_looked_for_in_a_set_of_graphs(folder: Path) -> None:
    with pytest.raises(ManifestError, match="holds graphs for ONNX Runtime and no engine; open it with OnnxRunner"):
        open_manifest(folder).engine(open_manifest(folder).graph("decode"))
    with pytest.raises(TrtSamError):
        DecoderRunner.open(folder)


def test_bad_input_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="was opened without an image encoder; give an embedding, or open a set"):
        OnnxRunner(folder / "decoder.onnx").set_image(photo(PHOTO))
    with pytest.raises(GraphError, match="is not an image encoder"):
        OnnxEncoder(folder / "decoder.onnx")
    with pytest.raises(ManifestError, match=r"is no set of graphs: it has no manifest\.json"):
        OnnxRunner(tmp_path / "manifest.json")
    with pytest.raises(InputError, match=r"must be uint8 \[height, width, 3\]"):
        OnnxEncoder(folder / "encoder.onnx").embed(np.zeros((4, 4), np.uint8))


def test_an_encoder_of_another_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    changed = tmp_path / "set"
    changed.mkdir()
    for name in ("decoder.onnx", "decoder_mask.onnx", "prepare.onnx", "decoder_prepared.onnx"):
        (changed / name).symlink_to(folder / name)
    model = onnx.load(folder / "encoder.onnx")
    for entry in model.metadata_props:
        if entry.key == "trt_sam.checkpoint_sha256":
            entry.value = "0" * 64
    onnx.save(model, changed / "encoder.onnx")
    data = json.loads((folder / "manifest.json").read_text())
    (changed / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=r"encoder\.onnx is not the graph that the set was written with"):
        OnnxRunner(changed)
    from trt_sam._files import sha256_of

    data["graphs"][-1]["onnx"]["sha256"] = sha256_of(changed / "encoder.onnx")
    (changed / "manifest.json").write_text(json.dumps(data))
    with OnnxRunner(changed) as runner, pytest.raises(GraphError, match="is the encoder of another checkpoint than"):
        runner.set_image(photo(PHOTO))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "--output", "a.onnx"], "with --encoder it is a folder"),
        (["--decode-mask", "--output", "a.onnx"], "give --encoder with it"),
        (["--encoder", "--mask-input", "--output", "a"], "leave --mask-input out"),
        (["--encoder", "--precision", "int8", "--output", "a"], "precision int8 needs calibrated scales"),
    ],
)
def test_flags_that_cannot_be(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--checkpoint", str(checkpoint_file("mobile_sam")), *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_encoder_of_a_set_has_the_form_that_was_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trt_sam.graph.parity.PARITY_SHAPES", ((1, 2),))
    monkeypatch.setattr("trt_sam.graph.encoder.sample_pictures", smaller_samples)
    arguments = ["export", "--checkpoint", str(checkpoint_file("mobile_sam")), "--encoder", "--target", "gpu"]
    assert main([*arguments, "--output", str(tmp_path / "set")]) == 0
    counts = [
        sum(node.op_type == "Conv" for node in onnx.load(each / "encoder.onnx").graph.node)
        for each in (folder, tmp_path / "set")
    ]
    assert counts == [29 + 2 * 10, 29], "for a CPU the layers of the MLPs are convolutions"


@pytest.mark.slow
def test_a_set_with_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", "--checkpoint", str(checkpoint_file("mobile_sam")), "--encoder", "--backend", "rtx"]
    assert main([*arguments, "--compute-capability", "8.9", "--output", str(tmp_path / "set")]) == 0
    printed = capsys.readouterr().out
    assert "encode: profile 1:" in printed
    assert "10 fused attentions" in printed
    manifest = open_manifest(tmp_path / "set")
    assert [graph.role for graph in manifest.graphs] == ["decode", "encode"]
    assert manifest.graph("encode").limits == {}
    with OnnxRunner(tmp_path / "set") as runner:
        predictor = Predictor(runner)
        predictor.set_image(photo(PHOTO))
        assert predictor.predict(np.array([[320, 200]]), np.array([1]))[1].max() > 0.8
    # A set without the encoder takes its place, and its files go.
    assert main([*arguments[:3], "--backend", "rtx", "--compute-capability", "8.9", "--output", str(tmp_path / "set")]) == 0
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == sorted([*FILES, "decoder.layers.json"])


def test_a_set_of_two_graphs_and_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_graph(tmp_path / "decoder.onnx")
    write_tiny_encoder(tmp_path / "encoder.onnx")
    write_tiny_encoder(tmp_path / "other.onnx", checkpoint_sha256="cd" * 32)
    arguments = ["build", "--onnx", str(tmp_path / "decoder.onnx"), "--backend", "rtx", "--compute-capability", "8.9"]
    given = ["--encoder-onnx", str(tmp_path / "encoder.onnx"), "--output", str(tmp_path / "set")]
    assert main([*arguments, *given]) == 0
    assert [graph.role for graph in open_manifest(tmp_path / "set").graphs] == ["decode", "encode"]
    said = capsys.readouterr()
    assert "\n  decoder fp16, image encoder fp16, TensorRT-RTX" in said.out
    assert "image encoder's graph is fp32" not in said.err
    write_tiny_encoder(tmp_path / "fp32.onnx", "fp32")
    assert main([*arguments, "--encoder-onnx", str(tmp_path / "fp32.onnx"), "--output", str(tmp_path / "wide")]) == 0
    said = capsys.readouterr()
    assert "\n  decoder fp16, image encoder fp32, TensorRT-RTX" in said.out
    (warning,) = [line for line in said.err.splitlines() if "image encoder's graph is fp32" in line]
    assert "trt-sam export --checkpoint CHECKPOINT --encoder --precision fp16 --output SET" in warning
    given = ["--encoder-onnx", str(tmp_path / "other.onnx"), "--output", str(tmp_path / "none")]
    capsys.readouterr()
    assert main([*arguments, *given]) == 2
    assert "of another checkpoint than the decoder's" in error_line(capsys.readouterr().err)
    assert not (tmp_path / "none").exists()


def test_a_decoder_for_the_cpu_names_the_export_for_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_graph(tmp_path / "decoder.onnx", GraphOptions(precision="fp32", target="cpu", mask_bits=True))
    write_tiny_encoder(tmp_path / "encoder.onnx", "fp32")
    given = ["--onnx", str(tmp_path / "decoder.onnx"), "--encoder-onnx", str(tmp_path / "encoder.onnx")]
    assert main(["build", *given, "--backend", "rtx", "--output", str(tmp_path / "set")]) == 2
    said = error_line(capsys.readouterr().err)
    assert "was exported with target = 'cpu', and TensorRT takes the gpu form" in said
    assert "trt-sam export --checkpoint CHECKPOINT --precision fp16 --target gpu --mask-bits --output GPU.onnx" in said
    assert said.rstrip().endswith("--encoder instead of --encoder-onnx")
    assert "leave the flag or recipe out" not in said
    assert not (tmp_path / "set").exists()
