"""Checkpoints by name: what they are called, where they lie, and getting them into the cache. No torch."""

from trt_sam.download.catalogue import CATALOGUE, DATA_FOLDER, STANDINS, KnownCheckpoint, nearest_names
from trt_sam.download.fetch import NoSourceError, cached_path, fetch
from trt_sam.download.identity import FOLDER_WEIGHTS, check_source, weights_sha256

__all__ = [
    "CATALOGUE",
    "DATA_FOLDER",
    "FOLDER_WEIGHTS",
    "STANDINS",
    "KnownCheckpoint",
    "NoSourceError",
    "cached_path",
    "check_source",
    "fetch",
    "nearest_names",
    "weights_sha256",
]
