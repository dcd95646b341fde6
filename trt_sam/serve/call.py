"""`Call`: one request under way, with its body, its times, and whether its client still waits."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from starlette.requests import Request

from trt_sam.serve.budget import BodyBudget
from trt_sam.serve.faults import ClientGoneError, Refusal, busy
from trt_sam.serve.worker import Done

__all__ = ["Call"]

Result = TypeVar("Result")


class Call:
    """One request; `Edge` makes it, and logs what it holds at the end."""

    def __init__(self, budget: BodyBudget) -> None:
        self.id = secrets.token_hex(6)
        self.began = time.perf_counter()
        self.times: dict[str, float] = {}
        """Seconds by stage."""
        self.code = ""
        """Of the refusal."""
        self.bytes_in = 0
        self.whole = False
        """Whether the end of the body has come."""
        self._budget = budget

    def took(self, stage: str, seconds: float) -> None:
        """Note the time of a stage, which may come in several parts."""
        self.times[stage] = self.times.get(stage, 0.0) + seconds

    def release(self) -> None:
        """Give the bytes of the body back."""
        self._budget.give(self.bytes_in)

    async def body(self, request: Request, most: int, seconds: float) -> bytes:
        """The request's body.

        Raises:
            Refusal: more than `most` bytes (413), not whole after `seconds` (408), or too much is being received (429).
            ClientGoneError: it will not come.
        """
        began = time.perf_counter()
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said[:20]) > most:
            raise _body_too_large(most)
        try:
            whole = await asyncio.wait_for(self._received(request, most), seconds)
        except asyncio.TimeoutError:
            raise Refusal(408, "too_slow", f"the request had not arrived after {seconds} s; send it faster") from None
        self.took("read", time.perf_counter() - began)
        return whole

    async def _received(self, request: Request, most: int) -> bytes:
        parts: list[bytes] = []
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            more = message.get("more_body", False)
            self.whole = not more
            part = message.get("body", b"")
            if self.bytes_in + len(part) > most:
                raise _body_too_large(most)
            self._budget.take(len(part))
            self.bytes_in += len(part)
            parts.append(part)
        return b"".join(parts)

    async def finished(self, request: Request, future: Future[Done[Result]], stage: str, seconds: float) -> Result:
        """Wait for the runner's work, as long as the client does: for `seconds`, and once more where it has begun by then.

        Raises:
            Refusal: it did not begin in that time (429), or was not done (503).
            ClientGoneError: the client has gone; the work is taken out of the queue.
        """
        try:
            done = await self.waited(request, asyncio.wrap_future(future), seconds)
        except Refusal as refusal:
            if refusal.code != "no_answer":
                raise
            if future.cancel():  # it never began: the queue was too slow, not the model
                raise busy("requests", seconds / 4) from None
            done = await self.waited(request, asyncio.wrap_future(future), seconds)
        self.took("queue", done.waited)
        self.took(stage, done.took)
        return done.value

    async def waited(self, request: Request, work: Awaitable[Result], seconds: float) -> Result:
        """`work`, as long as the client waits and `seconds` are not over; errors as `finished`."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientGoneError
            raise Refusal(503, "no_answer", f"the model had not answered after {seconds} s; try again", retry_seconds=5)
        finally:
            gone.cancel()
            task.cancel()

    async def timed(self, stage: str, run: Callable[..., Awaitable[Result]], *args: Any) -> Result:
        """`await run(*args)`, noted as `stage`."""
        began = time.perf_counter()
        try:
            return await run(*args)
        finally:
            self.took(stage, time.perf_counter() - began)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _body_too_large(most: int) -> Refusal:
    return Refusal(413, "body_too_large", f"the body has more than {most:,} bytes, the most that is taken")
