"""The service behind real sockets: clients that are slow, endless, gone or no clients at all, and the end."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import threading
import time

import httpx2 as httpx

from tests.fixtures.served import DiscRunner, listening, picture, until

CLICK = {"points": [[10, 10]], "labels": [1]}


def exchanged(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What the server answers until it closes, to parts that are sent with pauses between."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while found := connection.recv(65536):
                answer += found
        except ConnectionError:
            pass
    return answer


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_clients_that_behave_badly_leave_it_as_it_was() -> None:
    post = b"POST /images HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with listening(read_seconds=1, body_bytes=1 << 20) as (service, port):
        assert error_of(exchanged(port, b"\x16\x03\x01 this is not HTTP\r\n\r\n")) == (400, "bad_http")
        # Two gigabytes are announced: refused at once.
        assert error_of(exchanged(port, post % (2 << 30), b"x" * 70_000)) == (413, "body_too_large")
        # Two gigabytes come, nothing announced, and the client listens only when it has sent 30 MB of them.
        chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
        head = b"POST /images HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert error_of(exchanged(port, head, *[chunk] * 30, b"0\r\n\r\n")) == (413, "body_too_large")
        began = time.monotonic()
        assert error_of(exchanged(port, post % 1000, b"x", pause=0.1)) == (408, "too_slow")
        # Half a head, and half a second one after an answer: the connection is closed.
        assert exchanged(port, b"POST /images HT") == b""
        assert (
            exchanged(port, b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET", pause=0.1).count(b"200 OK") == 1
        )
        assert time.monotonic() - began < 12
        # Half a body, and gone.
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(post % 1000 + b"half")
        until(lambda: any(line["status"] == 499 for line in service.lines()))
        assert service.app._service.budget.held == 0
        assert httpx.post(f"http://127.0.0.1:{port}/images", content=picture()).status_code == 201


def test_answers_are_not_held_back() -> None:
    """Head and body of an answer are two packets: the second must not wait for the client to confirm the first, 40 ms."""
    with listening() as (service, port), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert service.server is not None
        (protocol,) = service.server.server_state.connections
        accepted = protocol.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_a_full_queue_says_when_to_come_again_and_who_left_makes_room() -> None:
    runner = DiscRunner()
    with listening(runner, waiting_clicks=2) as (service, port):
        base = f"http://127.0.0.1:{port}"
        until(lambda: httpx.get(f"{base}/v2/health/ready").status_code == 200)
        image = httpx.post(f"{base}/images", content=picture()).json()["id"]
        runner.feeds.clear()
        runner.entered.clear()
        runner.hold.clear()

        def click(timeout: float = 20.0) -> httpx.Response:
            return httpx.post(f"{base}/images/{image}/masks", json=CLICK, timeout=timeout)

        worker = service.app._service.worker
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            first = pool.submit(click)
            assert runner.entered.wait(5)
            leaving = pool.submit(click, 0.5)
            staying = pool.submit(click)
            until(lambda: worker.waiting("clicks") == 2)
            refused = click()
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
            assert int(refused.headers["retry-after"]) >= 1
            assert isinstance(leaving.exception(5), httpx.TimeoutException)
            until(lambda: any(line["status"] == 499 for line in service.lines()))
            late = pool.submit(click)
            time.sleep(0.2)
            runner.hold.set()
            assert [each.result(10).status_code for each in (first, staying, late)] == [200] * 3
        # Three were decoded: for the one who left nothing was.
        assert len(runner.feeds) == 3


def test_the_end_waits_for_what_is_under_way() -> None:
    runner, answers = DiscRunner(), list[int]()
    with listening(runner) as (service, port):
        base = f"http://127.0.0.1:{port}"
        until(lambda: httpx.get(f"{base}/v2/health/ready").status_code == 200)
        image = httpx.post(f"{base}/images", content=picture()).json()["id"]
        runner.entered.clear()
        runner.hold.clear()
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{base}/images/{image}/masks", json=CLICK, timeout=20).status_code)
        )
        asking.start()
        assert runner.entered.wait(5)
        threading.Timer(0.5, runner.hold.set).start()
    asking.join(5)
    assert answers == [200]
    assert runner.closed
    assert service.lines()[-1]["status"] == 200


def test_a_picture_embedded_for_nobody_is_forgotten() -> None:
    gate = threading.Event()

    class Slow(DiscRunner):
        def add_image(self, rgb):  # type: ignore[no-untyped-def]
            if rgb.shape[0] != rgb.shape[1]:
                gate.wait(10)
            return super().add_image(rgb)

    with listening(Slow()) as (service, port):
        base = f"http://127.0.0.1:{port}"
        until(lambda: httpx.get(f"{base}/v2/health/ready").status_code == 200)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            left = pool.submit(httpx.post, f"{base}/images", content=picture((30, 40)), timeout=0.5)
            assert isinstance(left.exception(5), httpx.TimeoutException)
        until(lambda: any(line["status"] == 499 for line in service.lines()))
        gate.set()
        until(lambda: not service.runner.images and service.app._service.worker.waiting("images") == 0)
        assert len(service.app._service.images) == 0
