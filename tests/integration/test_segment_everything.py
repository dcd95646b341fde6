"""`trt-sam segment --everything`: every format on disk, and every bad input as one line with nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import make_embedding, save_with_options
from PIL import Image

from tests.fixtures.toy_decoder import toy_decoder
from trt_sam.cli import main
from trt_sam.formats.coco import load_coco
from trt_sam.formats.pictures import load_bits
from trt_sam.imaging.embeddings import Embedding, save_embedding
from trt_sam.imaging.overlay import draw_regions
from trt_sam.recipe import GraphOptions

SIZE = (120, 160)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A photo, its embedding and a toy decoder, whose masks are stripes that pass only low thresholds."""
    folder = tmp_path_factory.mktemp("inputs")
    options = GraphOptions(precision="fp32", mask_bits=True)
    save_with_options(onnx.load_from_string(toy_decoder(options)), options, folder / "toy.onnx")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(folder / "photo.png")
    save_embedding(folder / "photo.npz", Embedding(make_embedding(), SIZE, "photo.png"))
    flags = ["--everything", "--points-per-side", "2", "--least-iou", "0", "--least-stability", "0"]
    return [
        "segment",
        str(folder / "photo.png"),
        "--embedding",
        str(folder / "photo.npz"),
        "--onnx",
        str(folder / "toy.onnx"),
        *flags,
    ]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_masks_picture_and_report(start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ["--output", str(tmp_path / "masks.json"), "--overlay", str(tmp_path / "overlay.jpg")]
    assert main([*start, *outputs, "--json", str(tmp_path / "report.json")]) == 0
    said = capsys.readouterr()
    assert "masks; decoder in ONNX Runtime" in said.out
    assert all(line.startswith("[") for line in said.err.splitlines()), "stages with their time, no warning"
    annotations = json.loads((tmp_path / "masks.json").read_text())
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["masks"] == len(annotations) >= 1
    assert (report["format"], report["original_size"]) == ("json", list(SIZE))
    keys = {"id", "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"}
    assert set(annotations[0]) == keys
    with Image.open(tmp_path / "overlay.jpg") as picture:
        assert picture.size == SIZE[::-1]
    for name, output in (("coco", "c.json"), ("sa1b", "s.json"), ("bits", "m.npz"), ("each", "folder"), ("index", "m.png")):
        assert main([*start, "--output", str(tmp_path / output), "--format", name]) == 0
    masks = load_bits(tmp_path / "m.npz")
    for path in ("c.json", "s.json"):
        ((photo, found),) = load_coco(tmp_path / path)
        assert (photo.file_name, photo.size) == ("photo.png", SIZE)
        np.testing.assert_array_equal(np.stack([record["segmentation"].mask() for record in found]), masks)
    assert len(files(tmp_path / "folder")) == len(masks) == len(annotations)


GRID = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]


def without_side(start: list[str]) -> list[str]:
    place = start.index("--points-per-side")
    return start[:place] + start[place + 2 :]


