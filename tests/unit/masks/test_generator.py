"""`AutomaticMaskGenerator` against Meta's own generator over the same made-up decoder: every setting, record by record."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.fixtures.real import mobile_sam_package
from tests.fixtures.scene_of_discs import DiscPredictor, DiscRunner, embed
from trt_sam.cluster import Everything
from trt_sam.contract import output_specs
from trt_sam.errors import InputError
from trt_sam.masks import AutomaticMaskGenerator
from trt_sam.masks.regions import without_small_regions

Array = np.ndarray[Any, Any]

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {"points_per_side": 4},
    "loose": {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.95},
    "steady": {"points_per_side": 4, "stability_score_thresh": 0.97, "stability_score_offset": 0.5, "pred_iou_thresh": 0.8},
    "small batches": {"points_per_side": 4, "points_per_batch": 5, "pred_iou_thresh": 0.8},
    "crops": {"points_per_side": 4, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "pred_iou_thresh": 0.8},
    "crops of little overlap": {"points_per_side": 2, "crop_n_layers": 1, "crop_overlap_ratio": 0.1, "crop_nms_thresh": 0.4},
    "grids": {
        "points_per_side": None,
        "point_grids": [np.random.default_rng(i).random((5 + i, 2)) for i in range(2)],
        "crop_n_layers": 1,
        "pred_iou_thresh": 0.8,
    },
    "regions": {"points_per_side": 4, "min_mask_region_area": 700, "stability_score_thresh": 0.0, "pred_iou_thresh": 0.8},
    "nothing": {"points_per_side": 4, "pred_iou_thresh": 1.5},
}
SIZES = ((150, 210), (231, 97))


class Encoder:
    embed = staticmethod(embed)


def image_of(size: tuple[int, int]) -> Array:
    return np.random.default_rng(size[0]).integers(0, 256, (*size, 3), np.uint8)


def ours(size: tuple[int, int], runner: DiscRunner | None = None, **settings: Any) -> list[dict[str, Any]]:
    generator = AutomaticMaskGenerator(runner or DiscRunner(), **settings, image_encoder=Encoder())  # type: ignore[arg-type]
    return generator.generate(image_of(size))


def metas(size: tuple[int, int], **settings: Any) -> list[dict[str, Any]]:
    package = mobile_sam_package()
    generator = package.SamAutomaticMaskGenerator(
        SimpleNamespace(image_encoder=SimpleNamespace(img_size=1024), device="cpu"), **settings
    )
    generator.predictor = DiscPredictor(generator.predictor.transform)
    return generator.generate(image_of(size))


@pytest.fixture
def opencv_for_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one function of OpenCV that Meta's generator calls, over SciPy."""

    def components(mask: Array, connectivity: int) -> tuple[int, Array, Array, None]:
        assert connectivity == 8
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        return count + 1, labels, np.stack([areas] * 5, axis=1), None

    module = ModuleType("cv2")
    vars(module)["connectedComponentsWithStats"] = components
    monkeypatch.setitem(sys.modules, "cv2", module)


