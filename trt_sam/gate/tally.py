"""How far a candidate is from the reference, prompt by prompt and output by output; numpy only.

The picture's part of every mask counts, not the padding below or beside it. Sides may differ in what they give: a graph that
selects the best mask is compared with the same mask of the other side, and full-resolution masks are checked against the other
side's low-resolution ones, brought up in numpy.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.accuracy.examples import Example, PromptedImage
from trt_sam.accuracy.measurement import WorstMask
from trt_sam.accuracy.metrics import mask_iou, relative_error, selection_scores
from trt_sam.accuracy.summary import CLEAR_MARGIN
from trt_sam.feeds.realistic import picture_part
from trt_sam.gate.answers import Answer, reduced
from trt_sam.imaging.resize import postprocess_masks

__all__ = ["Figures", "OutputError", "Tally"]

Array = npt.NDArray[Any]
Rows = tuple[Array, Array]
_HARDEST = 3


@dataclass
class OutputError:
    """One output over all feeds."""

    error: float = 0.0
    """Largest relative error over the feeds; infinity where a value is not finite."""
    signal: float = 0.0
    noise: float = 0.0
    not_finite: int = 0
    """Values that are NaN or infinite in the candidate and not in the reference."""
    first_not_finite: str = ""
    """Where the first of them is."""
    from_own: float = 0.0
    """Of `masks`: the largest relative error of a feed against the side's own low-resolution masks, brought up in numpy."""


@dataclass(frozen=True)
class Figures:
    """Everything that was seen of one candidate; arrays by prompt."""

    images: npt.NDArray[np.int64] = field(repr=False)
    """Number of the image, [num_prompts]."""
    names: tuple[str, ...]
    """Of the images."""
    kinds: tuple[str, ...] = field(repr=False)
    iou: Array = field(repr=False)
    """Of the mask that SAM's rule selects by the reference's scores, float64 [num_prompts]."""
    area: Array = field(repr=False)
    """Its pixels at 256 x 256, in the reference."""
    iou_four: Array = field(repr=False)
    """float64 [num_prompts, 4]; [num_prompts, 1] where a side gives the selected mask only."""
    area_four: Array = field(repr=False)
    flip_cost: Array = field(repr=False)
    """By how much the reference scores what the candidate selects below its own choice; 0 where both select the same."""
    flip: npt.NDArray[np.bool_] = field(repr=False)
    unstable: npt.NDArray[np.bool_] = field(repr=False)
    """Prompts whose selected mask the reference itself changes when it computes in float16, so far as that was looked at."""
    outputs: dict[str, OutputError]
    worst: tuple[WorstMask, ...]
    """Lowest IoU first."""
    hardest: tuple[Example, ...] = field(repr=False, default=())
    """The calls with the lowest IoU, or with the largest errors where all masks are equal."""

    @property
    def clear_flips(self) -> int:
        """Flips beyond CLEAR_MARGIN."""
        return int((self.flip_cost > CLEAR_MARGIN).sum())