def test_clicks_of_ones_own_are_those_of_the_grid_that_they_are(start: list[str], tmp_path: Path) -> None:
    grids = tmp_path / "grids.json"
    grids.write_text(json.dumps([GRID]))
    assert main([*start, "--output", str(tmp_path / "side.json")]) == 0
    assert main([*without_side(start), "--point-grids", str(grids), "--output", str(tmp_path / "own.json")]) == 0
    side, own = (json.loads((tmp_path / name).read_text()) for name in ("side.json", "own.json"))
    assert own == side != []
    grids.write_text(json.dumps([GRID[:1]]))
    assert main([*without_side(start), "--point-grids", str(grids), "--output", str(tmp_path / "one.json")]) == 0
    (one,) = {tuple(map(tuple, each["point_coords"])) for each in json.loads((tmp_path / "one.json").read_text())}
    assert one == ((0.25 * SIZE[1], 0.25 * SIZE[0]),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "grids.json is not JSON"),
        ("[[0.5, 0.5]]", "grids.json must hold a list of lists of [x, y], numbers from 0 to 1, one for each layer"),
        ("3", "must hold a list of lists of [x, y]"),
        ('[[["a", 1]]]', "must hold a list of lists of [x, y]"),
        ("[[[0.5, 1.5]]]", "grids.json is [0.5, 1.5], must be (x, y), numbers from 0 to 1"),
        ("[[[0, 0], [0.5, NaN]]]", "grids.json is [0.5, nan], must be (x, y), numbers from 0 to 1"),
        ("[[]]", "must be [k, 2] of numbers from 0 to 1"),
        ("[]", "grids.json has 0 grids, must have 1: one for the whole image"),
        ("[[[0, 0]], [[0, 1]]]", "--point-grids has 2 grids, of which only 1 are used: the first is for the whole image"),
        ("[[[0, 0]], [[0, 1]]]", "give --crop-n-layers 1, or fewer grids"),
        (None, "grids.json"),
    ],
)
def test_a_file_that_holds_no_grids_is_refused(
    content: str | None, message: str, start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grids = tmp_path / "grids.json"
    if content is not None:
        grids.write_text(content)
    assert main([*without_side(start), "--point-grids", str(grids), "--output", str(tmp_path / "m.json")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


def test_no_mask_is_no_failure(start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*start, "--least-iou", "1e9", "--output", str(tmp_path / "masks.json"), "--overlay", str(tmp_path / "o.png")]
    assert main(arguments) == 0
    assert "no mask found; lower --least-iou or --least-stability" in capsys.readouterr().out
    assert json.loads((tmp_path / "masks.json").read_text()) == []
    assert files(tmp_path) == ["masks.json", "o.png"]


def test_names_beside_the_photo(start: list[str]) -> None:
    photo = Path(start[1])
    for name, expected in ((None, "photo.masks.json"), ("index", "photo.masks.png")):
        assert main([*start, *(["--format", name] if name else [])]) == 0
        assert (photo.with_name(expected)).exists()
        assert photo.with_name("photo.overlay.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "m.json", "--point", "5,5"], "--point came with --everything; give one of them"),
        (["--output", "m.json", "--box", "5,5,9,9"], "--box came with --everything"),
        (["--output", "m.png", "--all-masks"], "--all-masks came with --everything"),
        (["--output", "m.jpg"], "must end in .png, .json or .npz"),
        (["--output", "m.png", "--format", "coco"], "must end in .json for format coco"),
        (["--output", "m.json", "--overlay", "o.gif"], "must end in .png or .jpg"),
        (["--output", "m.png", "--overlay", "m.png"], "are both"),
        (["--output", "file/m.json"], "cannot write"),
        (["--output", "."], "is there and not an empty folder"),
        (["--output", "m.json", "--points-per-side", "0"], "--points-per-side is 0, must be a whole number of at least 1"),
        (["--output", "m.json", "--least-iou", "nan"], "--least-iou is nan"),
        (["--output", "m.json", "--pred-iou-thresh=nan"], "--pred-iou-thresh is nan"),
        (
            ["--output", "m.json", "--checkpoint", "standin", "--crop-n-layers", "2", "--crop-n-points-downscale-factor", "2"],
            "--points-per-side is 2, must be at least 4: it is divided by --crop-n-points-downscale-factor 2 in each of "
            "--crop-n-layers 2, and layer 2 has no clicks; raise it, or lower one of these",
        ),
        (["--output", "m.json", "--points-per-batch", "0"], "--points-per-batch is 0, must be a whole number of at least 1"),
        (["--output", "m.json", "--stability-score-offset", "inf"], "--stability-score-offset is inf"),
        (["--output", "m.json", "--box-nms-thresh", "nan"], "--box-nms-thresh is nan"),
        (["--output", "m.json", "--crop-nms-thresh", "nan"], "--crop-nms-thresh is nan"),
        (
            ["--output", "m.json", "--points-per-side", "60000"],
            "--points-per-side is 60000, must be a whole number from 1 to 1024",
        ),
        (["--output", "m.json", "--crop-n-layers", "20"], "--crop-n-layers is 20, must be a whole number from 0 to 6"),
        (["--output", "m.json", "--box-nms-thresh", "7"], "--box-nms-thresh is 7.0, must be an IoU from 0 to 1"),
        (["--output", "m.json", "--crop-n-layers", "-1"], "--crop-n-layers is -1"),
        (["--output", "m.json", "--crop-n-layers", "1"], "there is no image encoder; give --checkpoint or --set"),
        (["--output", "m.json", "--crop-overlap-ratio", "1"], "--crop-overlap-ratio is 1.0, must be at least 0 and below 1"),
        (
            ["--output", "m.json", "--crop-n-points-downscale-factor", "0"],
            "--crop-n-points-downscale-factor is 0, must be at least 1",
        ),
        (["--output", "m.json", "--min-mask-region-area", "-3"], "--min-mask-region-area is -3"),
        (["--output", "m.json", "--point-grids", "file"], "--points-per-side came with --point-grids; give one of them"),
    ],
)
def test_refused_in_one_line(
    flags: list[str],
    message: str,
    start: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    assert main([*start, *flags]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    *stages, error = said.err.splitlines()
    assert error.startswith("trt-sam: error: ")
    assert message in error
    assert all(line.startswith("[") for line in stages), "nothing but stages before the one line of the error"
    assert files(tmp_path) == ["file"]


def test_flags_of_everything_need_it(start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [word for word in start if word != "--everything"]
    assert main([*arguments, "--point", "5,5", "--output", str(tmp_path / "m.png")]) == 2
    assert "--points-per-side goes with --everything" in capsys.readouterr().err


def test_regions_are_drawn() -> None:
    image = np.full((60, 80, 3), 128, np.uint8)
    numbers = np.zeros((60, 80), np.uint8)
    numbers[10:50, 10:40], numbers[10:50, 40:70] = 1, 2
    drawn = draw_regions(image, numbers, np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)).astype(int)
    assert (image == 128).all()
    assert drawn[30, 25, 0] > drawn[30, 25, 2] + 80
    assert drawn[30, 55, 2] > drawn[30, 55, 0] + 80
    assert (drawn[3, 3] < 110).all()
    assert (drawn[30, 40] > 180).all()
