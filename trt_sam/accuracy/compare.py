"""Two decoders on the same prompts, run by Polygraphy's `Comparator`: errors, mask IoU, flips, and a verdict.

The first side is the reference. Sides may differ in what they give: outputs that both have are compared, a graph that selects
the best mask is compared with the same mask of the other side, and full-resolution masks are checked against the other side's
low-resolution ones, brought up in numpy.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._json import strict
from trt_sam._lazy import require
from trt_sam.accuracy.metrics import decibels, flip_rate, mask_iou, relative_error, selection_scores
from trt_sam.accuracy.sides import Side
from trt_sam.imaging.resize import postprocess_masks
from trt_sam.runtime.emulated_runner import EmulationRunner

__all__ = ["TOLERANCES", "ComparisonReport", "MaskAgreement", "OutputComparison", "compare_sides"]

Array = npt.NDArray[Any]

TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "fp32": {"masks": 1e-4, "low_res_masks": 1e-4, "iou_predictions": 1e-4, "mean_mask_iou": 0.999},
    "tf32": {"masks": 2e-2, "low_res_masks": 2e-2, "iou_predictions": 2e-2, "mean_mask_iou": 0.995},
    "fp16": {"masks": 3e-2, "low_res_masks": 3e-2, "iou_predictions": 3e-2, "mean_mask_iou": 0.99},
    "quantized": {"masks": 0.5, "low_res_masks": 0.5, "iou_predictions": 0.3, "mean_mask_iou": 0.95},
}
"""By the coarser arithmetic of the two sides: largest relative error of each output, and least mean mask IoU.

Errors of masks are relative to the largest |logit| of a feed, those of `iou_predictions` to 1 or the largest score. "fp32" and
"fp16" are what an export must hold as well; "tf32" has never been measured on a GPU. "quantized" (INT8, FP8) only finds what
is broken: how good such a graph is, `trt-sam accuracy` says.
"""

_COARSENESS = ("fp32", "tf32", "fp16", "quantized")
_LARGE_MASK = 200
"""Pixels at low resolution from which a mask counts in `lowest_iou`: one pixel of a tiny mask says nothing."""


@dataclass(frozen=True)
class OutputComparison:
    """One output over all feeds."""

    name: str
    error: float
    """Largest relative error over the feeds; infinity where a value is not finite."""
    tolerance: float
    sqnr_db: float
    """Signal to quantization noise over all feeds; infinity where nothing differs."""
    passed: bool


@dataclass(frozen=True)
class MaskAgreement:
    """The low-resolution masks of both sides, cut at 0."""

    masks: int
    mean_iou: float
    lowest_iou: float
    """Of masks of at least 200 pixels in the reference; 1 where there is none."""
    flip_rate: float
    """Share of prompts for which SAM's rule selects another mask."""
    wrong_choices: int
    """Flips that the tolerance of the scores does not excuse."""
    least_mean_iou: float | None
    """What `mean_iou` must reach; None on random embeddings, whose masks mean nothing."""
    passed: bool


