"""Images: sent, looked at, deleted, expired, and gone for others; and pictures that are none."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.served import picture, served
from trt_sam.serve.faults import Refusal
from trt_sam.serve.images import Images


def test_an_image_has_a_size_and_an_end() -> None:
    with served(image_seconds=77) as service:
        for form in ("PNG", "JPEG", "WEBP"):
            answer = service.client.post("/images", content=picture((30, 50), form))
            found = answer.json()
            assert answer.status_code == 201
            assert answer.headers["location"] == f"/images/{found['id']}"
            assert (found["height"], found["width"], found["expires_in_seconds"]) == (30, 50, 77)
            assert {"read", "picture", "embed"} <= set(found["times_ms"])
        assert service.client.get(f"/images/{found['id']}").json()["width"] == 50
        assert service.client.delete(f"/images/{found['id']}").status_code == 204
        for gone in (service.client.get(f"/images/{found['id']}"), service.client.delete(f"/images/{found['id']}")):
            assert gone.status_code == 404
            assert "send the picture again" in gone.json()["error"]["message"]


def test_a_photo_is_turned_as_its_exif_says() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    with served() as service:
        found = service.client.post("/images", content=buffer.getvalue()).json()
        assert (found["height"], found["width"]) == (40, 20)


def test_the_least_recently_used_makes_room() -> None:
    with served(images=2) as service:
        one, two = service.add(), service.add()
        service.client.get(f"/images/{one}")
        three = service.add()
        found = [service.client.get(f"/images/{each}").status_code for each in (one, two, three)]
        assert found == [200, 404, 200]
        assert service.masks(three, points=[[1, 1]], labels=[1]).status_code == 200
        assert len(service.runner.images) == 2
        assert "trt_sam_images_resident 2.0" in service.client.get("/metrics").text


def test_time_and_masks_run_out() -> None:
    now, gone = [0.0], []
    images = Images(gone.append, most=9, seconds=10, masks=2, clock=lambda: now[0])
    one = images.add(1, (4, 4))
    now[0] = 6
    two = images.add(2, (4, 4))
    images.get(one.id)
    now[0] = 16.5
    with pytest.raises(Refusal, match="expired"):
        images.get(two.id)
    with pytest.raises(Refusal, match="expired"):
        images.get(one.id)
    assert sorted(gone) == [1, 2]
    three = images.add(3, (4, 4))
    first, *_ = [images.keep_mask(three, np.zeros((1, 1), np.float32)) for _ in range(3)]
    with pytest.raises(Refusal, match="not kept"):
        three.mask(first)


def bare_png(width: int, height: int) -> bytes:
    """Of a size that it does not have the pixels for."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b"", 400, "bad_picture", id="nothing"),
        pytest.param(b"a text named .jpg", 400, "bad_picture", id="a text"),
        pytest.param(picture((200, 300), "JPEG")[:900], 400, "bad_picture", id="half a JPEG"),
        pytest.param(bare_png(10_000, 10_000), 413, "picture_too_large", id="100 megapixels"),
        pytest.param(bare_png(60_000, 60_000), 413, "picture_too_large", id="a bomb"),
        pytest.param(bare_png(3000, 1), 400, "bad_picture", id="a line"),
        pytest.param(bare_png(300, 300), 400, "bad_picture", id="pixels are missing"),
        pytest.param(picture((8, 8), "GIF"), 400, "bad_picture", id="a format that is not taken"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"\xff" * 400, 400, "bad_picture", id="noise behind a PNG's first bytes"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(body: bytes, status: int, code: str) -> None:
    with served() as service:
        answer = service.client.post("/images", content=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code), error
        assert "\n" not in error["message"]
        assert "/" not in error["message"].replace("/images", "")
        assert not service.runner.images
        service.add()
        assert len(service.runner.images) == 1
