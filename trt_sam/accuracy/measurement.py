"""How far variants of one decoder are from its FP32 reference, prompt by prompt. numpy and the runners alone.

All variants see the same prompts. Masks are those of the decoder's own resolution, 256 x 256 logits cut at 0, and of them the
part that shows the picture, not the padding below or beside it; and at the photo's size, as a user receives them. The headline
figure follows the reference's choice: the mask that SAM's rule selects by the FP32 scores, against the variant's mask of the
same index, so that it tells of the mask alone; what the variant itself would have selected is reported beside it.

Memory does not grow with the prompts: the reference's masks of a block of prompts are held while the variants run on that
block one after another, each opened and closed again; of every prompt only numbers stay, and the worst masks.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.accuracy.examples import Example, PromptedImage
from trt_sam.accuracy.metrics import boundary_iou, kendall_tau, mask_iou, powers, selection_scores
from trt_sam.accuracy.summary import Columns
from trt_sam.contract import LOW_RES_SIZE
from trt_sam.errors import InputError
from trt_sam.feeds.realistic import picture_part
from trt_sam.imaging.resize import postprocess_masks
from trt_sam.runtime.interface import Runner

__all__ = [
    "BLOCK",
    "SIZES",
    "Measurement",
    "Variant",
    "WorstMask",
    "measure",
]

Array = npt.NDArray[Any]

BLOCK = 128

SIZES: Mapping[str, tuple[float, float]] = {"small": (0.0, 0.005), "medium": (0.005, 0.05), "large": (0.05, 2.0)}
"""Mask sizes: from and below which share of the picture, by the mask that FP32 selects."""
_FULL = 1024
"""Long side of the masks at full size, at most: beyond it only the resampling is seen."""


@dataclass(frozen=True)
class Variant:
    """A decoder to be judged."""

    name: str
    open: Callable[[], Runner] = field(repr=False)
    """Opens it; called once per block, and what it gives is closed after the block."""
    description: str = ""


@dataclass(frozen=True)
class WorstMask:
    """A prompt whose mask a variant got wrong."""

    iou: float
    kind: str
    image: PromptedImage
    """Its embedding is dropped; the picture stays."""
    coords: Array = field(repr=False)
    """float32 [num_points, 2]."""
    labels: Array = field(repr=False)
    """float32 [num_points]."""
    reference: npt.NDArray[np.bool_] = field(repr=False)
    """bool [256, 256], the mask that FP32 selects."""
    other: npt.NDArray[np.bool_] = field(repr=False)
    """bool [256, 256], the variant's mask of the same index."""


@dataclass(frozen=True)
class Measurement:
    """What `measure` saw."""

    kinds: npt.NDArray[np.str_] = field(repr=False)
    """Prompt kind of each prompt."""
    areas: npt.NDArray[np.float64] = field(repr=False)
    """Share of the picture of the mask that FP32 selects."""
    reference: Columns = field(repr=False)
    """The reference's `truth_selected` and `truth_oracle` by prompt, NaN where unknown."""
    variants: Mapping[str, Columns] = field(repr=False)
    """By variant, arrays [num_prompts]."""
    worst: Mapping[str, tuple[WorstMask, ...]] = field(repr=False)
    """By variant, lowest IoU first."""

    def groups(self) -> dict[str, dict[str, npt.NDArray[np.bool_]]]:
        """Prompts of each kind and size that there are: {"by_kind": {"click": bool [num_prompts], ...}, "by_size": ...}."""
        kinds = {kind: self.kinds == kind for kind in dict.fromkeys(self.kinds.tolist())}
        sizes = {name: (self.areas >= low) & (self.areas < high) for name, (low, high) in SIZES.items()}
        return {"by_kind": kinds, "by_size": {name: rows for name, rows in sizes.items() if rows.any()}}


def measure(
    reference: Runner,
    variants: Sequence[Variant],
    examples: Iterable[Example],
    *,
    keep_worst: int = 10,
    block: int = BLOCK,
    progress: Callable[[str, int], None] | None = None,
) -> Measurement:
    """Run the reference and every variant on every example.

    Args:
        reference: gives four masks per prompt; the FP32 decoder. It stays open.
        variants: with names of their own; they must give four masks too.
        examples: at least one; iterated once.
        keep_worst: how many of the worst masks to keep per variant.
        block: prompts (1 MiB each) whose reference masks are held at a time.
        progress: called after each example of each variant with the variant's name and the number of its prompts done.

    Raises:
        InputError: there is no example, two variants have one name, or one gives the selected mask only.
        InferenceError: a runner failed.
    """
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two variants are called {name}; give each its own name")
    kinds: list[str] = []
    areas: list[Array] = []
    truths: list[dict[str, Array]] = []
    columns: dict[str, list[dict[str, Array]]] = {name: [] for name in names}
    worst = {name: _Worst(keep_worst) for name in names}
    last: PromptedImage | None = None
    number = -1
    for held in _blocks(reference, examples, block):
        before = len(kinds)
        images: dict[int, Array] = {}
        for expected in held:
            if expected.example.image is not last:
                last, number = expected.example.image, number + 1
            images[id(expected)] = np.full(len(expected.best), number)
            kinds += expected.example.kinds
            areas.append((expected.selected > 0).mean(axis=(1, 2)))
            truths.append(expected.truth())
        for variant in variants:
            done = before
            with variant.open() as runner:
                _check_masks(variant.name, runner)
                for expected in held:
                    seen = _Outcome(runner.run(expected.example.feed), expected.example)
                    row = {**_compare(expected, seen), "image": images[id(expected)]}
                    columns[variant.name].append(row)
                    worst[variant.name].add(row["iou"], expected, seen)
                    done += len(seen.best)
                    if progress is not None:
                        progress(variant.name, done)
    if not kinds:
        raise InputError("there is no image to measure on; give at least one")
    return Measurement(
        kinds=np.array(kinds),
        areas=np.concatenate(areas),
        reference=_joined(truths),
        variants={name: _joined(rows) for name, rows in columns.items()},
        worst={name: each.sorted() for name, each in worst.items()},
    )


