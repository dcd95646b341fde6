"""Embedding files and prompt files that the tests of calibration feeds share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers import make_embedding

from trt_sam.imaging.embeddings import Embedding, save_embedding

SIZE = (480, 640)

ENCODER = "ab" * 32


def write(folder: Path, seeds: range = range(3), **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        fields: dict[str, Any] = {"original_size": SIZE, "file_name": f"photo{seed}.jpg", "encoder_sha256": ENCODER, **changes}
        save_embedding(folder / f"photo{seed}.npz", Embedding(make_embedding(seed), **fields))
    return folder


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": 7, "file_name": "val/photo0.jpg", "height": 480, "width": 640}, {"id": 9, "file_name": "photo2.png"}],
        "annotations": [
            {"image_id": 7, "bbox": [10, 20, 100, 50], "segmentation": [[1, 2]]},
            {"image_id": 7, "bbox": [0, 0, 640.4, 480.4], "iscrowd": 0},
            {"image_id": 7, "bbox": [5, 5, 9, 9], "iscrowd": 1},
            {"image_id": 9, "bbox": [5, 5, 0, 9]},
            {"image_id": 9, "bbox": [5, 5, 7, 9]},
        ],
        **changes,
    }
