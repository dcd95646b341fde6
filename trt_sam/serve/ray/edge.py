"""`Edge`: the addresses of the deployment, which are those of `trt-sam serve`; keeps pictures, and passes clicks on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from trt_sam._lazy import require
from trt_sam.serve.budget import BodyBudget
from trt_sam.serve.faults import Refusal, bad_prompt, busy
from trt_sam.serve.pictures import picture_of
from trt_sam.serve.ray.pictures import PictureFolder
from trt_sam.serve.requests import json_object
from trt_sam.serve.settings import ServeSettings

__all__ = ["Edge"]

_READY_SECONDS = 5.0
_DECODED_AT_ONCE = 4
"""Pictures that are decoded at once, of up to 108 MB each."""

_log = logging.getLogger(__name__)


class Edge:
    """Holds nothing itself: any number of them may run."""

    def __init__(self, sam: Any, pictures: str) -> None:
        """Pass clicks on to the deployment `sam`."""
        self._sam, self._pictures, self._settings = sam, PictureFolder(pictures), ServeSettings()
        self._budget = BodyBudget(self._settings.bodies_bytes)
        self._decoding = asyncio.Semaphore(_DECODED_AT_ONCE)
        self._responses = require("starlette.responses", "to answer requests")
        self._back_pressure = require("ray.serve.exceptions", "to run a deployment").BackPressureError
        self._died = require("ray.exceptions", "to run a deployment").RayActorError

    async def __call__(self, request: Any) -> Any:
        """Answer a request of HTTP."""
        try:
            status, answer = 200, await self._answer(request)
        except self._back_pressure:
            status, answer = _refused(busy("requests", 1.0))
        except Refusal as refusal:
            status, answer = _refused(refusal)
        except Exception:
            _log.exception("a request failed")
            status, answer = 500, {"error": {"code": "internal", "message": "a fault of the service; its log has it"}}
        headers = {"Retry-After": "1"} if status == 429 else None
        return self._responses.Response(json.dumps(answer), status, headers, "application/json")

    async def _answer(self, request: Any) -> Mapping[str, Any]:
        parts = [part for part in request.url.path.split("/") if part]
        if request.method == "GET" and parts == ["v2", "health", "live"]:
            return {}
        if request.method == "GET" and parts == ["v2", "health", "ready"]:
            return await self._ready()
        if request.method == "POST" and parts == ["images"]:
            async with self._body(request, self._settings.body_bytes) as data:
                return await self._add(data)
        if request.method == "POST" and len(parts) == 3 and parts[0] == "images" and parts[2] == "masks":
            async with self._body(request, self._settings.prompt_bytes) as data:
                asked = json_object(data)
            return await self._pass_on("masks_on", parts[1], asked)
        raise Refusal(404, "not_found", "there are POST /images, POST /images/ID/masks and GET /v2/health/ready")

    async def _add(self, data: bytes) -> Mapping[str, Any]:
        async with self._decoding:
            height, width = await asyncio.to_thread(self._size, data)
        name = await asyncio.to_thread(self._pictures.put, data)
        await self._pass_on("embed", name)
        return {"id": name, "height": height, "width": width}

    def _size(self, data: bytes) -> tuple[int, int]:
        """Of a picture, which is decoded to see that it can be."""
        height, width, _ = picture_of(data, self._settings.pixels).shape
        return height, width

    async def _ready(self) -> Mapping[str, Any]:
        """Whether a replica answers, which it does once it was warmed up."""
        try:
            await asyncio.wait_for(self._sam.ready.remote(), _READY_SECONDS)
        except asyncio.TimeoutError:
            raise Refusal(503, "not_ready", "no replica answers; they are being started, or are all busy") from None
        return {}

    async def _pass_on(self, method: str, name: str, *args: Any) -> Mapping[str, Any]:
        # Ray sends it to a replica that says it holds `name`, where there is one that is not too busy.
        call = getattr(self._sam.options(multiplexed_model_id=name), method)
        answer: Mapping[str, Any]
        try:
            answer = await call.remote(name, *args)
        except self._died:  # a replica, with this request; another gives the same answer
            answer = await call.remote(name, *args)
        if "refused" in answer:
            raise Refusal(*answer["refused"])
        return answer

    @contextlib.asynccontextmanager
    async def _body(self, request: Any, most: int) -> AsyncIterator[bytes]:
        """The body, for as long as it is needed: what all of them hold together is bounded."""
        parts: list[bytes] = []
        held = 0
        try:
            async for part in request.stream():
                if held + len(part) > most:
                    raise Refusal(413, "body_too_large", f"the body has more than {most:,} bytes, the most that is taken")
                self._budget.take(len(part))
                held += len(part)
                parts.append(part)
            if not held:
                raise bad_prompt("the request has no body")
            yield b"".join(parts)
        finally:
            self._budget.give(held)


def _refused(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    return refusal.status, {"error": {"code": refusal.code, "message": str(refusal)}}
