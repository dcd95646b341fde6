"""Pictures in, masks out: the masks are where the prompts are, in every form."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.served import RADII, SCORES, picture, served
from tests.fixtures.toy_runner import MASK, make
from trt_sam.formats.records import runs_of
from trt_sam.serve import Model, create_app

SIZE = (300, 400)
SCALE = 1024 / 400


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    return np.hypot(rows - y, columns - x) <= radius / SCALE


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    """But for pixels that the edge goes through."""
    return bool((found ^ wanted).sum() <= 0.02 * wanted.sum())


def test_a_click_gives_three_masks_where_it_is() -> None:
    with served() as service:
        image = service.add(SIZE)
        answer = service.masks(image, points=[[150, 100]], labels=[1]).json()
        (result,) = answer["results"]
        assert [mask["score"] for mask in result["masks"]] == pytest.approx(SCORES[1:])
        assert result["best"] == 1
        for mask, radius in zip(result["masks"], RADII[1:], strict=True):
            found = runs_of(mask["segmentation"], SIZE)
            assert same(found.mask(), disc(150, 100, radius))
            assert mask["area"] == found.area
            x, y, width, height = mask["bbox"]
            assert found.mask()[y : y + height, x : x + width].sum() == found.area
        assert {"decode", "queue", "masks", "total"} <= set(answer["times_ms"])


@pytest.mark.parametrize(("output", "radii"), [("three", RADII[1:]), ("best", RADII[2:3]), ("single", RADII[:1])])
def test_which_masks_come_is_asked(output: str, radii: tuple[int, ...]) -> None:
    with served() as service:
        (result,) = service.masks(service.add(SIZE), points=[[200, 150]], labels=[1], output=output).json()["results"]
        assert len(result["masks"]) == len(radii)
        assert same(runs_of(result["masks"][0]["segmentation"], SIZE).mask(), disc(200, 150, radii[0]))


def test_the_forms_are_of_the_same_mask() -> None:
    with served() as service:
        image = service.add(SIZE)
        found = {}
        for form in ("rle", "polygons", "png"):
            answer = service.masks(image, points=[[150, 100]], labels=[1], output="best", format=form).json()
            found[form] = answer["results"][0]["masks"][0]["segmentation"]
        mask = runs_of(found["rle"], SIZE).mask()
        np.testing.assert_array_equal(runs_of(found["polygons"], SIZE).mask(), mask)
        pixels = np.array(Image.open(io.BytesIO(base64.b64decode(found["png"]))))
        np.testing.assert_array_equal(pixels, mask * np.uint8(255))


def test_several_boxes_give_a_result_each_and_a_box_takes_points() -> None:
    with served() as service:
        image = service.add(SIZE)
        answer = service.masks(image, boxes=[[100, 50, 200, 150], [250, 150, 350, 250]], output="single").json()
        for result, (x, y) in zip(answer["results"], [(150, 100), (300, 200)], strict=True):
            assert same(runs_of(result["masks"][0]["segmentation"], SIZE).mask(), disc(x, y, RADII[0]))
        service.masks(image, boxes=[[100, 50, 200, 150]], points=[[10, 20]], labels=[0])
        feed = service.runner.feeds[-1]
        np.testing.assert_array_equal(feed["point_labels"], [[0, 2, 3]])
        np.testing.assert_allclose(feed["point_coords"][0], np.array([[10, 20], [100, 50], [200, 150]]) * SCALE)


def test_an_earlier_mask_goes_in_by_its_id() -> None:
    with served() as service:
        image = service.add(SIZE)
        (first,) = service.masks(image, points=[[150, 100]], labels=[1]).json()["results"]
        assert not service.runner.feeds[-1]["has_mask_input"].any()
        again = service.masks(image, points=[[150, 100]], labels=[1], mask=first["masks"][2]["id"], output="single")
        assert again.status_code == 200
        feed = service.runner.feeds[-1]
        assert feed["has_mask_input"].all()
        assert feed["mask_input"].max() == pytest.approx(RADII[3], abs=4)
        lost = service.masks(image, points=[[1, 1]], labels=[1], mask="none")
        assert (lost.status_code, lost.json()["error"]["code"]) == (404, "mask_unknown")
        other = service.masks(service.add(SIZE), points=[[1, 1]], labels=[1], mask=first["masks"][2]["id"])
        assert other.status_code == 404
        (unkept,) = service.masks(image, points=[[1, 1]], labels=[1], keep=False).json()["results"]
        assert [mask["id"] for mask in unkept["masks"]] == [None] * 3


def test_each_image_is_answered_from_its_own_embedding() -> None:
    with served() as service:
        ids = {service.add(SIZE): SIZE, service.add((200, 100)): (200, 100)}
        for image, (height, width) in (*ids.items(), *ids.items()):
            assert service.masks(image, points=[[width - 1, height - 1]], labels=[1]).status_code == 200
            rows, columns, _ = service.runner.images[service.runner.used].shape
            assert (rows > columns) == (height > width)


def test_everything_finds_masks_and_clicks_come_between() -> None:
    with served() as service:
        image = service.add(SIZE)
        answer = service.client.post(f"/images/{image}/everything", json={"points_per_side": 4, "stability_score_thresh": 0})
        masks = answer.json()["masks"]
        assert len(masks) > 4
        areas = [mask["area"] for mask in masks]
        assert areas == sorted(areas, reverse=True)
        assert all(len(feed["point_coords"]) <= 8 for feed in service.runner.feeds)


@pytest.mark.hostcuda
def test_a_decoder_runner_serves_as_well(host_cuda: HostCuda) -> None:
    """The runner of engines, over a driver in host memory; its own numbers come out."""
    from starlette.testclient import TestClient

    class Grey:
        def embed(self, rgb: np.ndarray) -> np.ndarray:
            return np.full((1, 256, 64, 64), rgb.mean() / 256, np.float32)

    runner, _ = make(host_cuda, MASK, image_bytes=2 * 4 << 20)
    app = create_app(Model(runner, "toy", encoder=Grey()))
    with TestClient(app, base_url="http://localhost") as client:
        ids = [client.post("/images", content=picture((64 + n, 64))).json()["id"] for n in range(3)]
        asked = {"points": [[10, 20]], "labels": [1]}
        # There is room for two on the device; the first has gone.
        assert [client.post(f"/images/{each}/masks", json=asked).status_code for each in ids] == [404, 200, 200]
        found = client.post(f"/images/{ids[2]}/masks", json=asked).json()["results"][0]["masks"]
        refined = client.post(f"/images/{ids[2]}/masks", json={**asked, "mask": found[0]["id"]})
        assert refined.status_code == 200
        boxes = client.post(f"/images/{ids[2]}/masks", json={"boxes": [[1, 2, 30, 40]] * 7})
        assert len(boxes.json()["results"]) == 7
        everything = client.post(f"/images/{ids[2]}/everything", json={"points_per_side": 3})
        assert everything.status_code == 200
        assert client.delete(f"/images/{ids[2]}").status_code == 204
    assert runner.closed
