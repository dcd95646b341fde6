"""The user's own prompts: a JSON file of ours, or COCO annotations, whose boxes become box prompts. No numpy.

Ours, in pixels of the original image:

    {"images": {"cat.jpg": [{"points": [[420, 300], [90, 50]], "labels": [1, 0]},
                            {"box": [80, 40, 600, 420]},
                            {"points": [[90, 50]], "labels": [0], "box": [80, 40, 600, 420]}]}}

COCO's: "images" (id, file_name, perhaps width and height) and "annotations" (image_id, bbox as x, y, width, height). Crowds and
boxes without an area are passed over.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from trt_sam._files import existing_file
from trt_sam.errors import InputError, first_line

__all__ = ["FilePrompt", "PromptFile", "parse_prompts", "read_prompts"]

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class FilePrompt:
    """One prompt, in pixels of the original image; finite, but not yet known to lie inside."""

    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    """1 on the object, 0 off it; one per point."""
    box: Box | None = None
    """(x0, y0, x1, y1)."""
    where: str = field(default="a prompt", compare=False)
    """Its place in the file, for messages."""


@dataclass(frozen=True)
class PromptFile:
    """Prompts by image name."""

    prompts: Mapping[str, tuple[FilePrompt, ...]]
    sizes: Mapping[str, tuple[int, int]]
    """(height, width), where the file says them."""
    source: str = field(default="", compare=False)
    """The file, for messages."""

    def find(self, *names: str) -> str | None:
        """The image of the file that one of `names` means: by its whole name, else by its name without folder and suffix."""
        for name in names:
            if name in self.prompts:
                return name
        stems = {PurePosixPath(name).stem for name in names}
        found = [known for known in self.prompts if PurePosixPath(known).stem in stems]
        return found[0] if len(found) == 1 else None


def read_prompts(path: str | os.PathLike[str]) -> PromptFile:
    """Read a prompt file of either kind.

    Raises:
        InputError: missing or empty, not JSON, neither kind, or a prompt that cannot be one.
    """
    path = existing_file(path, "prompt file")
    try:
        return replace(parse_prompts(path.read_bytes()), source=str(path))
    except InputError as error:
        raise InputError(f"prompt file {path}: {error}") from None


def parse_prompts(data: bytes) -> PromptFile:
    """As `read_prompts`, from the file's bytes."""
    try:
        content = json.loads(data)
    # ValueError: not JSON, not Unicode, or a number of more digits than Python takes.
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON ({first_line(error)})") from None
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list):
        return _parse_coco(images, content.get("annotations"))
    if not isinstance(images, dict):
        raise InputError('it must be {"images": {"photo.jpg": [{"box": [x0, y0, x1, y1]}, ...]}}, or COCO annotations')
    if len(content) > 1:
        other = next(key for key in content if key != "images")
        raise InputError(f'unknown key {_shown(other)} beside "images"')
    prompts = {name: _parse_image(f"image {_shown(name)}", rows) for name, rows in images.items()}
    if not any(prompts.values()):
        raise InputError("it holds no prompt; give at least one")
    return PromptFile(prompts, {})


def _parse_image(where: str, rows: Any) -> tuple[FilePrompt, ...]:
    if not isinstance(rows, list):
        raise InputError(f"{where} is {_shown(rows)}, must be a list of prompts")
    return tuple(_parse_prompt(f"{where}, prompt {number}", row) for number, row in enumerate(rows, start=1))


def _parse_prompt(where: str, row: Any) -> FilePrompt:
    if not isinstance(row, dict) or not row:
        raise InputError(f"{where} is {_shown(row)}, must have points and labels, a box, or both")
    for key in row:
        if key not in ("points", "labels", "box"):
            raise InputError(f"{where} has the unknown key {_shown(key)}; allowed are points, labels and box")
    points, labels = row.get("points", []), row.get("labels", [])
    if not isinstance(points, list) or not isinstance(labels, list) or len(points) != len(labels):
        raise InputError(f"{where} must have a list of points and as many labels, 1 on the object or 0 off it")
    for label in labels:
        if isinstance(label, bool) or label not in (0, 1):
            raise InputError(f"{where} has the label {_shown(label)}, must be 1 on the object or 0 off it")
    if not points and "box" not in row:
        raise InputError(f"{where} has neither a point nor a box")
    found = tuple(_numbers(where, "point", point, "[x, y]") for point in points)
    box = _numbers(where, "box", row["box"], "[x0, y0, x1, y1]") if "box" in row else None
    if box is not None and not (box[0] < box[2] and box[1] < box[3]):
        raise InputError(f"{where} has the box {list(box)}, which is empty: x1 must be above x0, and y1 above y0")
    corners = None if box is None else (box[0], box[1], box[2], box[3])
    return FilePrompt(tuple((x, y) for x, y in found), tuple(map(int, labels)), corners, where)


def _parse_coco(images: list[Any], annotations: Any) -> PromptFile:
    if not isinstance(annotations, list):
        raise InputError('it looks like COCO, but its "annotations" are no list')
    names: dict[int | str, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for number, image in enumerate(images, start=1):
        where = f"COCO image {number}"
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or not name:
            raise InputError(f"{where} has no file_name")
        key = _coco_id(where, image.get("id"))
        if key in names:
            raise InputError(f"{where} has the id {_shown(key)} of another image")
        names[key] = name
        size = (image.get("height"), image.get("width"))
        if all(isinstance(side, int) and not isinstance(side, bool) and 0 < side < 1 << 31 for side in size):
            sizes[name] = size
        elif size != (None, None):
            raise InputError(f"{where} is {_shown(size[1])} by {_shown(size[0])}, must have a width and a height in pixels")
    prompts: dict[str, list[FilePrompt]] = {name: [] for name in names.values()}
    for number, annotation in enumerate(annotations, start=1):
        where = f"COCO annotation {number}"
        if not isinstance(annotation, dict):
            raise InputError(f"{where} is {_shown(annotation)}, must be an object")
        key = _coco_id(where, annotation.get("image_id"))
        if key not in names:
            raise InputError(f"{where} is of image {_shown(key)}, which is not among the images")
        x, y, width, height = _numbers(where, "bbox", annotation.get("bbox"), "[x, y, width, height]")
        if width < 0 or height < 0:
            raise InputError(f"{where} has the bbox {[x, y, width, height]}; its width and height must not be negative")
        if width > 0 and height > 0 and not annotation.get("iscrowd"):
            of = f"{where} (of {_shown(names[key])})"
            prompts[names[key]].append(FilePrompt(box=(x, y, x + width, y + height), where=of))
    if not any(prompts.values()):
        raise InputError("its annotations hold no box of a single object; give at least one")
    return PromptFile({name: tuple(rows) for name, rows in prompts.items()}, sizes)


def _coco_id(where: str, value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"{where} has the image id {_shown(value)}, must be a number or a string")
    return value


def _numbers(where: str, what: str, value: Any, form: str) -> tuple[float, ...]:
    """A list of finite numbers, as many as `form` has."""
    count = form.count(",") + 1
    try:
        if isinstance(value, list) and len(value) == count and all(type(each) in (int, float) for each in value):
            numbers = tuple(map(float, value))
            # A sum that overflows would be infinite later.
            if all(math.isfinite(each) and abs(each) < 1e9 for each in numbers):
                return numbers
    except OverflowError:
        pass
    raise InputError(f"{where} has the {what} {_shown(value)}, must be {form}: numbers in pixels of the original image")


def _shown(value: Any) -> str:
    """A value of the file, at most 40 characters of it, on one line."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = "a value too large to show"
    return text if len(text) <= 40 else f"{text[:40]}..."
