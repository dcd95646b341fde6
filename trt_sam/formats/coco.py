"""COCO's and SA-1B's JSON: masks of one image or many as the data that other tools read, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from trt_sam._files import existing_file
from trt_sam.errors import InputError
from trt_sam.formats.polygons import polygons_of
from trt_sam.formats.records import Photo, Record, box_of_pixels, plain_records, runs_of

__all__ = ["coco_data", "load_coco", "sa1b_data"]

CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}


def sa1b_data(photo: Photo, records: Sequence[Record]) -> dict[str, Any]:
    """What a file of SA-1B holds of one image: `image`, and `annotations` with masks as compressed RLE."""
    height, width = photo.size
    image = {"image_id": photo.image_id, "width": width, "height": height, "file_name": photo.file_name}
    return {"image": image, "annotations": plain_records(photo, records)}


def coco_data(found: Iterable[tuple[Photo, Sequence[Record]]], *, polygons: bool = False) -> dict[str, Any]:
    """What COCO's instance files hold, of any number of images; one category, "object".

    Args:
        found: images and their records.
        polygons: masks as outlines along the edges of pixels, which pycocotools fills to the same pixels; else as RLE.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for photo, records in found:
        height, width = photo.size
        images.append({"id": photo.image_id, "file_name": photo.file_name, "height": height, "width": width})
        for record in records:
            runs = runs_of(record["segmentation"], photo.size)
            outlines = [ring.ravel().tolist() for ring in polygons_of(runs.mask())] if polygons else []
            # COCO has no polygon for a mask without pixels.
            segmentation = outlines or runs.compressed()
            scores = {name: record[name] for name in ("predicted_iou", "stability_score", "point_coords") if name in record}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": photo.image_id,
                    "category_id": CATEGORY["id"],
                    "segmentation": segmentation,
                    "area": runs.area,
                    "bbox": box_of_pixels(runs),
                    "iscrowd": 0,
                    **scores,
                }
            )
    return {"images": images, "annotations": annotations, "categories": [CATEGORY]}


def load_coco(path: str | os.PathLike[str]) -> list[tuple[Photo, list[dict[str, Any]]]]:
    """Read a file of COCO's instances or of SA-1B: each image with its annotations, `segmentation` as `Runs`.

    Raises:
        InputError: the file is missing, cut off or no such file, or a mask in it cannot be used; the message names it.
        MissingDependencyError: masks are polygons, and pycocotools is not installed.
    """
    path = existing_file(path, "annotations")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not whole JSON ({error}); get it again") from None
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise InputError(f"{path} has no list of annotations; it must be a file of COCO's instances or of SA-1B")
    images: list[Any] = data["images"] if isinstance(data.get("images"), list) else [data.get("image")]
    try:
        photos = [
            Photo(str(i["file_name"]), (int(i["height"]), int(i["width"])), i["id"] if "id" in i else i["image_id"])
            for i in images
        ]
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} has an image without {error}; each needs file_name, height, width and its id") from None
    found: dict[Any, list[dict[str, Any]]] = {photo.image_id: [] for photo in photos}
    by_id = {photo.image_id: photo for photo in photos}
    for number, annotation in enumerate(data["annotations"]):
        try:
            image_id = annotation["image_id"] if "images" in data else photos[0].image_id
            photo, segmentation = by_id[image_id], annotation["segmentation"]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: annotation {number} has no such image, or no {error}") from None
        try:
            found[image_id].append({**annotation, "segmentation": runs_of(segmentation, photo.size)})
        except InputError as error:
            raise InputError(f"{path}: annotation {number}: {error}") from None
    return [(photo, found[photo.image_id]) for photo in photos]
