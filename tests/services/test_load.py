"""Many users at once, and clients that behave badly beside them: nothing is lost, nothing fails, memory does not grow."""

from __future__ import annotations

import collections
import http.client
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.services.process import Service, start

GROWTH_BYTES = 64 << 20
"""What the process may be larger at the end than at half of the time, once images, their masks and arenas are there."""
IMAGES = 60
IMAGE_BYTES = 8 << 20
"""An embedding, and the masks of an image that are kept."""
TERMS_BYTES = 4 * (27 << 20)
"""What the decoder in two graphs keeps of images that are in use (`docs/speed.md`): 26.05 MiB of each of four."""


@pytest.fixture
def fresh() -> Iterator[Service]:
    service = start("--images", str(IMAGES))
    yield service
    assert service.stop() == 0, "".join(service.errors)


def test_eight_users_with_bad_clients(fresh: Service, astronaut: bytes) -> None:
    run(fresh, astronaut, users=8, seconds=25)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_fifty_users_for_ten_minutes(fresh: Service, astronaut: bytes) -> None:
    """TRT_SAM_LOAD_SECONDS shortens it."""
    run(fresh, astronaut, users=50, seconds=float(os.environ.get("TRT_SAM_LOAD_SECONDS", "600")))


def run(service: Service, picture: bytes, *, users: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    counts: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()
    memory: list[int] = []
    address = urlsplit(service.url)
    assert address.hostname is not None
    assert address.port is not None
    host, port = address.hostname, address.port

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def ask(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, bytes]:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        found = answer.read()
        count(f"{path.rpartition('/')[2]} {answer.status}")
        return answer.status, found

    def user(number: int) -> None:
        chance = random.Random(number)
        connection = http.client.HTTPConnection(host, port, timeout=120)
        image = ""
        try:
            while time.monotonic() < end:
                if not image:
                    status, body = ask(connection, "/images", picture)
                    image = json.loads(body)["id"] if status == 201 else ""
                else:
                    click = {"points": [[chance.uniform(0, 512), chance.uniform(0, 512)]], "labels": [1], "output": "best"}
                    status, body = ask(connection, f"/images/{image}/masks", json.dumps(click).encode())
                    if status == 200 and chance.random() < 0.02:
                        image = ""
                time.sleep(chance.uniform(0.2, 1.0) * (4 if status == 429 else 1))
        except (OSError, http.client.HTTPException, ValueError) as error:
            count(f"lost: {error!r}")

    def bad(number: int) -> None:
        chance = random.Random(-number)
        head = b"POST /images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000\r\n\r\n"
        while time.monotonic() < end:
            try:
                with socket.create_connection((host, port), timeout=5) as connection:
                    kind = chance.choice(["garbage", "leaves", "slow", "noise"])
                    if kind == "garbage":
                        connection.sendall(chance.randbytes(2000) + b"\r\n\r\n")
                        connection.recv(1000)
                    elif kind == "leaves":
                        connection.sendall(head.replace(b"50000", str(len(picture)).encode()) + picture)
                    elif kind == "slow":
                        connection.sendall(head)
                        for _ in range(10):
                            connection.sendall(b"x")
                            time.sleep(0.2)
                    else:
                        connection.sendall(head + chance.randbytes(50_000))
                        connection.recv(1000)
                count(f"bad client: {kind}")
            except OSError:
                count("bad client: cut off")
            time.sleep(0.5)

    threads = [threading.Thread(target=user, args=(number,)) for number in range(users)]
    threads += [threading.Thread(target=bad, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(service.memory())
        time.sleep(0.5)
    print(dict(counts), "MB:", [round(each / 1e6) for each in memory[:: max(1, len(memory) // 12)]])
    assert not [what for what in counts if what.startswith("lost")], counts
    statuses = {int(what.split()[1]) for what in counts if not what.startswith("bad")}
    assert statuses <= {200, 201, 429}, counts
    assert counts["masks 200"] > seconds / 5
    assert counts["masks 429"] < counts["masks 200"]
    assert not [line for line in service.lines if line["status"] >= 500 and line.get("code") != "not_ready"]
    if seconds >= 300:  # that long it takes until all that is kept is there
        assert memory[-1] - memory[len(memory) // 2] < GROWTH_BYTES
    assert memory[-1] - memory[0] < IMAGES * IMAGE_BYTES + TERMS_BYTES + 2 * GROWTH_BYTES
    assert service.get("/about")["model"]
    metrics = http.client.HTTPConnection(host, port, timeout=30)
    metrics.request("GET", "/metrics")
    text = metrics.getresponse().read().decode()
    assert "trt_sam_requests_under_way 1.0" in text  # this one
