"""KServe v2: JSON and binary tensors give the masks of the service's own addresses; `tests/services` asks with tritonclient."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from tests.fixtures.served import RADII, SCORES, picture, served

POINTS: dict[str, Any] = {"name": "point_coords", "datatype": "FP32", "shape": [1, 1, 2], "data": [150, 100]}
LABELS: dict[str, Any] = {"name": "point_labels", "datatype": "FP32", "shape": [1, 1], "data": [1]}


def test_what_the_server_and_its_model_are() -> None:
    with served() as service:
        client = service.client
        assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
        for path in ("/v2/models/discs", "/v2/models/discs/versions/1"):
            told = client.get(path).json()
            assert {each["name"] for each in told["inputs"]} >= {"image", "point_coords", "point_labels", "boxes"}
            assert client.get(f"{path}/ready").status_code == 200
        for path in ("/v2/models/other", "/v2/models/discs/versions/2", "/v2/models/other/ready"):
            answer = client.get(path)
            assert answer.status_code == 404
            assert "there is discs" in answer.json()["error"]


def test_json_and_binary_give_the_same_masks() -> None:
    with served() as service:
        image = service.add((300, 400))
        named = {"name": "image_id", "datatype": "BYTES", "shape": [1], "data": [image]}
        plain = service.client.post("/v2/models/discs/infer", json={"id": "7", "inputs": [named, POINTS, LABELS]}).json()
        assert (plain["id"], plain["model_name"]) == ("7", "discs")
        outputs = {each["name"]: each for each in plain["outputs"]}
        assert outputs["masks"]["shape"] == [1, 3, 300, 400]
        assert outputs["iou_predictions"]["data"] == pytest.approx(SCORES[1:])
        masks = np.array(outputs["masks"]["data"]).reshape(3, 300, 400)
        assert masks[1].sum() == pytest.approx(np.pi * (RADII[2] * 400 / 1024) ** 2, rel=0.03)

        png, coords = picture((300, 400)), np.array([[[150, 100]]], "<f4").tobytes()
        inputs = [
            {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(png) + 4}},
            {**{k: v for k, v in POINTS.items() if k != "data"}, "parameters": {"binary_data_size": len(coords)}},
            LABELS,
        ]
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        answer = service.client.post(
            "/v2/models/discs/versions/1/infer",
            content=head + struct.pack("<I", len(png)) + png + coords,
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        assert answer.status_code == 200
        length = int(answer.headers["inference-header-content-length"])
        told, at = json.loads(answer.content[:length]), length
        sizes = {}
        for each in told["outputs"]:
            sizes[each["name"]] = (at, each["parameters"]["binary_data_size"])
            at += each["parameters"]["binary_data_size"]
        assert at == len(answer.content)
        start, size = sizes["masks"]
        np.testing.assert_array_equal(np.frombuffer(answer.content[start : start + size], "?").reshape(3, 300, 400), masks)


def test_pixels_boxes_and_chosen_outputs() -> None:
    with served() as service:
        pixels = {"name": "image", "datatype": "UINT8", "shape": [20, 30, 3], "data": [7] * 1800}
        boxes = {"name": "boxes", "datatype": "FP32", "shape": [2, 4], "data": [[1, 2, 10, 12], [3, 3, 20, 19]]}
        asked = {"inputs": [pixels, boxes], "outputs": [{"name": "iou_predictions"}]}
        (only,) = service.client.post("/v2/models/discs/infer", json=asked).json()["outputs"]
        assert only["shape"] == [2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": 3}, "a list of tensors"),
        ({"inputs": [{"datatype": "FP32"}]}, "a name"),
        ({"inputs": [POINTS, POINTS]}, "a name of its own"),
        ({"inputs": [POINTS, LABELS]}, "one of image and image_id"),
        ({"points": {"shape": [1, 2, 2]}}, "2 values"),
        ({"points": {"shape": [1 << 40, 1, 2]}}, "whole numbers"),
        ({"points": {"datatype": "FP8"}}, "datatype"),
        ({"points": {"datatype": "FP16"}}, "binary extension"),
        ({"points": {"data": [["a", 1]]}}, "numbers"),
        ({"points": {"data": [1e300, 1]}}, "lists of 2 numbers"),
        ({"points": {"data": [500, 1]}}, "outside of the picture"),
        ({"points": {"parameters": {"binary_data_size": 8}}}, "binary_data_size"),
        ({"points": {"parameters": []}}, "an object"),
        ({"points": {"name": "path"}}, "no input"),
        ({"labels": {"data": [0.5]}}, "a label is 0.5"),
        ({"labels": {"datatype": "INT32", "data": [0.5]}}, "whole numbers, as it is INT32"),
        ({"outputs": [{"name": "embedding"}]}, "no output"),
        ({"outputs": [1]}, "a list of objects"),
    ],
)
def test_bad_tensors_are_refused(change: dict[str, Any], words: str) -> None:
    with served() as service:
        named = {"name": "image_id", "datatype": "BYTES", "shape": [1], "data": [service.add((300, 400))]}
        points, labels = {**POINTS, **change.pop("points", {})}, {**LABELS, **change.pop("labels", {})}
        answer = service.client.post("/v2/models/discs/infer", json={"inputs": [named, points, labels], **change})
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]


def test_a_binary_part_that_does_not_fit_is_refused() -> None:
    with served() as service:
        for headers, body in (
            ({"Inference-Header-Content-Length": "999"}, b"{}"),
            ({"Inference-Header-Content-Length": "-1"}, b"{}"),
            ({"Inference-Header-Content-Length": "14"}, b'{"inputs": []}behind'),
            ({"Content-Encoding": "gzip"}, b"{}"),
        ):
            answer = service.client.post("/v2/models/discs/infer", content=body, headers=headers)
            assert answer.status_code in (400, 415), answer.text
