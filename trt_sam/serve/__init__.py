"""The service: masks over HTTP, a page to click on, KServe v2. `create_app` gives the ASGI application, `serve` runs it.

`trt_sam.serve.triton` writes a model repository for Triton, `trt_sam.serve.ray` is a deployment of Ray Serve. Neither needs
what the service does, so public names come in when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers know of the names below
    from trt_sam.serve.app import create_app as create_app
    from trt_sam.serve.model import Model as Model
    from trt_sam.serve.settings import ServeSettings as ServeSettings

_HOMES = {"Model": "trt_sam.serve.model", "ServeSettings": "trt_sam.serve.settings", "create_app": "trt_sam.serve.app"}

__all__ = ["Model", "ServeSettings", "create_app"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