class _Outcome:
    """What a decoder said about one example."""

    def __init__(self, outputs: Mapping[str, Array], example: Example) -> None:
        self.example, self.part = example, picture_part(example.image.original_size)
        self.masks, self.scores = outputs["low_res_masks"][..., self.part[0], self.part[1]], outputs["iou_predictions"]
        self._whole = outputs["low_res_masks"]
        self.ranked = selection_scores(self.scores, example.feed["point_labels"])
        self.best = self.ranked.argmax(axis=1)
        self.index = np.arange(len(self.best))
        self.selected = self.masks[self.index, self.best]
        self._full: Array | None = None

    def full(self, best: Array) -> npt.NDArray[np.bool_]:
        """The masks `best` at the photo's size, or at a long side of _FULL where that is larger: bool [rows, height, width]."""
        height, width = self.example.image.original_size
        scale = min(1.0, _FULL / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        if self._full is None:
            self._full = np.asarray(postprocess_masks(self._whole[self.index, best], size) > 0)
        return self._full

    def truth(self) -> dict[str, Array]:
        """IoU with the exact masks, by prompt, of the selected mask and of the best of four."""
        if self.example.truth is None:
            unknown = np.full(len(self.best), np.nan)
            return {"truth_selected": unknown, "truth_oracle": unknown}
        truth = np.broadcast_to(self.example.truth[:, None, self.part[0], self.part[1]], self.masks.shape)
        # Cut first: the truth has no logits.
        ious = mask_iou(truth, self.masks > 0, 0.5)
        return {"truth_selected": ious[self.index, self.best], "truth_oracle": ious.max(axis=1)}


def _blocks(reference: Runner, examples: Iterable[Example], block: int) -> Iterator[list[_Outcome]]:
    """The reference's outcomes, as many at a time as hold `block` prompts or few more."""
    held: list[_Outcome] = []
    for example in examples:
        held.append(_Outcome(reference.run(example.feed), example))
        if sum(len(outcome.best) for outcome in held) >= block:
            yield held
            held = []
    if held:
        yield held


def _check_masks(name: str, runner: Runner) -> None:
    if next(spec for spec in runner.outputs if spec.name == "iou_predictions").dims[1] == 1:
        raise InputError(f"{name} gives the selected mask only; measure a graph without --best-mask")


def _compare(expected: _Outcome, seen: _Outcome) -> dict[str, Array]:
    same_index = seen.masks[seen.index, expected.best]
    all_masks = mask_iou(expected.masks, seen.masks)
    signal, noise = powers(expected.masks, seen.masks)
    return {
        "iou": all_masks[expected.index, expected.best],
        "boundary": boundary_iou(expected.selected, same_index),
        "full": mask_iou(expected.full(expected.best), seen.full(expected.best), 0.5),
        "full_boundary": boundary_iou(expected.full(expected.best), seen.full(expected.best), 0.5),
        "all_masks": all_masks.mean(axis=1),
        "selected": mask_iou(expected.selected, seen.selected),
        "flip": expected.best != seen.best,
        "flip_cost": expected.ranked[expected.index, expected.best] - expected.ranked[expected.index, seen.best],
        "kendall_tau": kendall_tau(expected.scores, seen.scores),
        "signal": signal,
        "noise": noise,
        **seen.truth(),
    }


class _Worst:
    """The lowest IoUs so far, with what shows them; earlier prompts win a tie."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[float, int, WorstMask]] = []
        self._seen = 0

    def add(self, ious: Array, expected: _Outcome, seen: _Outcome) -> None:
        example = expected.example
        for row, iou in enumerate(ious):
            self._seen += 1
            order = (-float(iou), -self._seen)
            if len(self._heap) == self._limit and (not self._heap or order < self._heap[0][:2]):
                continue
            labels = example.feed["point_labels"][row]
            shown = WorstMask(
                float(iou),
                example.kinds[row],
                _without_embedding(example.image),
                example.feed["point_coords"][row][labels >= 0],
                labels[labels >= 0],
                _in_frame(expected.selected[row] > 0),
                _in_frame(seen.masks[row, expected.best[row]] > 0),
            )
            push = heapq.heappush if len(self._heap) < self._limit else heapq.heapreplace
            push(self._heap, (*order, shown))

    def sorted(self) -> tuple[WorstMask, ...]:
        return tuple(shown for _, _, shown in sorted(self._heap, key=lambda entry: entry[:2], reverse=True))


def _in_frame(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The picture's part of a mask with the padding again, bool [256, 256]."""
    return np.pad(mask, [(0, LOW_RES_SIZE - side) for side in mask.shape])


def _without_embedding(image: PromptedImage) -> PromptedImage:
    return PromptedImage(image.name, np.empty(0, np.float32), image.original_size, image.picture)


def _joined(rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
