"""Requests that cannot be answered get one JSON error with a code, and the service goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fixtures.served import DiscRunner, served
from trt_sam.errors import InputError
from trt_sam.serve import Model, ServeSettings

CLICK = {"points": [[10, 10]], "labels": [1]}

BODIES: dict[str, tuple[bytes | dict[str, Any], str, str]] = {
    "not JSON": (b"points=1", "bad_json", "not JSON"),
    "NaN": (b'{"points": [[NaN, 1]], "labels": [1]}', "bad_json", "not JSON"),
    "not UTF-8": (b'{"mask": "\xff\xfe"}', "bad_json", "not JSON"),
    "UTF-16": ('{"points": [[1, 1]], "labels": [1]}'.encode("utf-16"), "bad_json", "not JSON, UTF-8"),
    "nested without end": (b"[" * 100_000, "bad_json", "not JSON"),
    "a number of 9000 digits": (b'{"points": [[' + b"9" * 9000 + b', 1]], "labels": [1]}', "bad_json", "not JSON"),
    "too large to be one": (b'{"points": [[1e999, 1]], "labels": [1]}', "bad_prompt", "lists of 2 numbers"),
    "a list": (b"[]", "bad_json", "a list"),
    "nothing": (b"", "bad_prompt", "no prompt"),
    "an empty object": ({}, "bad_prompt", "no prompt"),
    "an unknown key": ({**CLICK, "path": "/etc/passwd"}, "bad_prompt", '"path" is no part'),
    "outside": ({"points": [[401, 10]], "labels": [1]}, "bad_prompt", "outside of the picture"),
    "a negative place": ({"points": [[-1, 10]], "labels": [1]}, "bad_prompt", "outside of the picture"),
    "a box outside": ({"boxes": [[0, 0, 10, 301]]}, "bad_prompt", "outside of the picture"),
    "a box upside down": ({"boxes": [[50, 50, 10, 10]]}, "bad_prompt", "x0 < x1"),
    "10,000 points": ({"points": [[1, 1]] * 10_000, "labels": [1] * 10_000}, "bad_prompt", "at most 256"),
    "many boxes": ({"boxes": [[0, 0, 1, 1]] * 65}, "bad_prompt", "at most 64"),
    "points with boxes": ({**CLICK, "boxes": [[0, 0, 9, 9], [0, 0, 8, 8]]}, "bad_prompt", "one box"),
    "no labels": ({"points": [[1, 1]]}, "bad_prompt", "without labels"),
    "too few labels": ({"points": [[1, 1], [2, 2]], "labels": [1]}, "bad_prompt", "a list of 2"),
    "labels alone": ({"labels": [1]}, "bad_prompt", "a list of 0"),
    "a label that is none": ({"points": [[1, 1]], "labels": [2]}, "bad_prompt", "1 to add"),
    "a true label": ({"points": [[1, 1]], "labels": [True]}, "bad_prompt", "1 to add"),
    "a list as label": ({"points": [[1, 1]], "labels": [[1]]}, "bad_prompt", "1 to add"),
    "points of three": ({"points": [[1, 1, 1]], "labels": [1]}, "bad_prompt", "lists of 2 numbers"),
    "texts as points": ({"points": [["1", "1"]], "labels": [1]}, "bad_prompt", "lists of 2 numbers"),
    "a point": ({"points": [1, 1], "labels": [1, 1]}, "bad_prompt", "lists of 2 numbers"),
    "a text": ({"points": "here", "labels": [1]}, "bad_prompt", "is a text"),
    "an unknown form": ({**CLICK, "format": "tiff"}, "bad_prompt", "one of rle, polygons, png"),
    "a list as form": ({**CLICK, "format": []}, "bad_prompt", "one of rle, polygons, png"),
    "a number as mask": ({**CLICK, "mask": 7}, "bad_prompt", "the id of an earlier mask"),
    "keep perhaps": ({**CLICK, "keep": "yes"}, "bad_prompt", "true or false"),
}


def test_bad_prompts_are_refused_one_by_one() -> None:
    with served() as service:
        image = service.add((300, 400))
        for name, (body, code, words) in BODIES.items():
            sent = {"content": body} if isinstance(body, bytes) else {"json": body}
            answer = service.client.post(f"/images/{image}/masks", **sent)  # type: ignore[arg-type]
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, code), name
            assert words in error["message"], f"{name}: {error['message']}"
            assert len(error["message"]) < 250
            assert error["request"] == answer.headers["x-request-id"]
        assert not service.runner.feeds
        assert service.masks(image, **CLICK).status_code == 200


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"points_per_side": 65}, "from 1 to 64"),
        ({"points_per_side": True}, "from 1 to 64"),
        ({"points_per_side": 1.5}, "from 1 to 64"),
        ({"pred_iou_thresh": 2}, "from 0 to 1"),
        ({"box_nms_thresh": None}, "from 0 to 1"),
        ({"points": [[1, 1]]}, "no part of this request"),
    ],
)
def test_bad_settings_of_everything_are_refused(asked: dict[str, Any], words: str) -> None:
    with served() as service:
        answer = service.client.post(f"/images/{service.add()}/everything", json=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_prompt")
        assert words in answer.json()["error"]["message"]


def test_unknown_images_and_addresses() -> None:
    with served() as service:
        client = service.client
        for answer in (client.post("/images/none/masks", json=CLICK), client.post("/images/none/everything", json={})):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "image_unknown")
        for path in ("/nothing", "/images/", "/page/..%2fmodel.py", "/page/%2e%2e", "/page/routes.py", "/page/"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
        answer = client.get("/images")
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
        assert client.put("/images/x").headers["allow"] == "DELETE, GET, HEAD"


def test_a_body_beyond_the_bound_is_refused_whether_it_says_so_or_not() -> None:
    with served(body_bytes=1000, prompt_bytes=100) as service:
        for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):
            answer = service.client.post("/images", content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert service.client.get("/metrics").text.count('trt_sam_errors_total{code="body_too_large"} 2.0') == 1


def test_a_fault_of_ours_is_told_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    with served() as service:
        image = service.add()
        service.runner.error = RuntimeError("a secret of the machine: /home/someone")
        answer = service.masks(image, **CLICK)
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.json()["error"]["code"] == "internal"
        assert "a secret of the machine" in caplog.text
        service.runner.error = None
        assert service.masks(image, **CLICK).status_code == 200


def test_a_runner_that_cannot_serve_is_refused() -> None:
    runner = DiscRunner()
    runner.takes_photos = False
    with pytest.raises(InputError, match="no image encoder"):
        Model(runner, "discs")
    with pytest.raises(InputError, match="images is 0"):
        ServeSettings(images=0)
    with pytest.raises(InputError, match="token"):
        ServeSettings(token="a b")
