"""Checkpoints by name: what they are called, where they lie, and getting them into the cache. No torch."""

from trt_sam.download.catalogue import CATALOGUE, KnownCheckpoint, nearest_names
from trt_sam.download.fetch import NoSourceError, cached_path, fetch

__all__ = ["CATALOGUE", "KnownCheckpoint", "NoSourceError", "cached_path", "fetch", "nearest_names"]