@dataclass(frozen=True)
class ComparisonReport:
    """The comparison of two sides; the first is the reference."""

    reference: str
    other: str
    executed_by: tuple[str, str]
    arithmetic: str
    """Which tolerances were applied."""
    feeds: int
    prompts: int
    data: str
    """What the prompts were put on."""
    outputs: tuple[OutputComparison, ...]
    masks: MaskAgreement
    notes: tuple[str, ...] = ()
    passed: bool = field(default=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as strict JSON data: infinity and NaN are the strings "inf", "-inf" and "nan"."""
        data: dict[str, Any] = strict(dataclasses.asdict(self))
        return data


def compare_sides(
    reference: Side, other: Side, feeds: Sequence[Mapping[str, Array]], *, data: str, masks_mean_something: bool
) -> ComparisonReport:
    """Run both sides on `feeds` (from `compare_feeds.make_feeds`; at least one) and compare; the sides stay open.

    Args:
        reference: the first side.
        other: the second.
        feeds: with the inputs of both sides.
        data: what the feeds were made from, for the report.
        masks_mean_something: whether mean mask IoU takes part in the verdict.

    Raises:
        InferenceError: one side failed.
        MissingDependencyError: Polygraphy is not installed.
    """
    require("polygraphy", "to compare")
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    arithmetic = max(reference.arithmetic, other.arithmetic, key=_COARSENESS.index)
    tally = _Tally(feeds, TOLERANCES[arithmetic])
    # Polygraphy takes statistics of every output, and warns of infinities, which the verdict says better.
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(invalid="ignore", over="ignore"):
        runners = [_as_polygraphy(side, f"{letter}: {side.source}") for letter, side in (("A", reference), ("B", other))]
        # Streaming: one feed's outputs in memory at a time, whatever --prompts says.
        results = Comparator.run(runners, data_loader=list(feeds), streaming=True)
        agreed = bool(Comparator.compare_accuracy(results, compare_func=tally))
    outputs, masks = tally.outputs(), tally.masks(masks_mean_something)
    return ComparisonReport(
        reference=reference.source,
        other=other.source,
        executed_by=(reference.executed_by, other.executed_by),
        arithmetic=arithmetic,
        feeds=len(feeds),
        prompts=sum(len(feed["point_labels"]) for feed in feeds),
        data=data,
        outputs=outputs,
        masks=masks,
        notes=tuple(_notes(reference, other)),
        passed=agreed and all(output.passed for output in outputs) and masks.passed,
    )


class _Tally:
    """A compare_func of Polygraphy's `Comparator`, called once per feed in order, which also adds up over the feeds."""

    def __init__(self, feeds: Sequence[Mapping[str, Array]], tolerances: Mapping[str, float]) -> None:
        self._feeds = iter(feeds)
        self._tolerances = tolerances
        self._errors: dict[str, float] = {}
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}
        self._ious: list[Array] = []
        self._large: list[Array] = []
        self._chosen: tuple[list[Array], list[Array]] = ([], [])
        self._wrong = 0

    def __call__(self, first: Mapping[str, Array], second: Mapping[str, Array]) -> OrderedDict[str, bool]:
        feed = next(self._feeds)
        reference, other = dict(first.items()), dict(second.items())
        _give_both_full_resolution(reference, other, feed)
        reference, other = self._align(reference, other, feed["point_labels"])
        verdict: OrderedDict[str, bool] = OrderedDict()
        # Bits are the masks once more.
        for name in (name for name in reference if name in other and name in self._tolerances):
            error = relative_error(reference[name], other[name], floor=1.0 if name == "iou_predictions" else 0.0)
            self._errors[name] = max(error, self._errors.get(name, 0.0))
            wide = reference[name].astype(np.float64)
            self._signal[name] = self._signal.get(name, 0.0) + float(np.square(wide).sum())
            difference = float(np.square(other[name] - wide).sum()) if math.isfinite(error) else math.inf
            self._noise[name] = self._noise.get(name, 0.0) + difference
            verdict[name] = error <= self._tolerances[name]
        low_res = reference["low_res_masks"]
        self._ious.append(mask_iou(low_res, other["low_res_masks"]))
        self._large.append((low_res > 0).sum((-2, -1)) >= _LARGE_MASK)
        return verdict

    def outputs(self) -> tuple[OutputComparison, ...]:
        return tuple(
            OutputComparison(
                name,
                error,
                self._tolerances[name],
                decibels(self._signal[name], self._noise[name]),
                error <= self._tolerances[name],
            )
            for name, error in self._errors.items()
        )

    def masks(self, mean_something: bool) -> MaskAgreement:
        ious = np.concatenate([iou.ravel() for iou in self._ious])
        large = ious[np.concatenate([each.ravel() for each in self._large])]
        mean, least = float(ious.mean()), self._tolerances["mean_mask_iou"]
        return MaskAgreement(
            masks=len(ious),
            mean_iou=mean,
            lowest_iou=float(large.min()) if len(large) else 1.0,
            flip_rate=flip_rate(*(np.concatenate(side) for side in self._chosen)),
            wrong_choices=self._wrong,
            least_mean_iou=least if mean_something else None,
            passed=self._wrong == 0 and (mean >= least or not mean_something),
        )

    def _align(
        self, reference: dict[str, Array], other: dict[str, Array], labels: Array
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Bring a side of four masks to the one that the other side selected, and count what was selected."""
        sides = (reference, other)
        counts = [side["iou_predictions"].shape[1] for side in sides]
        if counts == [1, 1]:
            # Two graphs that select: when they choose apart, the masks themselves differ.
            rows = [np.zeros(len(labels), np.int64)] * 2
        elif counts[0] == counts[1]:
            scores = [selection_scores(side["iou_predictions"], labels) for side in sides]
            rows = [score.argmax(axis=1) for score in scores]
            self._count_wrong(scores[0], rows[0], rows[1])
        else:
            whole = 0 if counts[0] > counts[1] else 1
            score = selection_scores(sides[whole]["iou_predictions"], labels)
            picked = _nearest_mask(sides[whole]["low_res_masks"], sides[1 - whole]["low_res_masks"])
            rows = [picked, picked]
            rows[whole] = score.argmax(axis=1)
            self._count_wrong(score, rows[whole], picked)
            index = np.arange(len(labels))
            reduced = {name: array[index, picked][:, None] for name, array in sides[whole].items()}
            sides = (reduced, other) if whole == 0 else (reference, reduced)
        for kept, row in zip(self._chosen, rows, strict=True):
            kept.append(row)
        return sides

    def _count_wrong(self, scores: Array, best: Array, chosen: Array) -> None:
        """Count choices that miss the best score by more than both sides' tolerance together could explain."""
        index = np.arange(len(best))
        margin = scores[index, best] - scores[index, chosen]
        # SAM's rule adds thousands; the scores themselves are about 1.
        self._wrong += int((margin > 2 * self._tolerances["iou_predictions"]).sum())


def _nearest_mask(four: Array, one: Array) -> Array:
    """Which of `four` [n, 4, h, w] the masks of `one` [n, 1, h, w] are, int64 [n]."""
    return np.stack([np.square(four[:, i] - one[:, 0], dtype=np.float64).sum((1, 2)) for i in range(four.shape[1])]).argmin(
        axis=0
    )


def _give_both_full_resolution(reference: dict[str, Array], other: dict[str, Array], feed: Mapping[str, Array]) -> None:
    """Where one side alone gives full-resolution masks, make the other's from its low-resolution ones."""
    for has, lacks in ((reference, other), (other, reference)):
        if "masks" in has and "masks" not in lacks:
            height, width = (int(n) for n in feed["orig_im_size"])
            lacks["masks"] = postprocess_masks(lacks["low_res_masks"], (height, width))


def _as_polygraphy(side: Side, name: str) -> Any:
    """`side` as a Polygraphy runner. Made here, so that importing this module needs no Polygraphy."""
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata

    class SideRunner(BaseRunner):  # type: ignore[misc]
        """A `trt_sam.runtime.interface.Runner` under Polygraphy; whoever opened the side closes it."""

        def get_input_metadata_impl(self) -> Any:
            metadata = TensorMetadata()
            for spec in side.runner.inputs:
                shape = [dim if isinstance(dim, int) else -1 for dim in spec.dims]
                metadata.add(spec.name, np.dtype(spec.dtype), shape)
            return metadata

        def infer_impl(self, feed_dict: Mapping[str, Array]) -> OrderedDict[str, Array]:
            started = time.perf_counter()
            outputs = side.runner.run(feed_dict)
            self.inference_time = time.perf_counter() - started
            return OrderedDict(outputs)

    return SideRunner(name)


def _notes(reference: Side, other: Side) -> Iterator[str]:
    hashes = {reference.checkpoint_sha256, other.checkpoint_sha256}
    if len(hashes) == 2 and "" not in hashes:
        yield (
            f"the sides hold different weights (SHA-256 {reference.checkpoint_sha256[:12]} and {other.checkpoint_sha256[:12]})"
        )
    for side in (reference, other):
        if isinstance(side.runner, EmulationRunner):
            yield (
                f"{side.source} was not run in FP16: its FP32 emulation rounds every FP16 tensor, the largest |x| before that "
                f"was {side.runner.largest:.0f} of 65504"
            )
