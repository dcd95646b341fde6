"""`Edge`: around every request, whatever it is: who may ask, one line of log, one JSON error, numbers for Prometheus."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sys
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TextIO

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trt_sam.errors import ContractError, InputError
from trt_sam.serve.call import Call
from trt_sam.serve.faults import ClientGoneError, Refusal
from trt_sam.serve.service import Service
from trt_sam.serve.settings import is_loopback

__all__ = ["Edge"]

_log = logging.getLogger(__name__)

OPEN = ("/", "/v2/health/live", "/v2/health/ready", "/openapi.json")
"""What needs no token: nothing of a user is in it. So do the files of the page."""
OPEN_FOLDER = "/page/"
_CLIENT_GONE = 499
_DRAIN_BYTES, _DRAIN_SECONDS, _DRAIN_PAUSE_SECONDS = 64 << 20, 5.0, 0.5
"""Of a refused body: a client that is cut off while it sends would not see why."""
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
)


_BY_STATUS = {
    404: ("not_found", "no such address; /openapi.json has them all"),
    405: ("method_not_allowed", "this address does not take that method"),
}


class Edge:
    """ASGI application around the routes."""

    def __init__(self, app: ASGIApp, service: Service, log: TextIO | None = None) -> None:
        """Write the log's lines to `log`; None for stdout."""
        self._app, self._service, self._log_to = app, service, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(self._service.budget)
        scope["app"] = self  # makes starlette's router raise for what it does not know
        scope.setdefault("state", {})["call"] = call
        answer = _Answer(call, send, kserve=scope["path"].startswith("/v2/models"))
        metrics = self._service.metrics
        metrics.under_way.inc()
        status = 500
        try:
            try:
                self._check_who(scope)
                await self._app(scope, receive, answer.send)
                status = answer.status
            except (Refusal, HTTPException, InputError) as error:
                refusal = _as_refusal(error)
                status, call.code = refusal.status, refusal.code
                await self._refuse(answer, receive, refusal)
            except ClientGoneError:
                status, call.code = _CLIENT_GONE, "client_gone"
                metrics.clients_gone.inc()
            except Exception:
                call.code = "internal"
                _log.exception("request %s failed", call.id)
                await self._refuse(
                    answer, receive, Refusal(500, "internal", f"a fault of the service; its log has it as {call.id}")
                )
        finally:
            call.release()
            metrics.under_way.dec()
            if call.code:
                metrics.errors.labels(call.code).inc()
            for stage, seconds in call.times.items():
                metrics.stages.labels(stage).observe(seconds)
            took = time.perf_counter() - call.began
            route = _route(scope)
            # A method is the client's word, and every new one would be a new row of the table.
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
            metrics.requests.labels(route, method, str(status)).observe(took)
            self._write(scope, call, status, took, answer.bytes, route)

    def _check_who(self, scope: Scope) -> None:
        """Refuse who has no token; and without one, what a page of another site makes a browser ask."""
        headers, settings, path = Headers(scope=scope), self._service.settings, scope["path"]
        if settings.token:
            if path in OPEN or path.startswith(OPEN_FOLDER):
                return
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not secrets.compare_digest(given.encode(), settings.token.encode()):
                raise Refusal(401, "no_token", "send the service's token as Authorization: Bearer TOKEN")
            return
        host = _host_name(headers.get("host", ""))
        if not (is_loopback(host) or host in settings.hosts):
            raise Refusal(403, "wrong_host", "the Host header is not a name of this service")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and path not in OPEN:
            raise Refusal(403, "cross_site", "pages of other sites may not use this service")

    async def _refuse(self, answer: _Answer, receive: Receive, refusal: Refusal) -> None:
        if answer.started:  # too late for another answer: the connection breaks, and the client sees that it is not whole
            raise refusal
        error = {"code": refusal.code, "message": str(refusal), "request": answer.call.id}
        # KServe's errors are a text, and its clients show nothing else.
        body = json.dumps({"error": f"{refusal} ({refusal.code})" if answer.kserve else error}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if refusal.retry_seconds is not None:
            headers.append((b"retry-after", str(refusal.retry_seconds).encode()))
        if refusal.allow:
            headers.append((b"allow", refusal.allow.encode()))
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            headers.append((b"www-authenticate", b"Bearer"))
        cut = refusal.code in ("body_too_large", "too_slow")
        if cut:
            headers.append((b"connection", b"close"))
        await answer.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await answer.send({"type": "http.response.body", "body": body, "more_body": cut})
        if cut:
            if refusal.code == "body_too_large" and not answer.call.whole:
                await _drain(receive)
            await answer.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _write(self, scope: Scope, call: Call, status: int, took: float, bytes_out: int, route: str) -> None:
        client = scope.get("client") or ("", 0)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{int(time.time() * 1000) % 1000:03d}Z",
            "request": call.id,
            "client": client[0],
            "method": scope["method"][:20],
            "route": route,
            "status": status,
            **({"code": call.code} if call.code else {}),
            "ms": round(took * 1e3, 1),
            "stages_ms": {stage: round(seconds * 1e3, 1) for stage, seconds in call.times.items()},
            "bytes_in": call.bytes_in,
            "bytes_out": bytes_out,
        }
        print(json.dumps(line), file=self._log_to or sys.stdout, flush=True)


class _Answer:
    """What was sent of an answer; adds the headers that all have."""

    def __init__(self, call: Call, send: Send, *, kserve: bool) -> None:
        self.call, self._send, self.kserve = call, send, kserve
        self.status, self.bytes, self.started = 0, 0, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
            times = ", ".join(f"{stage};dur={seconds * 1e3:.1f}" for stage, seconds in self.call.times.items())
            given = {name for name, _ in message.get("headers", ())}
            added = [(name, value) for name, value in _HEADERS if name not in given]
            added += [(b"x-request-id", self.call.id.encode()), *([(b"server-timing", times.encode())] if times else [])]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        elif message["type"] == "http.response.body":
            self.bytes += len(message.get("body", b""))
        await self._send(message)


def _as_refusal(error: Refusal | HTTPException | InputError) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        code, message = _BY_STATUS.get(error.status_code, ("refused", HTTPStatus(error.status_code).phrase))
        allow = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))  # of a set, in any order
        return Refusal(error.status_code, code, message, allow=allow)
    if isinstance(error, ContractError):
        return Refusal(400, "bad_tensor", " ".join(str(error).split()))
    return Refusal(400, "bad_input", " ".join(str(error).split()))


def _route(scope: Mapping[str, Any]) -> str:
    """The pattern of the path, without ids: what is counted by it stays small, and no secret gets into the log."""
    route = scope.get("route_pattern")
    return str(route) if route else "unknown"


def _host_name(header: str) -> str:
    """Of a Host header, without the port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.rpartition(":")[0] or header if header.count(":") == 1 else header


async def _drain(receive: Receive) -> None:
    """Read on for a while, so that a client that sends first and listens then gets its answer."""
    began, count = time.perf_counter(), 0
    while count < _DRAIN_BYTES and time.perf_counter() - began < _DRAIN_SECONDS:
        try:
            message = await asyncio.wait_for(receive(), _DRAIN_PAUSE_SECONDS)
        except asyncio.TimeoutError:
            return
        count += len(message.get("body", b""))
        if not message.get("more_body", False):
            return
