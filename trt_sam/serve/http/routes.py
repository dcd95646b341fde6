"""The service's own addresses: images, masks, everything, health, metrics, the description, the page."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from trt_sam._version import __version__
from trt_sam.serve.call import Call
from trt_sam.serve.faults import Refusal
from trt_sam.serve.http.openapi import described
from trt_sam.serve.images import HeldImage
from trt_sam.serve.metrics import CONTENT_TYPE_LATEST
from trt_sam.serve.requests import everything_request, json_object, masks_request
from trt_sam.serve.service import Service

__all__ = ["endpoint", "routes_of"]

PAGE = Path(__file__).parents[1] / "page"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_TYPES |= {".jpg": "image/jpeg", ".png": "image/png"}

Handler = Callable[[Request, Call], Awaitable[Response]]
Result = TypeVar("Result")


def endpoint(path: str, handler: Handler, *methods: str) -> Route:
    """A route whose handler also gets the call."""

    async def answer(request: Request) -> Response:
        request.scope["route_pattern"] = path
        return await handler(request, request.state.call)

    return Route(path, answer, methods=list(methods or ("GET",)))


def routes_of(service: Service) -> list[Route]:
    """The routes of a service."""
    settings = service.settings

    async def asked(request: Request, call: Call) -> dict[str, Any]:
        body = await call.body(request, settings.prompt_bytes, settings.read_seconds)
        return json_object(body) if body.strip() else {}

    async def add_image(request: Request, call: Call) -> Response:
        data = await call.body(request, settings.body_bytes, settings.read_seconds)
        image = await service.add_image(call, request, data)
        answer = _about(image, settings.image_seconds)
        return _json(call, answer, 201, {"Location": f"/images/{image.id}"})

    async def image(request: Request, call: Call) -> Response:
        if request.method == "DELETE":
            service.images.drop(request.path_params["id"])
            return Response(status_code=204)
        return _json(call, _about(service.images.get(request.path_params["id"]), settings.image_seconds))

    async def masks(request: Request, call: Call) -> Response:
        image = service.images.get(request.path_params["id"])
        wanted = masks_request(await asked(request, call), image.size, settings)
        results = await service.masks(call, request, image, wanted)
        return _json(call, {"image": image.id, "results": results})

    async def everything(request: Request, call: Call) -> Response:
        image = service.images.get(request.path_params["id"])
        wanted = everything_request(await asked(request, call))
        found = await service.everything(call, request, image, wanted)
        return _json(call, {"image": image.id, "masks": found})

    async def metrics(request: Request, call: Call) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def about(request: Request, call: Call) -> Response:
        return _json(
            call,
            {
                "version": __version__,
                "model": service.model.name,
                "executed": service.model.executed,
                "takes_masks": service.model.takes_masks,
                "limits": {"points": settings.points, "boxes": settings.boxes, "pixels": settings.pixels},
            },
        )

    async def openapi(request: Request, call: Call) -> Response:
        return JSONResponse(described(settings))

    async def page(request: Request, call: Call) -> Response:
        return _file("index.html")

    async def page_file(request: Request, call: Call) -> Response:
        return _file(request.path_params["name"])

    return [
        endpoint("/", page),
        endpoint("/page/{name}", page_file),
        endpoint("/about", about),
        endpoint("/images", add_image, "POST"),
        endpoint("/images/{id}", image, "GET", "DELETE"),
        endpoint("/images/{id}/masks", masks, "POST"),
        endpoint("/images/{id}/everything", everything, "POST"),
        endpoint("/metrics", metrics),
        endpoint("/openapi.json", openapi),
    ]


def _about(image: HeldImage, seconds: int) -> dict[str, Any]:
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
    return {
        "id": image.id,
        "height": image.size[0],
        "width": image.size[1],
        "expires": expires,
        "expires_in_seconds": seconds,
    }


def _json(call: Call, answer: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    times = {stage: round(seconds * 1e3, 2) for stage, seconds in call.times.items()}
    times["total"] = round((time.perf_counter() - call.began) * 1e3, 2)
    # Unlike starlette's, without spaces: what is sent is mostly numbers.
    body = json.dumps({**answer, "times_ms": times}, separators=(",", ":"))
    return Response(body, status, headers, "application/json")


def _file(name: str) -> Response:
    """A file of the page; only those that are in its folder, by their whole name."""
    files = {path.name: path for path in PAGE.iterdir() if path.suffix in _TYPES}
    if name not in files:
        raise Refusal(404, "not_found", "no such file of the page")
    return FileResponse(files[name], media_type=_TYPES[files[name].suffix], headers={"cache-control": "no-cache"})
