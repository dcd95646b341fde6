"""A deployment of Ray Serve: `serve run trt_sam.serve.ray:app set=DIR pictures=DIR`; docs/ray_serve.yaml is for a cluster."""

from __future__ import annotations

from trt_sam.serve.ray.application import app

__all__ = ["app"]