@pytest.mark.parametrize(("name", "size"), [(name, SIZES[number % 2]) for number, name in enumerate(SETTINGS)])
@pytest.mark.usefixtures("opencv_for_meta", "one_torch_thread")
def test_records_are_metas(name: str, size: tuple[int, int]) -> None:
    if name == "nothing":
        assert ours(size, **SETTINGS[name]) == []
        return
    found, wanted = ours(size, **SETTINGS[name]), metas(size, **SETTINGS[name])
    assert len(wanted) >= 3, "the scene must have something to compare"
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        different = np.count_nonzero(one["segmentation"] != other["segmentation"])
        assert one["segmentation"].dtype == other["segmentation"].dtype
        # Two roundings may put a pixel whose logit is 0 on either side.
        assert different <= 2
        assert one["area"] == pytest.approx(other["area"], abs=2)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1)
        assert one["crop_box"] == other["crop_box"]
        np.testing.assert_allclose(one["point_coords"], other["point_coords"], rtol=1e-12)
        assert one["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-6)
        # Where a mask has no logit above either threshold, Meta's score is 0 / 0 and ours 0.
        assert one["stability_score"] == pytest.approx(np.nan_to_num(other["stability_score"]), abs=2e-3)
        for key in ("area", "predicted_iou", "stability_score"):
            assert type(one[key]) is type(other[key]), key


def test_the_three_output_modes_are_one_mask() -> None:
    binary, runs, text = (
        ours(SIZES[0], points_per_side=6, pred_iou_thresh=0.8, output_mode=mode)
        for mode in ("binary_mask", "uncompressed_rle", "coco_rle")
    )
    coco = pytest.importorskip("pycocotools.mask")
    assert len(binary) == len(runs) == len(text) > 3
    for one, two, three in zip(binary, runs, text, strict=True):
        np.testing.assert_array_equal(coco.decode(three["segmentation"]), one["segmentation"])
        packed = coco.frPyObjects(two["segmentation"], *two["segmentation"]["size"])
        assert packed["counts"].decode() == three["segmentation"]["counts"]
        assert one["area"] == int(one["segmentation"].sum()) == int(coco.area(packed))


def test_a_chunk_is_what_runner_and_caller_allow() -> None:
    for most, asked, largest in ((64, 64, 8), (3, 64, 3), (64, 5, 5)):
        runner = DiscRunner(most, mask_input=True)
        ours(SIZES[0], runner, points_per_side=5, points_per_batch=asked)
        assert max(runner.calls) == largest
        assert sum(runner.calls) == 25


def test_a_runner_that_embeds_needs_no_encoder() -> None:
    runner: Any = DiscRunner()
    runner.takes_photos, runner.embed = True, embed
    found = AutomaticMaskGenerator(runner, 6, pred_iou_thresh=0.8, output_mode="coco_rle").generate(image_of(SIZES[0]))
    assert found == ours(SIZES[0], points_per_side=6, pred_iou_thresh=0.8, output_mode="coco_rle") != []


def test_an_embedding_instead_of_an_image() -> None:
    image = image_of(SIZES[0])
    generator = AutomaticMaskGenerator(DiscRunner(), 6, pred_iou_thresh=0.8, image_encoder=Encoder())  # type: ignore[arg-type]
    found, wanted = generator.generate_from_embedding(embed(image), SIZES[0]), generator.generate(image)
    assert len(found) > 3
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.pop("segmentation"), other.pop("segmentation"))
        assert one == other


def test_settings_of_the_command_are_the_generators() -> None:
    image = image_of(SIZES[0])
    settings: dict[str, Any] = {
        **SETTINGS["crops"],
        "stability_score_offset": 0.5,
        "crop_nms_thresh": 0.6,
        "points_per_batch": 7,
    }
    wanted = ours(SIZES[0], **settings, output_mode="coco_rle")
    task = Everything(least_iou=settings.pop("pred_iou_thresh"), **settings)
    parts: list[Path | None] = []

    def embed_part(path: Path | None, part: Array) -> Array:
        parts.append(path)
        return embed(part)

    runner: Any = DiscRunner()
    assert task.records(runner, image, embed(image), embed_part) == wanted
    assert parts == [None] * (4 + 16), "the photo's own embedding was there"
    assert len({tuple(record["crop_box"]) for record in wanted}) > 1


