"""Prompts as people give them, drawn with a seed where nobody knows the objects: FP32's own masks say where they are.

Boxes drawn anywhere ask for what is not there: SAM has no stable answer to them, and even float16 differs from float32 then.
Here a click falls anywhere in the picture, and everything else starts from the mask that the float32 decoder gives for such
a click. numpy alone; the decoder is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.contract import FRAME_SIZE, LABEL_ABSENT, LABEL_BOX_END, LABEL_BOX_START, LABEL_NOT_A_POINT, LOW_RES_SIZE
from trt_sam.imaging.photos import frame_shape

__all__ = [
    "CALIBRATION",
    "GRID",
    "JITTER",
    "PATTERN",
    "Decode",
    "DrawnPrompt",
    "draw_realistic",
    "pattern",
    "picture_part",
    "shares",
]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Decode = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Float32's decoder: `Runner.run` of one that gives four masks."""

PATTERN = (
    *("click", "box", "clicks", "refinement", "click", "box", "click", "clicks"),
    *("box", "grid", "click", "refinement", "box", "clicks", "padded", "grid"),
)
"""Kinds in turn; each image begins at another place. Of sixteen prompts four are one click, four are boxes, three are several
clicks, two refine an earlier mask, two are places of the automatic grid, and one is a click with absent points behind it, as a
row of a batch has where another row is longer. Without earlier masks a refinement is several clicks."""

CALIBRATION = (
    *("click", "refinement", "box", "refinement", "clicks", "refinement", "grid", "refinement"),
    *("box", "refinement", "click", "refinement", "clicks", "box", "padded", "click"),
)
"""The same for ranges, where a graph takes earlier masks: six of sixteen refine one. Their values reach farthest, and they lose
most where a range does not cover them (benchmarks/results/int8_tried.md)."""

JITTER = 0.03
"""How far each side of a box is moved, at most: a share of its width or height."""
GRID = 32
"""Places of the automatic grid on each side of the picture, as in SAM's automatic mask generator."""

_STEP = FRAME_SIZE // LOW_RES_SIZE
_SMALLEST = 8
"""Pixels of the 256 x 256 mask that a click must give to be an object; else another click is drawn."""
_TRIES = 4
_AT_ONCE = 8
_MOST_ABSENT = 3
_MOST_CLICKS = 3
_OUTSIDE = 0.25
"""Share of the refining clicks that take something away."""


@dataclass(frozen=True)
class DrawnPrompt:
    """One prompt as the decoder gets it."""

    kind: str
    """One of PATTERN, "file" for the user's own, or "random"."""
    coords: FloatArray = field(repr=False)
    """float32 [num_points, 2], (x, y) in the 1024 frame."""
    labels: FloatArray = field(repr=False)
    """float32 [num_points]."""
    mask: npt.NDArray[np.float16] | None = field(repr=False, default=None)
    """float16 [256, 256], logits of an earlier call, for a refinement; half the memory, and precise enough for a prompt."""


def pattern(*, earlier_masks: bool) -> tuple[str, ...]:
    """PATTERN for a graph that takes earlier masks, or for one that does not."""
    return tuple("clicks" if kind == "refinement" and not earlier_masks else kind for kind in PATTERN)


def shares(kinds: Sequence[str]) -> dict[str, float]:
    """Share of each kind of prompt, for reports: adds up to 1."""
    return {kind: kinds.count(kind) / len(kinds) for kind in sorted(set(kinds))}


