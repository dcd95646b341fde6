"""Files of masks: written, read by pycocotools and supervision themselves, and read back."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from trt_sam.errors import InputError
from trt_sam.formats.coco import coco_data, load_coco
from trt_sam.formats.detections import records_of_detections, to_detections
from trt_sam.formats.labelme import load_labelme
from trt_sam.formats.pictures import load_bits
from trt_sam.formats.records import Photo
from trt_sam.formats.save import FORMATS, format_of, save_masks

Array = np.ndarray[Any, Any]

SIZE = (90, 131)
PHOTO = Photo("photo.jpg", SIZE)


def shapes() -> list[Array]:
    """Four masks that overlap: a disc, a ring with an island in its hole, a stripe to the edges, and one pixel."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    far = np.hypot(y - 45, x - 60)
    return [far < 30, ((far > 12) & (far < 20)) | (far < 4), np.abs(x - 100) < 5, (y == 3) & (x == 7)]


def records() -> list[dict[str, Any]]:
    found = []
    for number, mask in enumerate(shapes()):
        rows, columns = np.nonzero(mask)
        x0, y0, x1, y1 = (int(v) for v in (columns.min(), rows.min(), columns.max(), rows.max()))
        found.append(
            {
                "segmentation": mask,
                "area": int(mask.sum()),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "predicted_iou": 0.9 + number / 100,
                "point_coords": [[float(x0), float(y0)]],
                "stability_score": 0.96,
                "crop_box": [0, 0, SIZE[1], SIZE[0]],
            }
        )
    return found


def test_coco_is_read_by_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("coco", "coco-polygons"):
        path = tmp_path / f"{name}.json"
        assert save_masks(path, PHOTO, records(), name) == name
        coco = COCO(str(path))
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=1))
        assert len(annotations) == 4
        for annotation, mask, record in zip(annotations, shapes(), records(), strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y, width, height) == (*record["bbox"][:2], record["bbox"][2] + 1, record["bbox"][3] + 1)
            assert annotation["area"] == record["area"]
            assert isinstance(annotation["segmentation"], list) == (name == "coco-polygons")
        ((photo, found),) = load_coco(path)
        assert photo == PHOTO
        for one, mask in zip(found, shapes(), strict=True):
            np.testing.assert_array_equal(one["segmentation"].mask(), mask)
    capsys.readouterr()


def test_sa1b_and_the_list_of_annotations(tmp_path: Path) -> None:
    save_masks(tmp_path / "masks.json", PHOTO, records())
    listed = json.loads((tmp_path / "masks.json").read_text())
    save_masks(tmp_path / "sa.json", PHOTO, records(), "sa1b")
    whole = json.loads((tmp_path / "sa.json").read_text())
    assert whole["annotations"] == listed
    assert whole["image"] == {"image_id": 1, "width": 131, "height": 90, "file_name": "photo.jpg"}
    keys = {"id", "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"}
    assert all(set(annotation) == keys for annotation in listed)
    assert [annotation["bbox"] for annotation in listed] == [record["bbox"] for record in records()]
    ((photo, found),) = load_coco(tmp_path / "sa.json")
    assert photo.size == SIZE
    for one, mask in zip(found, shapes(), strict=True):
        np.testing.assert_array_equal(one["segmentation"].mask(), mask)


def test_labelme_and_bits_come_back(tmp_path: Path) -> None:
    save_masks(tmp_path / "l.json", PHOTO, records(), "labelme")
    assert {shape["shape_type"] for shape in json.loads((tmp_path / "l.json").read_text())["shapes"]} == {"polygon"}
    photo, found = load_labelme(tmp_path / "l.json")
    assert (photo.file_name, photo.size, len(found)) == ("photo.jpg", SIZE, 4)
    for one, mask in zip(found, shapes(), strict=True):
        np.testing.assert_array_equal(one["segmentation"].mask(), mask)
    assert save_masks(tmp_path / "m.npz", PHOTO, records()) == "bits"
    np.testing.assert_array_equal(load_bits(tmp_path / "m.npz"), np.stack(shapes()))


