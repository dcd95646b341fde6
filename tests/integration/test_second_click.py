"""`trt-sam segment` on one photo twice: the second click takes embedding and graph from the cache, and never imports torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from trt_sam.cli import main
from trt_sam.commands._click_cache import ClickCache
from trt_sam.graph.metadata import read_graph

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("one_torch_thread")

FIRST = ["--checkpoint", "standin", "--box", "565,163,980,583"]


@pytest.fixture(scope="module")
def clicked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photo on which a first click was made, the files that it wrote, and the cache."""
    folder = tmp_path_factory.mktemp("clicked")
    shutil.copy(ROOT / "samples/scene.png", folder / "photo.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRT_SAM_CACHE", str(folder / "cache"))
        assert main(["segment", str(folder / "photo.png"), *FIRST, "--json", str(folder / "first.json")]) == 0
    return folder


@pytest.fixture
def photo(clicked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the photo, the cache of the first click in use."""
    monkeypatch.setenv("TRT_SAM_CACHE", str(clicked / "cache"))
    return Path(shutil.copy(clicked / "photo.png", tmp_path / "renamed.png"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_the_first_click_writes_beside_the_photo_and_fills_the_cache(clicked: Path) -> None:
    assert sorted(p.name for p in clicked.iterdir() if p.is_file()) == [
        "first.json",
        "photo.mask.png",
        "photo.overlay.png",
        "photo.png",
    ]
    report = json.loads((clicked / "first.json").read_text())
    assert report["from_cache"] == []
    assert report["executed"].startswith("PyTorch")
    assert pixels(clicked / "photo.overlay.png").shape == (768, 1024, 3)
    assert {p.suffix for p in (clicked / "cache/clicks").iterdir()} == {".npz", ".onnx", ".txt"}
    (graph,) = (clicked / "cache/clicks").glob("*.onnx")
    options = read_graph(graph).options
    assert options is not None
    assert (options.precision, options.target) == ("fp32", "cpu"), "as the line about the second click says, and as PyTorch ran"


def test_a_second_click_gives_the_same_mask_without_torch(clicked: Path, photo: Path) -> None:
    # What a click does not use costs it a tenth of its time.
    unused = "print([name for name in ('torch', 'trt_sam.cluster', 'trt_sam.masks', 'calibrators') if name in sys.modules])"
    code = f"import sys; from trt_sam.cli import main; code = main(); {unused}; sys.exit(code)"
    command = [sys.executable, "-c", code, "segment", str(photo), *FIRST, "--json", str(photo.with_suffix(".json"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"
    report = json.loads(photo.with_suffix(".json").read_text())
    assert report["from_cache"] == ["embedding", "graph"]
    assert report["executed"].startswith("ONNX Runtime")
    first = json.loads((clicked / "first.json").read_text())
    # Both are float32: float16 weights, which the graph in the cache once had, are 100 times as far away.
    np.testing.assert_allclose(report["iou_predictions"], first["iou_predictions"], atol=2e-6)
    assert (pixels(photo.with_name("renamed.mask.png")) != pixels(clicked / "photo.mask.png")).mean() < 1e-4


def test_all_masks(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", str(photo), *FIRST, "--all-masks", "--json", str(photo.with_suffix(".json"))]) == 0
    report = json.loads(photo.with_suffix(".json").read_text())
    names = [f"renamed.mask-{number}.png" for number in range(3)]
    assert [Path(name).name for name in report["candidates"]] == names
    masks = [pixels(photo.with_name(name)) for name in names]
    assert all(mask.shape == (768, 1024) and set(np.unique(mask)) <= {0, 255} for mask in masks)
    np.testing.assert_array_equal(masks[report["mask"]], pixels(photo.with_name("renamed.mask.png")))
    assert report["mask"] == int(np.argmax(report["iou_predictions"]))
    assert all(name in capsys.readouterr().out for name in names[:1])


def test_a_named_output_brings_no_overlay(photo: Path, tmp_path: Path) -> None:
    assert main(["segment", str(photo), *FIRST, "--output", str(tmp_path / "out" / "m.png"), "--all-masks"]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["m-0.png", "m-1.png", "m-2.png", "m.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "renamed.png"]


def test_another_photo_and_another_checkpoint_are_not_mistaken(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = pixels(photo).copy()
    picture[0, 0] ^= 255
    Image.fromarray(picture).save(photo)
    assert main(["segment", str(photo), *FIRST, "--json", str(photo.with_suffix(".json"))]) == 0
    assert json.loads(photo.with_suffix(".json").read_text())["from_cache"] == ["graph"]
    assert "embedding " in capsys.readouterr().err
    assert main(["segment", str(photo), "--checkpoint", "standin-hard", *FIRST[2:], "--json", "--no-cache"]) == 0
    assert json.loads(capsys.readouterr().out)["from_cache"] == []


def test_a_damaged_cache_is_made_anew(clicked: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(clicked / "cache", cache)
    monkeypatch.setenv("TRT_SAM_CACHE", str(cache))
    for path in (cache / "clicks").iterdir():
        path.write_bytes(b"cut")
    exported: list[object] = []
    monkeypatch.setattr(ClickCache, "keep_graph", lambda self, checkpoint: exported.append(checkpoint))  # seconds of torch
    for _ in range(2):
        assert main(["segment", str(photo), *FIRST, "--json", str(photo.with_suffix(".json"))]) == 0
    assert json.loads(photo.with_suffix(".json").read_text())["from_cache"] == ["embedding"]
    assert len(exported) == 2
    assert not list((cache / "clicks").glob("*.onnx"))


def test_a_graph_with_one_changed_byte_is_made_anew(
    clicked: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime runs it without a word: it gave an empty mask and exit code 0."""
    cache = tmp_path / "cache"
    shutil.copytree(clicked / "cache", cache)
    monkeypatch.setenv("TRT_SAM_CACHE", str(cache))
    (graph,) = (cache / "clicks").glob("*.onnx")
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 0x40
    graph.write_bytes(data)
    monkeypatch.setattr(ClickCache, "keep_graph", lambda self, checkpoint: None)  # seconds of torch
    assert main(["segment", str(photo), *FIRST, "--json", str(photo.with_suffix(".json"))]) == 0
    assert "was damaged; it is made again" in capsys.readouterr().err
    assert json.loads(photo.with_suffix(".json").read_text())["from_cache"] == ["embedding"]
    assert (pixels(photo.with_name("renamed.mask.png")) != pixels(clicked / "photo.mask.png")).mean() < 1e-4


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRT_SAM_CACHE", "/proc/nowhere")
    assert main(["segment", str(photo), *FIRST]) == 0
    assert "the embedding is not kept: cannot write /proc/nowhere" in capsys.readouterr().err
    assert photo.with_name("renamed.overlay.png").exists()


def test_the_graph_of_a_checkpoint_is_checked_from_the_cache(clicked: Path, photo: Path, tmp_path: Path) -> None:
    (kept,) = (clicked / "cache/clicks").glob("*.onnx")
    model = onnx.load(kept)
    for entry in model.metadata_props:
        if entry.key == "trt_sam.checkpoint_sha256":
            entry.value = "0" * 64
    onnx.save(model, tmp_path / "other.onnx")
    code = "import sys; from trt_sam.cli import main; code = main(); print('torch' in sys.modules); sys.exit(code)"
    for graph, expected in ((kept, 0), (tmp_path / "other.onnx", 2)):
        command = [sys.executable, "-c", code, "segment", str(photo), *FIRST, "--onnx", str(graph)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == expected, done.stderr
        assert done.stdout.splitlines()[-1] == "False"
    assert "was exported from another checkpoint" in done.stderr


def test_mobile_sam_by_its_name_from_a_photo_to_its_mask(
    mobile_sam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real thing: a click on the astronaut's face, and the mask is the face."""
    monkeypatch.setenv("TRT_SAM_CACHE", str(mobile_sam.parent.parent))
    photo = Path(shutil.copy(ROOT / "samples/astronaut.jpg", tmp_path / "photo.jpg"))
    arguments = ["segment", str(photo), "--checkpoint", "mobile_sam", "--point", "220,150", "--no-cache"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "photo.mask.png: 3.3% of the image, predicted IoU 0.97" in said.out
    assert "embedding " in said.err
    assert "embedded in " in said.err
    rows, columns = np.nonzero(pixels(tmp_path / "photo.mask.png"))
    box = (columns.min(), rows.min(), columns.max(), rows.max())
    np.testing.assert_allclose(box, (171, 76, 276, 190), atol=3)
