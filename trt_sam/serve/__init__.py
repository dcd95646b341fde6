"""The service: masks over HTTP, a page to click on, KServe v2. `create_app` gives the ASGI application, `serve` runs it."""

from __future__ import annotations

from trt_sam.serve.app import create_app
from trt_sam.serve.model import Model
from trt_sam.serve.settings import ServeSettings

__all__ = ["Model", "ServeSettings", "create_app"]