def test_pictures(tmp_path: Path) -> None:
    disc, ring, stripe, dot = shapes()
    assert save_masks(tmp_path / "index.png", PHOTO, records()) == "index"
    with Image.open(tmp_path / "index.png") as picture:
        numbers, colours = np.array(picture), np.array(picture.convert("RGB"))
    expected = np.select([dot, stripe, ring, disc], [4, 3, 2, 1])
    np.testing.assert_array_equal(numbers, expected)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 5
    assert save_masks(tmp_path / "one.png", PHOTO, records()[1:2], single=True) == "binary"
    with Image.open(tmp_path / "one.png") as picture:
        np.testing.assert_array_equal(np.array(picture), ring * 255)
    assert save_masks(tmp_path / "folder", PHOTO, records()) == "each"
    for number, mask in enumerate(shapes(), 1):
        with Image.open(tmp_path / "folder" / f"{number:04}.png") as picture:
            np.testing.assert_array_equal(np.array(picture), mask * 255)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "index.png", "one.png"]


def test_thousands_of_masks_and_none(tmp_path: Path) -> None:
    dots = np.zeros((3000, *SIZE), np.bool_)
    dots.reshape(3000, -1)[np.arange(3000), np.arange(3000) * 3] = True
    many = [{"segmentation": dot} for dot in dots]
    save_masks(tmp_path / "many.png", PHOTO, many)
    with Image.open(tmp_path / "many.png") as picture:
        numbers = np.array(picture)
    assert (numbers.max(), (numbers > 0).sum()) == (3000, 3000)
    save_masks(tmp_path / "many.json", PHOTO, many)
    assert len(json.loads((tmp_path / "many.json").read_text())) == 3000
    for name in FORMATS:
        path = tmp_path / f"none_{name}{({'index': '.png', 'binary': '.png', 'bits': '.npz', 'each': ''}).get(name, '.json')}"
        save_masks(path, PHOTO, [], name)
        assert path.exists()
    assert json.loads((tmp_path / "none_json.json").read_text()) == []
    assert load_bits(tmp_path / "none_bits.npz").shape == (0, *SIZE)
    assert len(to_detections([], SIZE)) == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_supervision_takes_both_forms_and_gives_them_back() -> None:
    supervision = pytest.importorskip("supervision")
    theirs = supervision.Detections.from_sam(records())  # largest first
    ours = to_detections(sorted(records(), key=lambda record: -record["area"]), SIZE)
    np.testing.assert_array_equal(ours.xyxy, theirs.xyxy)
    np.testing.assert_array_equal(ours.mask, theirs.mask)
    np.testing.assert_allclose(sorted(ours.confidence), [0.9, 0.91, 0.92, 0.93], rtol=1e-6)
    np.testing.assert_array_equal(ours.xyxy, supervision.mask_to_xyxy(ours.mask))
    back = records_of_detections(ours)
    again = to_detections(back, SIZE)
    np.testing.assert_array_equal(again.mask, ours.mask)
    np.testing.assert_array_equal(again.confidence, ours.confidence)
    image = np.zeros((*SIZE, 3), np.uint8)
    assert supervision.MaskAnnotator().annotate(image.copy(), ours).any()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_supervision_reads_our_coco_file(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "photo.jpg")
    plain = [{"segmentation": mask} for mask in (shapes()[0], shapes()[2])]
    save_masks(tmp_path / "coco.json", PHOTO, plain, "coco-polygons")
    data = supervision.DetectionDataset.from_coco(str(tmp_path), str(tmp_path / "coco.json"), force_masks=True)
    ((_, _, found),) = list(data)
    assert len(found) == 2
    for mask, wanted in zip(found.mask, plain, strict=True):
        both, either = (mask & wanted["segmentation"]).sum(), (mask | wanted["segmentation"]).sum()
        # Its own filling of polygons takes the pixels of the outline in.
        assert both / either >= 0.9


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for path, name, message in (
        ("m.jpg", None, r"must end in \.png, \.json or \.npz"),
        ("m.png", "coco", r"must end in \.json for format coco"),
        ("m.png", "each", "must have no suffix"),
        ("m.png", "yolo", "the format is 'yolo', must be one of json, sa1b, coco"),
        ("full", None, "is there and not an empty folder"),
        ("full/file/m.json", None, "cannot write"),
        ("full/file/each", None, "cannot write"),
    ):
        with pytest.raises(InputError, match=message):
            save_masks(tmp_path / path, PHOTO, records(), name)
    with pytest.raises(InputError, match="a mask is of 5x4, its image is 131x90"):
        save_masks(tmp_path / "m.json", PHOTO, [{"segmentation": np.ones((4, 5), np.bool_)}])
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert format_of("a.JSON") == "json"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit of 200 bytes a file fails a write in the middle, as a full disk does."""
    code = (
        "import sys, numpy as np\nfrom trt_sam.errors import InputError\nfrom trt_sam.formats.save import Photo, save_masks\n"
        "mask = np.random.default_rng(0).random((90, 131)) < .5\n"
        "for path in ('m.json', 'm.png', 'm.npz', 'folder'):\n"
        "    try:\n        save_masks(path, Photo('p', (90, 131)), [{'segmentation': mask}])\n"
        "    except InputError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.count("cannot write") == 4, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-40], "is not whole JSON"),
        (lambda text: "[" * 100_000, "is not whole JSON"),
        (lambda text: "[]", "has no list of annotations"),
        (lambda text: text.replace('"id": 1', '"id": []', 1), r"the id of image .* is \[\], must be a number or a string"),
        (lambda text: text.replace('"height": 90', '"height": 1' + 30 * "0", 1), "both must be 1 to 1000000"),
        (lambda text: text.replace('"height": 90', '"height": Infinity', 1), "has an image without"),
        (lambda text: text.replace('"height"', '"h"'), "has an image without 'height'"),
        (lambda text: text.replace('"image_id": 1', '"image_id": 5', 1), "annotation 0 has no such image"),
        (lambda text: text.replace('"segmentation"', '"mask"', 1), "annotation 0 has no such image, or no 'segmentation'"),
        (lambda text: text.replace('"size": [90, 131]', '"size": [9, 131]', 1), "annotation 0: the counts"),
        (lambda text: text.replace('"counts": "', '"counts": "\\u00e9', 1), "annotation 0: compressed counts hold a character"),
    ],
)
def test_damaged_coco(tmp_path: Path, change: Any, message: str) -> None:
    text = json.dumps(coco_data([(PHOTO, records())]))
    (tmp_path / "c.json").write_text(change(text))
    with pytest.raises(InputError, match=message):
        load_coco(tmp_path / "c.json")


def test_polygons_of_two_points_and_damaged_files(tmp_path: Path) -> None:
    data = coco_data([(PHOTO, records())], polygons=True)
    data["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"c\.json: annotation 1: a polygon has shape \[4\].*at least three points"):
        load_coco(tmp_path / "c.json")
    save_masks(tmp_path / "l.json", PHOTO, records(), "labelme")
    whole = json.loads((tmp_path / "l.json").read_text())
    whole["shapes"][0]["points"] = [[1, 2], [3, 4]]
    (tmp_path / "l.json").write_text(json.dumps(whole))
    with pytest.raises(InputError, match="at least three points"):
        load_labelme(tmp_path / "l.json")
    odd = {**whole, "shapes": [{**whole["shapes"][0], "group_id": []}]}
    for text in ("{}", "[" * 100_000, json.dumps(odd), json.dumps({**whole, "shapes": [3]})):
        (tmp_path / "l.json").write_text(text)
        with pytest.raises(InputError, match="is not a whole file of labelme"):
            load_labelme(tmp_path / "l.json")
    (tmp_path / "l.json").write_text(json.dumps({**whole, "imageHeight": 10**30}))
    with pytest.raises(InputError, match="both must be 1 to 1000000"):
        load_labelme(tmp_path / "l.json")
    save_masks(tmp_path / "m.npz", PHOTO, records())
    (tmp_path / "m.npz").write_bytes((tmp_path / "m.npz").read_bytes()[:-30])
    with pytest.raises(InputError, match="is not a whole file of packed masks"):
        load_bits(tmp_path / "m.npz")
