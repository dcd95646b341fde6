"""labelme's JSON: masks as polygons that can be edited by hand, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from trt_sam._files import existing_file
from trt_sam.errors import InputError
from trt_sam.formats.polygons import polygons_of, runs_of_polygons
from trt_sam.formats.records import Photo, Record, runs_of

__all__ = ["labelme_data", "load_labelme"]

_VERSION = "5.5.0"


def labelme_data(photo: Photo, records: Sequence[Record], label: str = "object") -> dict[str, Any]:
    """What labelme saves of one image: polygons along the edges of pixels; those of one mask have the same `group_id`.

    Args:
        photo: `file_name` is where labelme finds the image, from the folder of its JSON.
        records: of the masks; a `label` of theirs comes before `label`.
        label: the name of all others.
    """
    shapes = [
        {
            "label": str(record.get("label", label)),
            "points": ring.tolist(),
            "group_id": number,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for number, record in enumerate(records, 1)
        for ring in polygons_of(runs_of(record["segmentation"], photo.size).mask())
    ]
    return {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": photo.file_name,
        "imageData": None,
        "imageHeight": photo.size[0],
        "imageWidth": photo.size[1],
    }


def load_labelme(path: str | os.PathLike[str]) -> tuple[Photo, list[dict[str, Any]]]:
    """Read a file of labelme: the image, and a record with `segmentation` (`Runs`) and `label` for each mask.

    Polygons of one `group_id` are one mask; shapes of other types are left out.

    Raises:
        InputError: the file is missing, cut off or not labelme's, or a polygon has fewer than three points.
        MissingDependencyError: pycocotools is not installed.
    """
    path = existing_file(path, "annotations")
    try:
        data = json.loads(path.read_bytes())
        photo = Photo(str(data["imagePath"]), (int(data["imageHeight"]), int(data["imageWidth"])))
        shapes = [(s["label"], s.get("group_id"), s["points"]) for s in data["shapes"] if s["shape_type"] == "polygon"]
        groups: dict[Any, list[Any]] = {("group", group): [] for _, group, _ in shapes if group is not None}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is not a whole file of labelme ({type(error).__name__}: {error}); save it again") from None
    for number, (label, group, points) in enumerate(shapes):
        groups.setdefault(("shape", number) if group is None else ("group", group), []).append((label, points))
    records = []
    for members in groups.values():
        try:
            flat = [[value for point in points for value in point] for _, points in members]
            records.append({"segmentation": runs_of_polygons(flat, photo.size), "label": members[0][0]})
        except (InputError, TypeError) as error:
            raise InputError(f"{path}: {members[0][0]}: {error}") from None
    return photo, records
