"""Who may ask, what is logged and counted, and the description of it all."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import pytest

from tests.fixtures.served import DiscRunner, Served, served, until
from trt_sam.serve import ServeSettings

CLICK = {"points": [[10, 10]], "labels": [1]}


def test_a_token_is_asked_for_everything_but_the_page_and_health() -> None:
    with served(token="s3cret-token") as service:
        client = service.client
        for path in ("/", "/page/app.js", "/openapi.json", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200, path
        for headers in (
            {},
            {"Authorization": "Bearer s3cret"},
            {"Authorization": "Basic s3cret-token"},
            {"Authorization": "é"},
        ):
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            answer = client.post("/images", headers=raw)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "no_token")
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/about", "/images/x"):
            assert client.get(path).status_code == 401, path
        assert client.get("/metrics", headers={"Authorization": "Bearer s3cret-token"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_without_a_token_other_sites_get_nothing(headers: dict[str, str], status: int) -> None:
    """A page elsewhere can make a browser ask loopback; by a name of its own it could also read the answer."""
    with served() as service:
        assert service.client.get("/about", headers=headers).status_code == status


def test_each_request_is_one_line_without_ids() -> None:
    with served() as service:
        image = service.add()
        service.masks(image, **CLICK)
        service.masks(image, points="no")
        service.client.get("/secret/path%0awith:%20lines")
        asked = [line for line in service.lines() if not line["route"].startswith("/v2")]
        assert [line["route"] for line in asked] == ["/images", "/images/{id}/masks", "/images/{id}/masks", "unknown"]
        assert [line["status"] for line in asked] == [201, 200, 400, 404]
        assert asked[2]["code"] == "bad_prompt"
        assert {"read", "queue", "decode", "masks"} <= set(asked[1]["stages_ms"])
        assert asked[1]["bytes_out"] > 100
        assert image not in json.dumps(service.lines())
        assert "secret" not in json.dumps(service.lines())


def test_every_number_has_our_prefix() -> None:
    with served() as service:
        service.masks(service.add(), **CLICK)
        service.masks("none", **CLICK)
        text = service.client.get("/metrics").text
        names = {re.split(r"[ {]", line)[0] for line in text.splitlines() if not line.startswith("#")}
        assert all(name.startswith("trt_sam_") for name in names)
        for wanted in (
            'trt_sam_request_seconds_count{method="POST",route="/images/{id}/masks",status="200"} 1.0',
            'trt_sam_stage_seconds_count{stage="decode"} 1.0',
            'trt_sam_queue_length{lane="clicks"} 0.0',
            "trt_sam_images_resident 1.0",
            'trt_sam_errors_total{code="image_unknown"} 1.0',
        ):
            assert wanted in text, wanted


def test_answers_say_their_times_and_keep_browsers_careful() -> None:
    with served() as service:
        answer = service.masks(service.add(), **CLICK)
        assert "decode;dur=" in answer.headers["server-timing"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_the_examples_of_the_description_work() -> None:
    with served() as service:
        described = service.client.get("/openapi.json").json()
        routes = {
            (path, method)
            for path, operations in described["paths"].items()
            for method in operations
            if method in ("get", "post", "delete")
        }
        assert len(routes) >= 9
        image = service.add((512, 512))
        first = service.masks(image, **CLICK).json()["results"][0]["masks"][0]["id"]
        for path, method in sorted(routes):
            if method == "post" and path != "/images":
                body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
                for example in body["examples"].values():
                    asked: dict[str, Any] = dict(example["value"])
                    if "mask" in asked:
                        asked["mask"] = first
                    if path.endswith("everything"):
                        asked["points_per_side"] = 3
                    answer = service.client.post(path.replace("{id}", image), json=asked)
                    assert answer.status_code == 200, answer.text
                    shown = described["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["example"]
                    assert set(answer.json()) == set(shown)
            elif method == "get":
                assert service.client.get(path.replace("{id}", image)).status_code == 200


def test_it_is_ready_once_the_model_has_run_and_never_where_that_failed() -> None:
    with served() as service:
        assert service.client.get("/v2/health/ready").status_code == 200
    broken = DiscRunner()
    broken.error = RuntimeError("no")
    found = Served(broken, ServeSettings())
    with found.client as client:
        until(broken.entered.is_set)
        answer = client.get("/v2/health/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert client.get("/v2/health/live").status_code == 200
    assert broken.closed


def test_what_has_begun_when_its_time_is_over_is_answered_and_what_has_not_is_429() -> None:
    with served(answer_seconds=2) as service:
        image, runner = service.add(), service.runner
        runner.hold.clear()
        runner.entered.clear()
        answers: dict[str, Any] = {}

        def ask(name: str) -> None:
            answers[name] = service.masks(image, **CLICK)

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("begun", "waiting")]
        threads[0].start()
        assert runner.entered.wait(5)
        threads[1].start()
        until(lambda: "waiting" in answers)
        assert "begun" not in answers
        runner.hold.set()
        for thread in threads:
            thread.join(10)
        assert (answers["begun"].status_code, answers["waiting"].status_code) == (200, 429)
        assert int(answers["waiting"].headers["retry-after"]) >= 1


def test_a_model_that_does_not_end_is_503() -> None:
    with served(answer_seconds=1) as service:
        image, runner = service.add(), service.runner
        runner.hold.clear()
        answer = service.masks(image, **CLICK)
        runner.hold.set()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_answer")
