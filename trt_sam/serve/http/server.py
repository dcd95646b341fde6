"""Running the application: uvicorn, with the edges that it leaves open to slow and endless clients closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from trt_sam.errors import InputError
from trt_sam.serve.http.edge import Edge
from trt_sam.serve.settings import ServeSettings

__all__ = ["check_port", "run_server", "server_of"]

_GARBAGE = json.dumps({"error": {"code": "bad_http", "message": "this is not HTTP", "request": ""}}).encode()


def run_server(
    app: Edge, settings: ServeSettings, host: str, port: int, listening: Callable[[str, int], None] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way.

    Args:
        app: of `create_app`.
        settings: those of the application.
        host: address to listen on.
        port: 0 takes a free one.
        listening: told address and port once the server listens.

    Raises:
        InputError: it cannot listen there.
    """
    server = server_of(app, settings, host, port)
    try:
        with _silent_uvicorn():
            sockets = [server.config.bind_socket()]
    except SystemExit:  # uvicorn's answer to a port that is taken
        raise _cannot_listen(host, port) from None
    if listening is not None:
        listening(*sockets[0].getsockname()[:2])
    # uvicorn raises the signal again after its graceful end, which is none if the process dies of it.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets)
    finally:
        signal.signal(signal.SIGTERM, before)


def check_port(host: str, port: int) -> None:
    """Raise InputError where nothing can listen there now; asked before minutes go into the model."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise _cannot_listen(host, port, error.strerror or str(error)) from None


def _cannot_listen(host: str, port: int, why: str = "") -> InputError:
    """The error for an address that is taken or not of this machine."""
    return InputError(f"cannot listen on {host} port {port}{f' ({why})' if why else ''}; take another --port or --host")


@contextlib.contextmanager
def _silent_uvicorn() -> Iterator[None]:
    logger = logging.getLogger("uvicorn.error")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def server_of(app: Edge, settings: ServeSettings, host: str, port: int) -> uvicorn.Server:
    """The server, not begun; port 0 takes a free one."""

    class Protocol(_Protocol):
        most_connections = settings.connections
        head_seconds = float(settings.read_seconds)

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=settings.answer_seconds,
    )
    return uvicorn.Server(config)


class _Protocol(H11Protocol):
    """uvicorn's, which waits for ever for the rest of a request's head, and takes any number of connections."""

    most_connections: int
    head_seconds: float
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # asyncio does so itself, but not for connections of a socket that uvicorn bound.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.most_connections:
            transport.close()
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(_GARBAGE)
        )
        # h11 may be past the point where it would send a response.
        self.transport.write(head + _GARBAGE)
        self.transport.close()

    def _watch_head(self) -> None:
        if not self._lacks_head():
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._close_headless)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _lacks_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_headless(self) -> None:
        if self._lacks_head() and not self.transport.is_closing():
            self.transport.close()
