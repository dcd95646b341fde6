"""`Calibration`: a float32 graph on calibration feeds, up to the range of every activation that is to be quantized."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx

from calibrators.auto import Choice, better, choose, uniform_scores
from calibrators.collect import Progress, collect_channels, collect_histograms
from calibrators.feeds import CalibrationFeeds
from calibrators.histogram import Histogram
from calibrators.mixing import find_mixes
from calibrators.pictures import PictureFeeds
from calibrators.ranges import TensorRange
from calibrators.thresholds import threshold
from calibrators.trials import Score, Trials, trial_feeds
from trt_sam.errors import CalibrationError
from trt_sam.quantize.share import (
    ChannelChange,
    InputMoments,
    Product,
    Shift,
    apply_changes,
    channel_changes,
    find_products,
    insert_qdq,
)
from trt_sam.recipe import QuantizationOptions

__all__ = ["Calibration"]

FloatArray = npt.NDArray[np.float64]

_LARGEST = {"int8": 127.0, "fp8": 448.0}


MARGIN = 1.1
"""Every range is wider than its calibrator says by this factor: shift and scale bring each channel to its limits, and other
photos go beyond (seen on 8, tier A: mean IoU .9987 without, .9991 with it)."""
FEWEST_TO_MIX = 96
"""Prompts under which nothing is mixed: a matrix learned from few fits those alone. From 4 the masks of the stand-in had a
mean IoU of 0.79, from 192 the noise of the real decoder fell by a seventh; what lies between was not measured."""
MIXED_MARGIN = 1.3
"""Where a head's channels were mixed: that fits them to what was seen more closely, and other photos go further beyond."""
_TRIED = ("max", "entropy", "percentile", "mse")
"""What "auto" chooses from: of equals the first, which clips nothing."""
_ALPHAS = (1.0, 0.7)
"""Strengths of the scale that "auto" tries beside the recipe's own."""


@dataclass(frozen=True)
class _Prepared:
    """The float32 graph shifted and scaled in one way, and what its products then read."""

    changes: Mapping[str, ChannelChange]
    model: onnx.ModelProto = field(repr=False)
    products: tuple[Product, ...]
    moments: Mapping[str, InputMoments] = field(repr=False)
    largest: Mapping[str, float]
    """The largest |x| of each activation."""


