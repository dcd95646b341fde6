"""`create_app`: the ASGI application of a model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, TextIO

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router

from trt_sam.serve.call import Call
from trt_sam.serve.faults import Refusal
from trt_sam.serve.http.edge import Edge
from trt_sam.serve.http.routes import endpoint, routes_of
from trt_sam.serve.kserve.routes import kserve_routes
from trt_sam.serve.model import Model
from trt_sam.serve.service import Service
from trt_sam.serve.settings import ServeSettings

__all__ = ["create_app"]


def create_app(model: Model, settings: ServeSettings | None = None, *, log: TextIO | None = None) -> Edge:
    """The application that serves `model` and closes it at the end of its lifespan.

    Args:
        model: a runner with its image encoder.
        settings: bounds, and who may ask.
        log: where each request's line goes; None for stdout.
    """
    service = Service(model, settings or ServeSettings())

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with service.running():
            yield

    async def live(request: Request, call: Call) -> Response:
        return Response()

    async def ready(request: Request, call: Call) -> Response:
        if not service.ready:
            raise Refusal(503, "not_ready", "the model is being warmed up", retry_seconds=2)
        return Response()

    health = [endpoint("/v2/health/live", live), endpoint("/v2/health/ready", ready)]
    router = Router([*routes_of(service), *health, *kserve_routes(service)], redirect_slashes=False, lifespan=lifespan)
    return Edge(router, service, log)