class Tally:
    """Adds up over the feeds."""

    def __init__(self, *, keep_worst: int = 8) -> None:
        self._keep = keep_worst
        self._names: list[str] = []
        self._rows: list[dict[str, Array]] = []
        self._kinds: list[str] = []
        self._outputs: dict[str, OutputError] = {}
        self._worst: list[tuple[float, int, WorstMask]] = []
        self._hardest: list[tuple[float, float, int, Example]] = []
        self._last: PromptedImage | None = None

    def add(self, example: Example, expected: Answer, seen: Answer) -> Rows:
        """Count one feed; `seen` is whole (step 1). Gives the IoU of each selected mask, and its pixels in the reference."""
        if example.image is not self._last:
            self._last = example.image
            self._names.append(example.image.name)
        error = self._count_outputs(example, expected, seen)
        part = picture_part(example.image.original_size)
        pair = _aligned(expected, seen, example.feed["point_labels"])
        index = np.arange(len(pair.best))
        first, second = pair.expected.inside[..., part[0], part[1]], pair.seen.inside[..., part[0], part[1]]
        four = mask_iou(first, second, 0.5)
        # A value that is not finite is not above 0, so that an IoU could hide it.
        four[~np.isfinite(pair.seen.logits).all(axis=(2, 3))] = 0.0
        area = first.sum((2, 3))
        if pair.chosen_apart:
            selected = mask_iou(
                expected.inside[..., part[0], part[1]][index, pair.best], seen.inside[:, 0, part[0], part[1]], 0.5
            )
            selected_area = expected.inside[..., part[0], part[1]][index, pair.best].sum((1, 2))
        else:
            row = pair.best if first.shape[1] > 1 else np.zeros_like(pair.best)
            selected, selected_area = four[index, row], area[index, row]
        self._rows.append(
            {
                "images": np.full(len(index), len(self._names) - 1),
                "iou": selected,
                "area": selected_area,
                "iou_four": four,
                "area_four": area,
                "flip_cost": pair.cost,
                "flip": pair.flip,
                "unstable": np.zeros(len(index), np.bool_),
            }
        )
        start = len(self._kinds)
        if self._keep:
            self._hardest.append((float(four.min()), -error, start, example))
            self._hardest = sorted(self._hardest, key=lambda entry: entry[:3])[:_HARDEST]
        self._kinds += example.kinds
        self._show(example, expected, seen, pair, selected, start)
        return selected, selected_area

    def leave_out(self, unstable: npt.NDArray[np.bool_]) -> None:
        """Mark prompts of the last feed as unstable, bool [num_prompts]."""
        self._rows[-1]["unstable"] = unstable

    @property
    def prompts(self) -> int:
        """How many so far."""
        return len(self._kinds)

    def figures(self) -> Figures:
        """Everything so far; at least one feed."""
        joined = {name: np.concatenate([row[name] for row in self._rows]) for name in self._rows[0]}
        worst = tuple(shown for _, _, shown in sorted(self._worst, key=lambda entry: entry[:2], reverse=True))
        return Figures(
            **joined,
            names=tuple(self._names),
            kinds=tuple(self._kinds),
            outputs=dict(self._outputs),
            worst=worst,
            hardest=tuple(entry[3] for entry in self._hardest),
        )

    def _count_outputs(self, example: Example, expected: Answer, seen: Answer) -> float:
        """Add the outputs of one feed, and return their largest error."""
        largest = 0.0
        expected, made = _both_full(example, expected, seen), _both_full(example, seen, expected)
        pair = _aligned(expected, made, example.feed["point_labels"])
        wanted_of = pair.expected.outputs
        if pair.seen.masks is not None and "masks" not in wanted_of:
            # Golden data keep too few logits for them: they are held against the candidate's own low-resolution masks.
            wanted_of = {"masks": postprocess_masks(pair.seen.logits, _size(example)), **wanted_of}
        if seen.masks is not None and np.isfinite(seen.masks).all():
            own = relative_error(postprocess_masks(seen.logits, _size(example)), seen.masks)
            total = self._outputs.setdefault("masks", OutputError())
            total.from_own = max(total.from_own, own)
        if seen.bits is not None:
            total = self._outputs.setdefault("mask_bits", OutputError())
            total.error = max(total.error, _wrong_bits(seen, seen.bits))
        for name, wanted in wanted_of.items():
            whole = pair.seen.outputs.get(name)
            if whole is None:
                continue
            total = self._outputs.setdefault(name, OutputError())
            broken = ~np.isfinite(whole)
            if broken.any():
                if not total.not_finite:
                    place = ", ".join(str(i) for i in np.argwhere(broken)[0].tolist())
                    total.first_not_finite = f"[{place}] of a feed on {example.image.name}"
                total.not_finite += int(broken.sum())
            got = reduced(pair.seen, expected.step).logits if name == "low_res_masks" else whole
            # A value that is not finite fails wherever it is, also where golden data keep no logit.
            error = relative_error(wanted, got, floor=1.0 if name == "iou_predictions" else 0.0)
            error = np.inf if broken.any() else error
            largest = max(largest, error)
            total.error = max(total.error, error)
            wide = np.asarray(wanted, np.float64)
            total.signal += float(np.square(wide).sum())
            total.noise += float(np.square(got - wide).sum()) if np.isfinite(total.error) else np.inf
        return largest

    def _show(self, example: Example, expected: Answer, seen: Answer, pair: _Pair, ious: Array, start: int) -> None:
        if not self._keep:
            return
        for row, iou in enumerate(ious.tolist()):
            order = (-iou, -(start + row))
            if len(self._worst) == self._keep and (not self._worst or order < self._worst[0][:2]):
                continue
            labels = example.feed["point_labels"][row]
            best = pair.best[row] if expected.inside.shape[1] > 1 else 0
            mask = 0 if seen.inside.shape[1] == 1 else pair.best[row]
            shown = WorstMask(
                iou,
                example.kinds[row],
                dataclasses.replace(example.image, embedding=np.empty(0, np.float32), objects=None),
                example.feed["point_coords"][row][labels >= 0],
                labels[labels >= 0],
                expected.inside[row, best],
                seen.inside[row, mask],
            )
            push = heapq.heappush if len(self._worst) < self._keep else heapq.heapreplace
            push(self._worst, (*order, shown))