class Calibration:
    """The float32 graph, its products made ready for quantization, and histograms of what they then read."""

    def __init__(
        self,
        plain: onnx.ModelProto,
        feeds: CalibrationFeeds | PictureFeeds,
        quantization: QuantizationOptions,
        precision: str,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Run the float32 graph `plain` (target gpu; not changed) twice over `feeds`.

        Args:
            plain: as `trt-sam export --target gpu --precision fp32` writes it: a decoder, or an image encoder.
            feeds: of any number of images; photographs for an image encoder.
            quantization: tiers, keep_fp16, shift, smooth_alpha and second_order are used here; the calibrator by `ranges`.
            precision: "int8" or "fp8".
            progress: told of every feed of every pass.

        Raises:
            CalibrationError: a tensor is not finite.
            GraphError: `plain` is another graph.
            InferenceError: ONNX Runtime cannot run it.
            RecipeError: `keep_fp16` names no group of it, or leaves nothing.
        """
        self.plain, self.feeds, self._quantization, self._precision = plain, feeds, quantization, precision
        self._progress = progress
        self.found = find_products(plain, quantization.tiers, quantization.keep_fp16)
        """The products in the plain graph."""
        self._stats = collect_channels(
            plain, _activations(self.found), feeds, mixes=self._mixes(quantization, progress), progress=progress
        )
        self.alpha: float | None = quantization.smooth_alpha
        """Strength of the scale: the recipe's, or what `choose` found."""
        self._prepared = self._prepare()
        self._histograms: dict[float | None, Mapping[str, Histogram]] = {}

    def _mixes(self, quantization: QuantizationOptions, progress: Progress | None) -> dict[str, FloatArray]:
        """How the channels of attentions' outputs are mixed: for INT8 with shift and scale, which make the most of it."""
        if self._precision != "int8" or not quantization.shift or quantization.smooth_alpha is None:
            return {}
        if self.feeds.num_prompts < FEWEST_TO_MIX:
            return {}
        return find_mixes(self.plain, self.found, self.feeds, progress=progress)

    @property
    def model(self) -> onnx.ModelProto:
        """The graph with shift and scale, equal to `plain`."""
        return self._prepared.model

    @property
    def products(self) -> tuple[Product, ...]:
        """The products in `model`."""
        return self._prepared.products

    @property
    def histograms(self) -> Mapping[str, Histogram]:
        """By activation of `products`; counted when they are first asked for."""
        if self.alpha not in self._histograms:
            self._histograms[self.alpha] = collect_histograms(
                self.model,
                _activations(self.products),
                self.feeds,
                ranges=self._prepared.largest,
                progress=self._progress,
            )
        return self._histograms[self.alpha]

    @property
    def largest(self) -> Mapping[str, float]:
        """The largest |x| of each activation of `products`."""
        return self._prepared.largest

    @property
    def changes(self) -> Mapping[str, ChannelChange]:
        """Shift and scale by activation of `products`; without those that have neither."""
        return self._prepared.changes

    @property
    def moments(self) -> Mapping[str, InputMoments]:
        """For `insert_qdq`, by activation of `products`; empty where weights are rounded to the nearest."""
        return self._prepared.moments

    def on(self, feeds: CalibrationFeeds | PictureFeeds) -> Calibration:
        """The same calibration on other feeds, with what `choose` found; raises as the constructor."""
        other = Calibration(self.plain, feeds, self._quantization, self._precision, progress=self._progress)
        if (other.alpha, other.found) != (self.alpha, self.found):
            other.alpha, other.found = self.alpha, self.found
            other._prepared = other._prepare()
        return other

    def _prepare(self) -> _Prepared:
        """Shift and scale what the products read in the plain graph."""
        shift: Shift | bool = self._quantization.shift
        if shift:
            # FP8 is as fine for small values as its range is wide, int8 has the same steps everywhere.
            shift = "middle" if self._precision == "int8" else "mean"
        changes = channel_changes(self.plain, self.found, self._stats, shift=shift, smooth_alpha=self.alpha)
        model, products = apply_changes(self.plain, self.found, changes)
        ranges, moments = {}, {}
        for before, after in zip(self.found, products, strict=True):
            seen, name = self._stats[before.activation], after.activation
            change = changes.get(name, _no_change(len(seen.mean)))
            ranges[name] = seen.largest(change.shift, change.scale)
            moments[name] = seen.moments(change.shift, change.scale)
        return _Prepared(changes, model, products, moments if self._quantization.second_order else {}, ranges)

    def choose(self, held_out: CalibrationFeeds) -> Choice:
        """Let the masks of `held_out` decide between scales and calibrators, and what stays in float16.

        The latter loses its shift and scale, which moves the ranges of the others: the result's `amax` and `score` are those
        without them. `on` then measures what was chosen on all images.

        Raises:
            CalibrationError: every group costs too much, or a tensor is 0 everywhere.
            InferenceError: ONNX Runtime cannot run a trial.
        """
        trials = Trials(self.plain, trial_feeds(held_out.with_sizes()))
        given = self.alpha
        uniform = {f"{given} {name}": score for name, score in self._uniform(_TRIED, trials).items()}
        best = (uniform[f"{given} max"], given, self._prepared)
        for alpha in (each for each in _ALPHAS if given is not None and each != given):
            # By the widest range alone, which needs no histogram.
            self.alpha = alpha
            self._prepared = self._prepare()
            uniform[f"{alpha} max"] = score = self._uniform(("max",), trials)["max"]
            if better(score, best[0]):
                best = (score, alpha, self._prepared)
        _, self.alpha, self._prepared = best
        choice = choose(
            self.model,
            self.products,
            self._all_ranges(_TRIED),
            trials,
            uniform=self._uniform(_TRIED, trials) if self.alpha != given else _of(given, uniform),
            moments=self.moments,
            precision=self._precision,
            progress=self._progress,
        )
        choice = dataclasses.replace(choice, alpha=self.alpha, uniform=uniform, trials=trials.runs)
        if not choice.left_out:
            return choice
        self.found = choice.kept(self.found)
        self._prepared, self._histograms = self._prepare(), {}
        amax = self.ranges(self.calibrators(choice))
        score = trials.score(self.quantized(amax))
        notes = (*choice.notes, f"without the shift and scale of what stays in float16: {score} instead of {choice.score}")
        return dataclasses.replace(choice, amax=amax, score=score, trials=trials.runs, notes=notes)

    def quantized(self, amax: Mapping[str, float]) -> onnx.ModelProto:
        """The float32 graph with Q/DQ pairs of these ranges, for trying out."""
        return insert_qdq(self.model, self.products, amax, self._precision, moments=self.moments)

    def _uniform(self, calibrators: Sequence[str], trials: Trials) -> dict[str, Score]:
        return uniform_scores(self.quantized, self._all_ranges(calibrators), trials)

    def _all_ranges(self, calibrators: Sequence[str]) -> dict[str, dict[str, float]]:
        return {each: self.ranges(dict.fromkeys(_activations(self.products), each)) for each in calibrators}

    def calibrators(self, choice: Choice | None = None) -> dict[str, str]:
        """The calibrator of every activation: the recipe's, or what `choice` found."""
        if choice is None:
            return dict.fromkeys(_activations(self.products), self._quantization.calibrator)
        by_group = {each.group: each.calibrator for each in choice.groups if each.calibrator is not None}
        # As `choose` has it: where two groups read one tensor, it is the first one's.
        by_tensor = {product.activation: by_group[product.group] for product in reversed(self.products)}
        return {tensor: by_tensor[tensor] for tensor in _activations(self.products)}

    def ranges(self, calibrators: Mapping[str, str]) -> dict[str, float]:
        """The range of every activation by its calibrator, as `insert_qdq` takes them.

        Raises:
            CalibrationError: a tensor is 0 everywhere.
        """
        return {tensor: self._range(tensor, calibrator) for tensor, calibrator in calibrators.items()}

    def deliver(self, half: onnx.ModelProto, amax: Mapping[str, float]) -> onnx.ModelProto:
        """The float16 graph `half` of the same decoder, changed as the float32 one was, with its Q/DQ pairs; `half` stays."""
        names = {product.name for product in self.found}
        found = [p for p in find_products(half, self._quantization.tiers, self._quantization.keep_fp16) if p.name in names]
        model, products = apply_changes(half, found, self.changes, weights_from=self.plain)
        return insert_qdq(model, products, amax, self._precision, moments=self.moments)

    def rows(self, calibrators: Mapping[str, str]) -> tuple[TensorRange, ...]:
        """The ranges with everything that is to be reported about them, in graph order."""
        rows = []
        for tensor, limit in self.ranges(calibrators).items():
            readers = [product for product in self.products if product.activation == tensor]
            histogram = self.histograms[tensor]
            kept = round(limit / histogram.width)
            rows.append(
                TensorRange(
                    tensor=tensor,
                    group=readers[0].group,
                    tier=readers[0].tier,
                    products=tuple(product.name for product in readers),
                    calibrator=calibrators[tensor],
                    amax=limit,
                    scale=limit / _LARGEST[self._precision],
                    largest=histogram.amax,
                    clipped=float(histogram.counts[kept:].sum() / histogram.total),
                    bulk=threshold(histogram, "percentile"),
                )
            )
        return tuple(rows)

    def _range(self, tensor: str, calibrator: str) -> float:
        change = self.changes.get(tensor)
        margin = MARGIN if change is None or change.mix is None else MIXED_MARGIN
        if calibrator == "max" and self._prepared.largest[tensor] > 0:
            return margin * self._prepared.largest[tensor]
        try:
            return margin * threshold(self.histograms[tensor], calibrator, precision=self._precision)
        except CalibrationError as error:
            raise CalibrationError(f"{tensor}: {error}") from None


def _of(alpha: float | None, uniform: Mapping[str, Score]) -> dict[str, Score]:
    """By calibrator, what was tried with this strength."""
    return {name: uniform[f"{alpha} {name}"] for name in _TRIED}


def _no_change(channels: int) -> ChannelChange:
    return ChannelChange(np.zeros(channels), np.ones(channels))


def _activations(products: Sequence[Product]) -> list[str]:
    return list(dict.fromkeys(product.activation for product in products))
