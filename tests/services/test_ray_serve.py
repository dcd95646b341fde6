"""The deployment of docs/ray_serve.yaml on a real cluster of Ray: clicks, a replica that is killed, refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.services.process import ROOT, python, run, served_set
from tests.services.ray_cluster import Cluster, command_line, descendants
from tests.services.triton_process import free_port

PHOTO = ROOT / "samples" / "astronaut.jpg"
CLICK = {"points": [[220, 400]], "labels": [1]}
BOXES = {"boxes": [[20, 16, 360, 511], [150, 60, 280, 200]]}
READY_SECONDS = 180


@dataclass
class Deployment:
    """Two replicas, each on a worker of one core."""

    cluster: Cluster
    url: str
    folder: str

    def post(self, path: str, body: bytes | dict[str, Any]) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data=data), timeout=120) as answer:
            return json.loads(answer.read())

    def refusal(self, path: str, body: bytes | dict[str, Any]) -> tuple[int, str]:
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.post(path, body)
        return caught.value.code, json.loads(caught.value.read())["error"]["code"]

    def replicas(self) -> list[int]:
        """Processes of `Sam`."""
        found = [pid for node in self.cluster.nodes for pid in descendants(node.pid)]
        return [pid for pid in found if b"ray::ServeReplica:sam:Sam" in command_line(pid)]


@pytest.fixture(scope="module")
def deployment(ray_head: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder, place = served_set(), tmp_path_factory.mktemp("ray-serve")
    ray_head.have_workers(2)
    config, port = (ROOT / "docs" / "ray_serve.yaml").read_text(), free_port()
    # The nodes are on one machine, so they cannot all listen on the port.
    for old, new in (
        ("EveryNode", "HeadOnly"),
        ("host: 0.0.0.0", "host: 127.0.0.1"),
        ("port: 8000", f"port: {port}"),
        (r"set: \S+", f"set: {folder}"),
        (r"pictures: \S+", f"pictures: {place}/pictures"),
    ):
        config, count = re.subn(old, new, config)
        assert count == 1, old
    (place / "serve.yaml").write_text(config)
    log = (place / "serve.log").open("wb")
    words = [python("ray"), "-m", "ray.serve.scripts", "run", str(place / "serve.yaml"), "--address", ray_head.address]
    process = subprocess.Popen(words, stdout=log, stderr=log, env=ray_head.environment(), start_new_session=True)
    found = Deployment(ray_head, f"http://127.0.0.1:{port}", folder)
    try:
        wait_until_ready(found, process, place / "serve.log")
        yield found
    finally:
        process.kill()
        process.wait(30)


def wait_until_ready(deployment: Deployment, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(deployment.url + "/v2/health/ready", timeout=10):
                if len(deployment.replicas()) == 2:
                    return
        except OSError:
            pass
        time.sleep(0.3)
    raise AssertionError("the deployment did not become ready\n" + log.read_text()[-4000:])


@pytest.fixture(scope="module")
def runners_masks(deployment: Deployment) -> Any:
    script = str(ROOT / "tests/services/reference.py")
    return json.loads(run(script, deployment.folder, str(PHOTO), given=json.dumps([CLICK, BOXES])).stdout)


def masks_in(answer: Any) -> list[Any]:
    return [result["masks"][0]["segmentation"] for result in answer["results"]]


def test_masks_are_the_runners(deployment: Deployment, runners_masks: Any) -> None:
    image = deployment.post("/images", PHOTO.read_bytes())
    assert (image["height"], image["width"]) == (512, 512)
    for prompt, expected in zip((CLICK, BOXES), runners_masks, strict=True):
        answer = deployment.post(f"/images/{image['id']}/masks", {**prompt, "output": "best"})
        assert masks_in(answer) == [each["rle"] for each in expected]
    three = deployment.post(f"/images/{image['id']}/masks", CLICK)
    assert len(three["results"][0]["masks"]) == 3


def test_clicks_at_once_each_get_their_own(deployment: Deployment, runners_masks: Any) -> None:
    image = deployment.post("/images", PHOTO.read_bytes())["id"]
    prompts = [CLICK, BOXES] * 4
    with ThreadPoolExecutor(8) as threads:
        asked = [{**prompt, "output": "best"} for prompt in prompts]
        answers = list(threads.map(lambda body: deployment.post(f"/images/{image}/masks", body), asked))
    for number, answer in enumerate(answers):
        assert masks_in(answer) == [each["rle"] for each in runners_masks[number % 2]]


def test_who_would_wait_too_long_is_told_to_come_again(deployment: Deployment) -> None:
    image = deployment.post("/images", PHOTO.read_bytes())["id"]

    def status(_: int) -> tuple[int, str | None]:
        try:
            deployment.post(f"/images/{image}/masks", {**CLICK, "output": "best"})
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Retry-After"]
        return 200, None

    with ThreadPoolExecutor(160) as threads:
        found = set(threads.map(status, range(160)))
    assert found == {(200, None), (429, "1")}


def test_clicks_of_a_replica_that_dies_are_answered_by_the_other(deployment: Deployment, runners_masks: Any) -> None:
    image = deployment.post("/images", PHOTO.read_bytes())["id"]
    with ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(deployment.post, f"/images/{image}/masks", {**CLICK, "output": "best"}) for _ in range(12)]
        time.sleep(0.2)
        os.kill(deployment.replicas()[0], signal.SIGKILL)
        answers = [each.result() for each in asked]
    assert all(masks_in(answer) == [runners_masks[0][0]["rle"]] for answer in answers)


def test_an_embedding_that_is_lost_is_made_again(deployment: Deployment, runners_masks: Any) -> None:
    image = deployment.post("/images", PHOTO.read_bytes())["id"]
    for replica in deployment.replicas():
        os.kill(replica, signal.SIGKILL)
    deadline = time.monotonic() + READY_SECONDS
    answer = None
    while answer is None:
        try:
            answer = deployment.post(f"/images/{image}/masks", {**CLICK, "output": "best"})
        except OSError:  # until Ray has started others
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert masks_in(answer) == [runners_masks[0][0]["rle"]]


def test_bad_input_is_refused_as_by_the_service(deployment: Deployment) -> None:
    image = deployment.post("/images", PHOTO.read_bytes())["id"]
    assert deployment.refusal("/images", b"no picture") == (400, "bad_picture")
    assert deployment.refusal(f"/images/{'0' * 32}/masks", CLICK) == (404, "image_unknown")
    assert deployment.refusal("/images/passwd/masks", CLICK) == (404, "image_unknown")
    assert deployment.refusal("/images/..%2f..%2fetc/masks", CLICK) == (404, "not_found")
    assert deployment.refusal(f"/images/{image}/masks", {"points": [[9999, 1]], "labels": [1]}) == (400, "bad_prompt")
    assert deployment.refusal(f"/images/{image}/masks", {**CLICK, "mask": "earlier"}) == (400, "bad_prompt")
    assert deployment.refusal(f"/images/{image}/masks", b"{") == (400, "bad_json")
    assert deployment.refusal("/another", b"{}") == (404, "not_found")