@dataclass(frozen=True)
class _Pair:
    """Both answers with the same masks in the same places."""

    expected: Answer
    seen: Answer
    best: npt.NDArray[np.int64]
    """The mask that the reference selects (of four, where one side has four)."""
    flip: npt.NDArray[np.bool_]
    cost: Array
    chosen_apart: bool
    """Whether `seen` is one mask that was reduced from what the candidate itself chose."""


def _aligned(expected: Answer, seen: Answer, labels: Array) -> _Pair:
    """Bring a side of four masks to the one that the other side selected, and see what was selected."""
    counts = (expected.scores.shape[1], seen.scores.shape[1])
    index = np.arange(len(labels))
    none = np.zeros(len(labels), np.int64)
    if counts == (1, 1):
        # Two graphs that select: where they choose apart, the masks themselves differ.
        return _Pair(expected, seen, none, none > 0, np.zeros(len(labels)), chosen_apart=False)
    if counts[0] == counts[1]:
        ranked = selection_scores(expected.scores, labels)
        best, other = ranked.argmax(axis=1), selection_scores(seen.scores, labels).argmax(axis=1)
        return _Pair(expected, seen, best, best != other, ranked[index, best] - ranked[index, other], chosen_apart=False)
    whole, one = (expected, seen) if counts[0] > counts[1] else (seen, expected)
    ranked = selection_scores(whole.scores, labels)
    best, picked = ranked.argmax(axis=1), _nearest_mask(whole, one)
    few = _picked(whole, picked)
    cost = ranked[index, best] - ranked[index, picked]
    if whole is expected:
        return _Pair(few, seen, best, best != picked, cost, chosen_apart=True)
    return _Pair(expected, few, picked, best != picked, cost, chosen_apart=False)


def _picked(answer: Answer, rows: npt.NDArray[np.int64]) -> Answer:
    index = np.arange(len(rows))
    masks = None if answer.masks is None else answer.masks[index, rows][:, None]
    scores, inside, logits = (array[index, rows][:, None] for array in (answer.scores, answer.inside, answer.logits))
    return Answer(scores, inside, logits, answer.step, masks)


def _nearest_mask(four: Answer, one: Answer) -> npt.NDArray[np.int64]:
    """Which of the masks of `four` those of `one` are, [num_prompts]."""
    step = max(four.step, one.step)
    many, single = (reduced(a, step // a.step).logits if a.step != step else a.logits for a in (four, one))
    distances: Sequence[Array] = [
        np.square(many[:, i] - single[:, 0], dtype=np.float64).sum((1, 2)) for i in range(many.shape[1])
    ]
    return np.asarray(np.stack(distances).argmin(axis=0), np.int64)


def _both_full(example: Example, lacks: Answer, has: Answer) -> Answer:
    """Where `has` alone gives full-resolution masks, `lacks` with its own made from its low-resolution ones."""
    if lacks.masks is not None or has.masks is None or lacks.step != 1:
        return lacks
    return dataclasses.replace(lacks, masks=postprocess_masks(lacks.logits, _size(example)))


def _size(example: Example) -> tuple[int, int]:
    height, width = (int(n) for n in example.feed["orig_im_size"])
    return height, width


def _wrong_bits(answer: Answer, bits: npt.NDArray[np.uint8]) -> float:
    """Share of the pixels in `mask_bits` that are not those of the same side's masks."""
    own = (answer.logits if answer.masks is None else answer.masks) > 0
    return float((np.unpackbits(bits, axis=-1, count=own.shape[-1]).astype(np.bool_) != own).mean())