def picture_part(original_size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a 256 x 256 mask that show the picture (height, width), and not the padding below or beside it."""
    rows, columns = (-(-side // _STEP) for side in frame_shape(*original_size))
    return slice(0, rows), slice(0, columns)


def draw_realistic(
    rng: np.random.Generator,
    embedding: FloatArray,
    original_size: tuple[int, int],
    count: int,
    decode: Decode,
    *,
    earlier_masks: bool = False,
    order: Sequence[str] | None = None,
) -> tuple[DrawnPrompt, ...]:
    """Draw `count` prompts on one image.

    Args:
        rng: seeded; the result depends on it, on the image and on the decoder's masks.
        embedding: float32 [1, 256, 64, 64].
        original_size: (height, width) of the photo.
        count: of prompts.
        decode: the float32 decoder; asked for one click each of the boxes, further clicks and refinements.
        earlier_masks: whether refinements are wanted.
        order: kinds in turn, such as CALIBRATION; None for those of `pattern`.
    """
    order = order or pattern(earlier_masks=earlier_masks)
    start = int(rng.integers(len(order)))
    kinds = [order[(start + i) % len(order)] for i in range(count)]
    scene = _Scene(rng, embedding, original_size, decode)
    objects = iter(scene.objects(sum(kind in _ON_OBJECT for kind in kinds)))
    return tuple(_ON_OBJECT[kind](scene, next(objects)) if kind in _ON_OBJECT else _ALONE[kind](scene) for kind in kinds)


@dataclass(frozen=True)
class _Object:
    """What float32 segments at a click."""

    click: FloatArray
    """float32 [2] in the frame."""
    logits: FloatArray = field(repr=False)
    """float32 [256, 256]."""
    inside: npt.NDArray[np.bool_] = field(repr=False)
    """bool [rows, columns] of the picture's part."""


class _Scene:
    def __init__(self, rng: np.random.Generator, embedding: FloatArray, original_size: tuple[int, int], decode: Decode) -> None:
        self.rng, self._embedding, self._decode = rng, embedding, decode
        self.height, self.width = frame_shape(*original_size)
        self._part = picture_part(original_size)

    def place(self) -> FloatArray:
        return self.rng.uniform((0, 0), (self.width, self.height)).astype(np.float32)

    def objects(self, count: int) -> list[_Object]:
        """What float32 segments at `count` clicks; a click that gives next to nothing is drawn anew, a few times."""
        found: list[_Object | None] = [None] * count
        for attempt in range(_TRIES):
            missing = [place for place, each in enumerate(found) if each is None]
            for start in range(0, len(missing), _AT_ONCE):
                places = missing[start : start + _AT_ONCE]
                for place, each in zip(places, self._segment([self.place() for _ in places]), strict=True):
                    if each.inside.sum() >= _SMALLEST or attempt == _TRIES - 1:
                        found[place] = each
        return [each for each in found if each is not None]

    def pixel(self, where: npt.NDArray[np.bool_]) -> FloatArray:
        """The middle of a random pixel of `where`, in the frame; any place where there is none."""
        rows, columns = np.nonzero(where)
        if not len(rows):
            return self.place()
        chosen = int(self.rng.integers(len(rows)))
        x, y = (columns[chosen] + 0.5) * _STEP, (rows[chosen] + 0.5) * _STEP
        return np.array([min(x, self.width), min(y, self.height)], np.float32)

    def _segment(self, clicks: Sequence[FloatArray]) -> list[_Object]:
        coords = np.stack([np.stack([click, np.zeros(2, np.float32)]) for click in clicks])
        labels = np.tile(np.array([1, LABEL_NOT_A_POINT], np.float32), (len(clicks), 1))
        feed = {
            "image_embeddings": self._embedding,
            "point_coords": coords,
            "point_labels": labels,
            "mask_input": np.zeros((len(clicks), 1, LOW_RES_SIZE, LOW_RES_SIZE), np.float32),
            "has_mask_input": np.zeros(len(clicks), np.float32),
        }
        outputs = self._decode(feed)
        # SAM's rule for two points: the best of masks 1 to 3.
        best = 1 + outputs["iou_predictions"][:, 1:].argmax(axis=1)
        chosen = outputs["low_res_masks"][np.arange(len(clicks)), best]
        return [_Object(click, mask, mask[self._part] > 0) for click, mask in zip(clicks, chosen, strict=True)]


def _click(scene: _Scene, kind: str = "click") -> DrawnPrompt:
    return _clicked(kind, [scene.place()], [1])


def _grid(scene: _Scene) -> DrawnPrompt:
    place = (scene.rng.integers(GRID, size=2) + 0.5) / GRID * (scene.width, scene.height)
    return _clicked("grid", [place.astype(np.float32)], [1])


def _padded(scene: _Scene) -> DrawnPrompt:
    drawn = _click(scene)
    absent = int(scene.rng.integers(1, _MOST_ABSENT + 1))
    coords = np.concatenate([drawn.coords, np.zeros((absent, 2), np.float32)])
    return DrawnPrompt("padded", coords, np.concatenate([drawn.labels, np.full(absent, LABEL_ABSENT, np.float32)]))


def _box(scene: _Scene, found: _Object) -> DrawnPrompt:
    rows, columns = np.nonzero(found.inside)
    if not len(rows):
        rows, columns = (np.array([place // _STEP]) for place in found.click[::-1])
    low = np.array([columns.min(), rows.min()]) * float(_STEP)
    high = np.array([columns.max() + 1, rows.max() + 1]) * float(_STEP)
    corners = np.stack([low, high]) + scene.rng.uniform(-JITTER, JITTER, (2, 2)) * (high - low)
    corners = np.clip(corners, 0, (scene.width, scene.height))
    return DrawnPrompt("box", corners.astype(np.float32), np.array([LABEL_BOX_START, LABEL_BOX_END], np.float32))


def _clicks(scene: _Scene, found: _Object) -> DrawnPrompt:
    more = [scene.pixel(found.inside) for _ in range(int(scene.rng.integers(1, _MOST_CLICKS + 1)))]
    return _clicked("clicks", [found.click, *more], [1] * (1 + len(more)))


def _refinement(scene: _Scene, found: _Object) -> DrawnPrompt:
    taken_away = bool(scene.rng.random() < _OUTSIDE)
    # What is taken away lies in the mask, at its rim as often as not: a person clicks what is too much.
    second = scene.pixel(found.inside)
    drawn = _clicked("refinement", [found.click, second], [1, 0 if taken_away else 1])
    limit = np.finfo(np.float16).max
    return DrawnPrompt(drawn.kind, drawn.coords, drawn.labels, np.clip(found.logits, -limit, limit).astype(np.float16))


def _clicked(kind: str, places: Sequence[FloatArray], labels: Sequence[int]) -> DrawnPrompt:
    coords = np.stack([*places, np.zeros(2, np.float32)])
    return DrawnPrompt(kind, coords, np.array([*labels, LABEL_NOT_A_POINT], np.float32))


_ALONE: Mapping[str, Callable[[_Scene], DrawnPrompt]] = {"click": _click, "grid": _grid, "padded": _padded}
_ON_OBJECT: Mapping[str, Callable[[_Scene, _Object], DrawnPrompt]] = {
    "box": _box,
    "clicks": _clicks,
    "refinement": _refinement,
}
