"""Photo to embedding: the image encoder of a Meta `.pth` and of a Hugging Face folder, the command, the stand-in's writer."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import error_line
from trt_sam.cli import main
from trt_sam.errors import CheckpointError, InputError
from trt_sam.imaging.embeddings import load_embedding
from trt_sam.model import SamDecoder
from trt_sam.model import image_encoder as image_encoder_module
from trt_sam.model.checkpoint import load_checkpoint
from trt_sam.model.image_encoder import ImageEncoder, preprocess
from trt_sam.model.naming import hf_to_meta

transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_dim": 96,
    "window_size": 14,
    "global_attn_indexes": [1],
}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def _embed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other commands are not under test, nor what they import."""
    monkeypatch.setattr("trt_sam.cli.COMMANDS", ("embed",))


def make_photo(height: int = 300, width: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A random `SamModel` with a two-layer ViT, one windowed and one global, as transformers itself saves it."""
    torch.manual_seed(7)
    config = transformers.SamConfig(vision_config=VISION, mask_decoder_config={"layer_norm_eps": 1e-5})
    model = transformers.SamModel(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        # transformers starts the position tables at zero, and zeros would hide a wrong name.
        scale = 1.0 if "layer_norm" in name and name.endswith("weight") else 0.0
        if "vision_encoder" in name:
            parameter.copy_(scale + 0.05 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def meta_pth(hf: tuple[torch.nn.Module, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    state, unknown = hf_to_meta(hf[0].state_dict())
    assert unknown == ["prompt_encoder.shared_embedding.positional_embedding"]
    path = tmp_path_factory.mktemp("meta") / "sam.pth"
    torch.save(state, path)
    return path


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_both_forms_of_the_same_weights(hf: tuple[torch.nn.Module, Path], meta_pth: Path) -> None:
    model, folder = hf
    from_folder, from_pth = load_checkpoint(folder), load_checkpoint(meta_pth)
    ours, theirs = from_pth.decoder.state_dict(), from_folder.decoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert from_pth.sha256 == from_folder.sha256
    assert from_pth.encoder_kind == from_folder.encoder_kind == "vit_other"
    encoders = from_folder.image_encoder(), from_pth.image_encoder()
    assert encoders[0].sha256 == encoders[1].sha256
    photo = make_photo()
    # The reference goes through transformers alone: its processor, its loading, its model.
    processor = transformers.SamImageProcessorPil()
    pixels = processor(images=photo, return_tensors="pt")["pixel_values"]
    reference = model.get_image_embeddings(pixels).numpy()
    for encoder in encoders:
        embedding = encoder.embed(photo)
        assert (embedding.shape, embedding.dtype) == ((1, 256, 64, 64), np.float32)
        assert distance(embedding, reference) < 1e-4
    other = encoders[0].embed(make_photo(seed=1))
    assert distance(other, reference) > 1e-2


def test_encoder_hash_sees_the_weights(hf: tuple[torch.nn.Module, Path], meta_pth: Path, tmp_path: Path) -> None:
    state = torch.load(meta_pth, weights_only=True)
    state["image_encoder.neck.1.bias"][3] += 1
    torch.save(state, tmp_path / "changed.pth")
    changed, before = load_checkpoint(tmp_path / "changed.pth"), load_checkpoint(meta_pth)
    assert changed.sha256 == before.sha256
    assert changed.image_encoder().sha256 != before.image_encoder().sha256


def test_encoder_that_does_not_fit(hf: tuple[torch.nn.Module, Path], meta_pth: Path, tmp_path: Path) -> None:
    state = torch.load(meta_pth, weights_only=True)
    for change, message in (
        ({"image_encoder.neck.1.bias": torch.zeros(3)}, r"neck.1.bias is float32 \[3\], must be \[256\]"),
        ({"image_encoder.extra": torch.zeros(3)}, "unexpected image_encoder.extra"),
        ({"image_encoder.neck.1.bias": None}, "missing image_encoder.neck.1.bias"),
        ({"image_encoder.blocks.0.attn.rel_pos_h": None}, "is not Meta's ViT"),
    ):
        torch.save({name: value for name, value in (state | change).items() if value is not None}, tmp_path / "bad.pth")
        loaded = load_checkpoint(tmp_path / "bad.pth")  # the decoder is whole, so this works
        with pytest.raises(CheckpointError, match=message) as caught:
            loaded.image_encoder()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (1024, 1024), (2000, 1501), (2, 9), (7, 1100)])
def test_preprocess_as_transformers_does(size: tuple[int, int]) -> None:
    photo = make_photo(*size)
    pixels = transformers.SamImageProcessorPil()(images=photo, return_tensors="np")["pixel_values"]
    ours = preprocess(photo)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, pixels, atol=1e-5)


def test_preprocess_pads_after_normalising() -> None:
    pixels = preprocess(np.zeros((10, 20, 3), dtype=np.uint8))
    assert (pixels[0, :, 512:] == 0).all()
    np.testing.assert_allclose(pixels[0, :, 511, 0], [-123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375], rtol=1e-6)


@pytest.mark.parametrize("photo", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_preprocess_refuses_other_arrays(photo: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"must be uint8 \[height, width, 3\]"):
        preprocess(photo)


class FakeEncoder(ImageEncoder):
    """Stands in for a slow encoder where only the command is under test."""

    def __init__(self, interrupt_at: int = 99) -> None:
        super().__init__(torch.nn.Identity(), "vit_fake", "ab" * 32)
        self.calls, self.interrupt_at = 0, interrupt_at

    def embed(self, rgb: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        return np.full((1, 256, 64, 64), rgb.mean(), dtype=np.float32)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(("a.png", "b.jpg", "c.png")):
        Image.fromarray(make_photo(30 + i, 40)).save(folder / name)
    return folder


def fake(monkeypatch: pytest.MonkeyPatch, encoder: ImageEncoder) -> None:
    monkeypatch.setattr(image_encoder_module, "build_image_encoder", lambda *_: encoder)


def test_command_with_a_real_encoder(
    hf: tuple[torch.nn.Module, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["embed", str(photos / "a.png"), "--checkpoint", str(hf[1]), "--output", str(output), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    encoder = load_checkpoint(hf[1]).image_encoder()
    assert report["encoder_sha256"] == encoder.sha256
    assert report["embeddings"][0]["original_size"] == [30, 40]
    loaded = load_embedding(output / "a.npz")
    assert (loaded.original_size, loaded.file_name, loaded.encoder_sha256) == ((30, 40), "a.png", encoder.sha256)
    assert loaded.checkpoint_sha256 == load_checkpoint(hf[1]).sha256
    np.testing.assert_array_equal(loaded.image_embeddings, encoder.embed(make_photo(30, 40)))


def test_command_embeds_a_folder(
    meta_pth: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, FakeEncoder())
    args = ["embed", str(photos), "--checkpoint", str(meta_pth), "--output", str(tmp_path / "out")]
    assert main([*args, "--json", str(tmp_path / "r.json")]) == 0
    assert "3 embeddings in" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.npz", "b.npz", "c.npz"]
    rows = json.loads((tmp_path / "r.json").read_text())["embeddings"]
    assert [row["original_size"] for row in rows] == [[30, 40], [31, 40], [32, 40]]


def test_interrupt_leaves_whole_files_only(
    meta_pth: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, FakeEncoder(interrupt_at=3))
    assert main(["embed", str(photos), "--checkpoint", str(meta_pth), "--output", str(tmp_path / "out")]) == 130
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.npz", "b.npz"]
    assert load_embedding(tmp_path / "out" / "b.npz").original_size == (31, 40)
    # and in the middle of writing
    fake(monkeypatch, FakeEncoder())
    monkeypatch.setattr(np, "savez", lambda file, **_: file.write(b"half") and (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["embed", str(photos), "--checkpoint", str(meta_pth), "--output", str(tmp_path / "two")]) == 130
    assert list((tmp_path / "two").iterdir()) == []
    assert "interrupted" in capsys.readouterr().err


def test_bad_input_is_one_line(
    meta_pth: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, FakeEncoder())
    empty = tmp_path / "nothing"
    empty.mkdir()
    twin = tmp_path / "twin"
    twin.mkdir()
    Image.fromarray(make_photo(3, 3)).save(twin / "a.bmp")
    (tmp_path / "broken.png").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    out = str(tmp_path / "out")
    for given, checkpoint, output, message in (
        ([str(tmp_path / "missing.png")], meta_pth, out, "image not found"),
        ([str(empty)], meta_pth, out, "holds no image"),
        ([str(tmp_path / "broken.png")], meta_pth, out, "not an image"),
        ([str(photos), str(twin)], meta_pth, out, "would both become a.npz"),
        ([str(photos)], tmp_path / "missing.pth", out, "checkpoint not found"),
        ([str(photos)], meta_pth, str(tmp_path / "file"), "it is a file; name a folder"),
        ([str(photos)], meta_pth, str(tmp_path / "file" / "out"), "cannot write"),
        ([str(photos)], meta_pth, "/proc/nowhere", "cannot write"),
    ):
        assert main(["embed", *given, "--checkpoint", str(checkpoint), "--output", output]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in error_line(printed.err)
        assert not Path(out).exists()


def test_variant_encoders_point_to_embedding_files(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    state: dict[str, Tensor] = dict(SamDecoder().state_dict())
    torch.save(state | {"image_encoder.backbone.stages.0.weight": torch.zeros(1)}, tmp_path / "variant.pth")
    code = main(["embed", str(photos), "--checkpoint", str(tmp_path / "variant.pth"), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().err
    assert code == 2
    assert "bring embeddings from a file" in error_line(printed)
    assert not (tmp_path / "out").exists()


def test_save_standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random training state becomes a folder that transformers loads whole, and that computes what we compute."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "scripts"))
    train, save = importlib.import_module("train_standin"), importlib.import_module("save_standin")
    torch.manual_seed(1)
    torch.save(train.Trainee().state_dict(), tmp_path / "state.pt")
    folder = tmp_path / "standin"
    monkeypatch.setattr(sys, "argv", ["save_standin.py", "--state", str(tmp_path / "state.pt"), "--output", str(folder)])
    save.main()
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert (folder / "model.safetensors").stat().st_size < 12e6
    model, info = transformers.SamModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    processor = transformers.SamImageProcessorPil.from_pretrained(folder)
    photo = make_photo()
    checkpoint = load_checkpoint(folder)
    assert checkpoint.encoder_kind == "vit_standin"
    embedding = checkpoint.image_encoder().embed(photo)
    box = torch.tensor([[100.0, 80, 700, 600]])
    with torch.inference_mode():
        pixels = processor(images=photo, return_tensors="pt")["pixel_values"]
        theirs = model(pixel_values=pixels, input_boxes=box[None])
        # Both sides see two box corners and no -1.
        masks, iou = checkpoint.decoder(torch.from_numpy(embedding), box.reshape(1, 2, 2), torch.tensor([[2.0, 3.0]]))
    assert distance(masks[:, 1:].numpy(), theirs.pred_masks[0].numpy()) < 1e-4
    assert distance(iou[:, 1:].numpy(), theirs.iou_scores[0].numpy()) < 1e-4
