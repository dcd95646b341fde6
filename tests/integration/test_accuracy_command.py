"""`trt-sam accuracy` on the stand-in: a tiny run of the real thing, and what it refuses."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import save_file

from calibrators.sources import from_folder
from trt_sam.commands import accuracy
from trt_sam.commands._accuracy_images import Images, add_image_arguments, open_images
from trt_sam.contract import EMBEDDING_SHAPE
from trt_sam.errors import InputError
from trt_sam.feeds.feeds import random_images
from trt_sam.gate.golden import digest_of_embedding
from trt_sam.imaging.embeddings import Embedding, save_embedding


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    accuracy.add_arguments(parser)
    return accuracy.run(parser.parse_args([str(each) for each in arguments]))


@pytest.mark.slow
def test_a_tiny_table_of_the_standin(tmp_path: Path, capsys: pytest.CaptureFixture[str], one_torch_thread: None) -> None:
    few = ("--images", 2, "--prompts-per-image", 3, "--calibration-images", 3, "--calibration-prompts", 4)
    names = ["fp16", "int8-max-A", "fp8-max-A", "int8-auto-A"]
    assert run("--checkpoint", "standin", *few, "--variants", ",".join(names), "--output", tmp_path / "report") == 0
    printed = capsys.readouterr().out
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    figures = {variant["name"]: variant["overall"] for variant in data["variants"]}
    assert list(figures) == names
    for name, least in (("fp16", 0.995), ("int8-max-A", 0.97), ("fp8-max-A", 0.93), ("int8-auto-A", 0.95)):
        # Six prompts: far from a figure to quote, near enough to tell a working graph from a broken one.
        assert least <= figures[name]["iou_mean"] < 1.0, name
        assert figures[name]["prompts"] == 6
        assert figures[name]["truth_oracle"] >= figures[name]["truth_selected"]
        assert name in printed
    assert figures["fp16"]["sqnr_db"] > figures["int8-max-A"]["sqnr_db"] > figures["fp8-max-A"]["sqnr_db"]
    facts = {variant["name"]: variant["facts"] for variant in data["variants"]}
    # INT8 takes the middle of each channel's range off, FP8 the mean: the ranges about the middle are the smaller ones.
    assert all(facts["int8-max-A"]["ranges"][name] <= limit for name, limit in facts["fp8-max-A"]["ranges"].items())
    assert len(facts["int8-max-A"]["ranges"]) == 5
    assert facts["int8-auto-A"]["choice"]["score"]["prompts"] == 4
    assert "stand-in" in data["conditions"]["checkpoint"]
    page = (tmp_path / "report" / "report.html").read_text()
    # Six prompts are too few to pass, so every one is shown: both masks and their difference.
    assert page.count("data:image/jpeg;base64,") == 4 * 6 * 3
    assert "| int8-max-A |" in (tmp_path / "report" / "report.md").read_text()
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json", "report.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--variants", "fp16,int8-best-A"), "'int8-best-A' is unknown"),
        (("--variants", "fp16,fp16"), "fp16 is named twice"),
        (("--variants", "int8-max-AB,int8-max-BA"), "int8-max-AB is named twice"),
        (("--variants", ""), "nothing to judge"),
        (("--graph", "mine"), "must be NAME=F.onnx"),
        (("--graph", "mine=none.onnx"), "graph not found: none.onnx"),
        (("--images", 0), "--images is 0, must be at least 1"),
        (("--seed", -1), "--seed is -1"),
        (("--embeddings", "none"), "embeddings folder not found: none"),
    ],
)
def test_flags_that_cannot_be(arguments: tuple[object, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run("--checkpoint", "standin", "--output", tmp_path / "report", *arguments)
    assert not (tmp_path / "report").exists()


def test_images_serve_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        values = rng.normal(0, 1, EMBEDDING_SHAPE).astype(np.float32)
        save_embedding(tmp_path / "embeddings" / f"{number}.npz", Embedding(values, (480, 640)))
    few = ("--embeddings", tmp_path / "embeddings", "--images", 2, "--calibration-images", 2)
    with pytest.raises(InputError, match="there are 3 images, --images 2 and --calibration-images 2 need 4"):
        run("--checkpoint", "standin", "--output", tmp_path / "report", *few)


class _Encoder:
    """Embeds a picture as seeded noise of its first pixel."""

    sha256 = "5e" * 32

    def embed(self, rgb: Any) -> Any:
        return np.random.default_rng(int(rgb[0, 0, 0])).normal(0, 1, EMBEDDING_SHAPE).astype(np.float32)


def opened(folder: Path, *arguments: object, calibrate: bool = True) -> Images:
    parser = argparse.ArgumentParser()
    add_image_arguments(parser, images=2, prompts=3, calibration=2)
    known = {"encoder_kind": "vit_standin", "has_image_encoder": True, "encoder_sha256": _Encoder.sha256}
    checkpoint = SimpleNamespace(**known, source="other", image_encoder=_Encoder)
    folder.mkdir()
    args = parser.parse_args([str(each) for each in arguments])
    return open_images(args, checkpoint, folder, calibrate=calibrate)  # type: ignore[arg-type]


def calibrated_on(images: Images) -> set[bytes]:
    assert images.calibration is not None
    return {each.image.embedding.tobytes() for each in from_folder(images.calibration, None, images.encoder_sha256)}


def embedding(seed: int) -> Any:
    return np.random.default_rng(seed).normal(0, 1, EMBEDDING_SHAPE).astype(np.float32)


def test_every_kind_of_embedding_file_serves(tmp_path: Path) -> None:
    source = tmp_path / "embeddings"
    save_embedding(source / "a.npz", Embedding(embedding(0), (480, 640), "photo.jpg", _Encoder.sha256))
    np.save(source / "b.npy", embedding(1))
    save_file({"x": embedding(2)}, source / "c.safetensors")
    save_file({"image_embeddings": embedding(3)}, source / "d.safetensors")
    images = opened(tmp_path / "used", "--embeddings", source, "--seed", 3)
    judged = list(images.evaluation())
    assert len(calibrated_on(images)) == len(judged) == 2
    seen = {each.embedding.tobytes() for each in judged}
    assert seen | calibrated_on(images) == {embedding(seed).tobytes() for seed in range(4)}
    everything = opened(tmp_path / "none", "--embeddings", source, "--images", 4, calibrate=False).evaluation()
    known = {each.name: each.original_size for each in everything}
    # A bare array is taken to fill the frame.
    assert known == dict.fromkeys(("b", "c", "d"), (1024, 1024)) | {"photo.jpg": (480, 640)}


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_of_a_judged_image_is_not_calibrated_with(seed: int, tmp_path: Path) -> None:
    source = tmp_path / "embeddings"
    for number in range(8):
        # Two names for each image, as of a photo that was saved twice.
        save_embedding(source / f"{number}.npz", Embedding(embedding(number // 2), (480, 640), f"{number}.jpg"))
    images = opened(tmp_path / "used", "--embeddings", source, "--seed", seed)
    judged = {each.embedding.tobytes() for each in images.evaluation()}
    assert len(judged) == len(calibrated_on(images)) == 2
    assert not judged & calibrated_on(images)
    with pytest.raises(InputError, match=r"there are 4 different images in 8 files, --images 3 .* need 5"):
        opened(tmp_path / "more", "--embeddings", source, "--images", 3)


def test_a_photo_under_two_names_serves_once(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(4):
        for copy in ("png", "bmp"):
            Image.fromarray(np.full((8, 12, 3), number, np.uint8)).save(source / f"{number}.{copy}")
    images = opened(tmp_path / "used", "--photos", source)
    judged = {each.embedding.tobytes() for each in images.evaluation()}
    assert len(judged) == len(calibrated_on(images)) == 2
    assert not judged & calibrated_on(images)


@pytest.mark.parametrize("kind", ["--photos", "--embeddings"])
def test_one_bad_file_is_seen_before_anything_is_measured(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        Image.fromarray(np.full((8, 12, 3), number, np.uint8)).save(source / f"{number}.png")
        np.save(source / f"{number}.npy", embedding(number))
    suffix = ".png" if kind == "--photos" else ".npy"
    (source / f"2{suffix}").write_bytes((source / f"2{suffix}").read_bytes()[:45])
    with pytest.raises(InputError, match=f"2{suffix} "):
        opened(tmp_path / "used", kind, source)


@pytest.mark.parametrize("kind", [".npy", ".npz"])
def test_embeddings_that_cannot_be(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "embeddings"
    for number in range(4):
        values = np.full(EMBEDDING_SHAPE, 0.5, np.float32)
        save_embedding(source / f"{number}.npz", Embedding(values, (480, 640), "", "af" * 32 if kind == ".npz" else ""))
    message = "another image encoder" if kind == ".npz" else "0.5 everywhere"
    with pytest.raises(InputError, match=message):
        opened(tmp_path / "used", "--embeddings", source)


def test_no_images_for_other_checkpoints_are_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_sam.model import checkpoint

    other = dataclasses.replace(checkpoint.load_checkpoint("standin"), source="other.pth")
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda source: other)
    (tmp_path / "other.pth").write_bytes(b"of another model")
    with pytest.raises(InputError, match="no images: give --embeddings DIR or --photos DIR"):
        run("--checkpoint", tmp_path / "other.pth", "--output", tmp_path / "report")


def test_a_graph_of_other_weights_is_refused(tmp_path: Path, graphs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="holds the weights 5a5a5a5a5a5a"):
        run("--checkpoint", "standin", "--output", tmp_path / "report", "--variants", "", "--graph", f"x={graphs['plain']}")


def test_a_graph_is_not_judged_on_what_it_was_calibrated_with(tmp_path: Path, graphs: dict[str, Path]) -> None:
    image = random_images(1)[0]
    save_embedding(tmp_path / "embeddings" / "photo.npz", Embedding(image.embedding, (300, 201), "photo.jpg"))
    model = onnx.load(graphs["plain"])
    kept = [entry for entry in model.metadata_props if entry.key != "trt_sam.checkpoint_sha256"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    entry = model.metadata_props.add()
    entry.key = "trt_sam.calibration"
    entry.value = json.dumps({"image_sha256": [digest_of_embedding(image.embedding)]})
    onnx.save(model, tmp_path / "mine.onnx")
    few = ["--embeddings", tmp_path / "embeddings", "--images", 1, "--prompts-per-image", 1, "--variants", ""]
    judge = ["--checkpoint", "standin", *few, "--graph", f"x={tmp_path / 'mine.onnx'}", "--output", tmp_path / "report"]
    with pytest.raises(InputError, match=r"mine\.onnx was calibrated with photo"):
        run(*judge)
    assert not (tmp_path / "report").exists()
    assert run(*judge, "--allow-calibration-images") == 0


def test_a_report_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text("here")
    with pytest.raises(InputError, match=r"report\.json exists; give --force to replace it, or another --output"):
        run("--checkpoint", "standin", "--output", tmp_path / "report")
    assert (tmp_path / "report" / "report.json").read_text() == "here"
    with pytest.raises(InputError, match="checkpoint not found"):
        # With --force the next thing that is wrong is told.
        run("--checkpoint", tmp_path / "none.pth", "--output", tmp_path / "report", "--force", "--variants", "fp16")


def test_an_output_that_cannot_be_written_is_seen_first(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("here")
    with pytest.raises(InputError, match="it is a file"):
        run("--checkpoint", "standin", "--output", tmp_path / "report")
    with pytest.raises(InputError, match=r"report is a file"):
        run("--checkpoint", "standin", "--output", tmp_path / "report" / "deeper")
    with pytest.raises(InputError, match=r"cannot write .*x\.json: .*report is a file"):
        run("--checkpoint", "standin", "--output", tmp_path / "other", "--json", tmp_path / "report" / "x.json")
    with pytest.raises(InputError, match="it is a folder"):
        run("--checkpoint", "standin", "--output", tmp_path / "other", "--json", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