def test_progress_rises_to_the_end() -> None:
    seen: list[tuple[float, str]] = []
    generator = AutomaticMaskGenerator(DiscRunner(), 4, crop_n_layers=1, image_encoder=Encoder())  # type: ignore[arg-type]
    generator.generate(image_of(SIZES[0]), lambda fraction, phase: seen.append((fraction, phase)))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert {phase for _, phase in seen} == {"image encoder", "masks"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points_per_side": 0}, "points_per_side is 0, must be a whole number of at least 1"),
        ({"points_per_side": 60000}, "points_per_side is 60000, must be a whole number from 1 to 1024"),
        ({"points_per_side": float("inf")}, "points_per_side is inf, must be a whole number"),
        ({"points_per_side": None}, "give either points_per_side or point_grids"),
        ({"point_grids": [np.zeros((1, 2))]}, "give either points_per_side or point_grids"),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 3))]}, r"shape \[1, 3\], must be \[k, 2\]"),
        (
            {"points_per_side": None, "point_grids": [np.array([[0, 1], [0.5, 1.5]])]},
            r"click 1 in grid 0 .* is \[0.5, 1.5\], must",
        ),
        (
            {"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1},
            "has 1 grids, must have 2: one for the",
        ),
        ({"points_per_side": 2, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "layer 2 has no clicks"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor is 0, must be at least 1"),
        ({"points_per_batch": 0}, "points_per_batch is 0"),
        ({"points_per_batch": 2.5}, "points_per_batch is 2.5"),
        ({"crop_n_layers": -1}, "crop_n_layers is -1"),
        ({"crop_n_layers": 20}, "crop_n_layers is 20, must be a whole number from 0 to 6"),
        ({"box_nms_thresh": 7.0}, "box_nms_thresh is 7.0, must be an IoU from 0 to 1"),
        ({"crop_nms_thresh": -0.1}, "crop_nms_thresh is -0.1, must be an IoU from 0 to 1"),
        ({"stability_score_offset": -1.0}, "stability_score_offset is -1.0, must be at least 0"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio is 1.0"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh is nan"),
        ({"min_mask_region_area": -1}, "min_mask_region_area is -1"),
        ({"output_mode": "rle"}, "output_mode is 'rle', must be one of binary_mask, uncompressed_rle, coco_rle"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AutomaticMaskGenerator(DiscRunner(), **settings)


def test_grids_of_layers_that_there_are_not(caplog: pytest.LogCaptureFixture) -> None:
    """Meta's generator takes the first ones and says nothing; the same code runs here, and is told of it once."""
    grids = [np.random.default_rng(number).random((5, 2)) for number in range(3)]
    settings: dict[str, Any] = {"points_per_side": None, "crop_n_layers": 1, "pred_iou_thresh": 0.8, "output_mode": "coco_rle"}
    wanted = ours(SIZES[0], **settings, point_grids=grids[:2])
    assert caplog.messages == []
    assert ours(SIZES[0], **settings, point_grids=grids) == wanted != []
    (said,) = caplog.messages
    assert "point_grids has 3 grids, of which only 2 are used: the first is for the whole image" in said
    assert said.endswith("give crop_n_layers 2, or fewer grids")
    rows = tuple(tuple((float(x), float(y)) for x, y in grid) for grid in grids)
    with pytest.raises(InputError, match="point_grids has 3 grids, of which only 2 are used"):
        Everything(points_per_side=None, crop_n_layers=1, point_grids=rows)


def test_what_cannot_be_segmented() -> None:
    generator = AutomaticMaskGenerator(DiscRunner(), 2, image_encoder=Encoder())  # type: ignore[arg-type]
    for image, message in (
        (np.zeros((0, 5, 3), np.uint8), r"uint8 \[0, 5, 3\]"),
        (np.zeros((5, 5), np.uint8), "must be uint8"),
        (np.zeros((5, 5, 3), np.float32), "is float32"),
        (np.zeros((1, 5000, 3), np.uint8), "its short side vanishes"),
    ):
        with pytest.raises(InputError, match=message):
            generator.generate(image)
    assert len(generator.generate(np.zeros((1, 1, 3), np.uint8))) <= 1
    with pytest.raises(InputError, match="there is no image encoder"):
        AutomaticMaskGenerator(DiscRunner()).generate(np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(InputError, match="crops need the image"):
        AutomaticMaskGenerator(DiscRunner(), crop_n_layers=1).generate_from_embedding(embed(np.ones((2, 2, 3))), (2, 2))
    with pytest.raises(InputError, match=r"must be \(height, width\)"):
        AutomaticMaskGenerator(DiscRunner()).generate_from_embedding(embed(np.ones((2, 2, 3))), (0, 2))
    one_mask = DiscRunner()
    one_mask.outputs = output_specs(best_mask=True)
    with pytest.raises(InputError, match="export without --best-mask"):
        AutomaticMaskGenerator(one_mask)


def test_the_largest_island_stays_where_all_are_small() -> None:
    mask = np.zeros((9, 9), np.bool_)
    mask[1:3, 1:3] = mask[6, 6] = True
    smooth, changed = without_small_regions(mask, 10)
    assert changed
    assert smooth.sum() == 4
    assert smooth[1:3, 1:3].all()
    whole, changed = without_small_regions(np.ones((9, 9), np.bool_), 10)
    assert not changed
    assert whole.all()


def test_torch_is_not_needed() -> None:
    assert torch is not None  # this process has it; the modules must not ask for it
    import subprocess

    code = "import sys; import trt_sam.masks, trt_sam.formats.records; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
