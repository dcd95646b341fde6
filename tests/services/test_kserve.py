"""tritonclient itself, against MobileSAM."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.services.process import Service


@pytest.fixture
def client(service: Service) -> Any:
    return triton.InferenceServerClient(service.url.removeprefix("http://"), network_timeout=120.0, connection_timeout=60.0)


def tensor(name: str, array: np.ndarray, kind: str, *, binary: bool) -> triton.InferInput:
    found = triton.InferInput(name, list(array.shape), kind)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def model_of(service: Service) -> str:
    return str(service.get("/about")["model"])


def test_it_finds_server_and_model(client: Any, service: Service) -> None:
    name = model_of(service)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert not client.is_model_ready("another")
    assert client.get_server_metadata()["name"] == "trt_sam"
    assert client.get_model_metadata(name)["versions"] == ["1"]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_a_click_gives_the_masks_of_the_plain_address(client: Any, service: Service, astronaut: bytes, binary: bool) -> None:
    name, points = model_of(service), np.array([[[220, 400]]], np.float32)
    prompt = [
        tensor("point_coords", points, "FP32", binary=binary),
        tensor("point_labels", np.ones((1, 1), np.float32), "FP32", binary=binary),
    ]
    wanted = [triton.InferRequestedOutput(each, binary_data=binary) for each in ("masks", "iou_predictions", "image_id")]
    picture = tensor("image", np.array([astronaut], object), "BYTES", binary=True)
    first = client.infer(name, [picture, *prompt], outputs=wanted)
    (image,) = first.as_numpy("image_id").ravel()
    image = image if isinstance(image, bytes) else image.encode()
    named = tensor("image_id", np.array([image], object), "BYTES", binary=binary)
    again = client.infer(name, [named, *prompt], outputs=wanted)
    for part in ("masks", "iou_predictions"):
        np.testing.assert_allclose(first.as_numpy(part), again.as_numpy(part), atol=1e-5)
    body = json.dumps({"points": [[220, 400]], "labels": [1]}).encode()
    request = urllib.request.Request(f"{service.url}/images/{image.decode()}/masks", data=body)
    plain = json.loads(urllib.request.urlopen(request, timeout=60).read())["results"][0]["masks"]
    np.testing.assert_allclose(first.as_numpy("iou_predictions")[0], [mask["score"] for mask in plain], atol=1e-4)
    assert first.as_numpy("masks").sum(axis=(2, 3))[0] == pytest.approx([mask["area"] for mask in plain], rel=1e-3)


def test_faults_come_as_its_own_errors(client: Any, service: Service) -> None:
    named = tensor("image_id", np.array([b"none"], object), "BYTES", binary=True)
    boxes = tensor("boxes", np.array([[1, 1, 9, 9]], np.float32), "FP32", binary=True)
    with pytest.raises(InferenceServerException, match="no such image"):
        client.infer(model_of(service), [named, boxes])
    with pytest.raises(InferenceServerException, match="no such model"):
        client.infer("another", [named, boxes])
