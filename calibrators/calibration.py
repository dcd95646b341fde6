"""`Calibration`: a float32 decoder graph on calibration feeds, up to the range of every activation that is to be quantized."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx

from calibrators.auto import Choice, choose
from calibrators.collect import Progress, collect_channels, collect_histograms
from calibrators.feeds import CalibrationFeeds
from calibrators.histogram import Histogram
from calibrators.report import TensorRange
from calibrators.thresholds import THRESHOLDS, threshold
from calibrators.trials import Trials, trial_feeds
from trt_sam.errors import CalibrationError
from trt_sam.quantize.share import Product, find_products, insert_qdq, precondition
from trt_sam.recipe import QuantizationOptions

__all__ = ["Calibration"]

_LARGEST = {"int8": 127.0, "fp8": 448.0}


class Calibration:
    """The float32 graph, its products made ready for quantization, and histograms of what they then read."""

    def __init__(
        self,
        plain: onnx.ModelProto,
        feeds: CalibrationFeeds,
        quantization: QuantizationOptions,
        precision: str,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Run the float32 graph `plain` (target gpu; not changed) three times over `feeds`.

        Args:
            plain: as `trt-sam export --target gpu --precision fp32` writes it.
            feeds: of any number of images.
            quantization: tiers, keep_fp16, shift and smooth_alpha are used here; the calibrator by `ranges`.
            precision: "int8" or "fp8".
            progress: told of every feed of every pass.

        Raises:
            CalibrationError: a tensor is not finite.
            GraphError: `plain` is another graph.
            InferenceError: ONNX Runtime cannot run it.
            RecipeError: `keep_fp16` names no group of it, or leaves nothing.
        """
        self.plain, self._feeds, self._quantization, self._precision = plain, feeds, quantization, precision
        self._progress = progress
        found = find_products(plain, quantization.tiers, quantization.keep_fp16)
        self._stats = collect_channels(plain, _activations(found), feeds, progress=progress)
        self._prepare(found)

    def _prepare(self, found: Sequence[Product]) -> None:
        """Shift and scale what the products `found` in the plain graph read, and count it."""
        self.found = tuple(found)
        """The products in the plain graph."""
        self.model, self.products = self._precondition(self.plain, self.found, None)
        """The graph with shift and scale, equal to `plain`, and the products in it."""
        self.histograms: dict[str, Histogram] = collect_histograms(
            self.model, _activations(self.products), self._feeds, progress=self._progress
        )
        """By activation of `products`."""

    def choose(self, held_out: CalibrationFeeds) -> Choice:
        """Let the masks of `held_out` decide between the calibrators; what then stays in float16 loses its shift and scale.

        That moves the ranges of the others, so the result's `amax` and `score` are those of the graph that is delivered.

        Raises:
            CalibrationError: every group costs too much, or a tensor is 0 everywhere.
            InferenceError: ONNX Runtime cannot run a trial.
        """
        ranges = {each: {t: self._range(t, each) for t in self.histograms} for each in THRESHOLDS}
        trials = Trials(self.plain, trial_feeds(held_out))
        choice = choose(self.model, self.products, ranges, trials, precision=self._precision, progress=self._progress)
        if not choice.left_out:
            return choice
        self._prepare(choice.kept(self.found))
        amax = self.ranges(self.calibrators(choice))
        score = trials.score(insert_qdq(self.model, self.products, amax, self._precision))
        notes = (*choice.notes, f"without the shift and scale of what stays in float16: {score} instead of {choice.score}")
        return dataclasses.replace(choice, amax=amax, score=score, trials=choice.trials + 1, notes=notes)

    def calibrators(self, choice: Choice | None = None) -> dict[str, str]:
        """The calibrator of every activation: the recipe's, or what `choice` found."""
        if choice is None:
            return dict.fromkeys(self.histograms, self._quantization.calibrator)
        by_group = {each.group: each.calibrator for each in choice.groups if each.calibrator is not None}
        # As `choose` has it: where two groups read one tensor, it is the first one's.
        by_tensor = {product.activation: by_group[product.group] for product in reversed(self.products)}
        return {tensor: by_tensor[tensor] for tensor in self.histograms}

    def ranges(self, calibrators: Mapping[str, str]) -> dict[str, float]:
        """The range of every activation by its calibrator, as `insert_qdq` takes them.

        Raises:
            CalibrationError: a tensor is 0 everywhere.
        """
        return {tensor: self._range(tensor, calibrator) for tensor, calibrator in calibrators.items()}

    def deliver(self, half: onnx.ModelProto, amax: Mapping[str, float], *, precision: str | None = None) -> onnx.ModelProto:
        """The float16 graph `half` of the same decoder, changed as the float32 one was, with its Q/DQ pairs; `half` stays.

        `precision` may be another than the calibration's own: shift, scale and histograms serve both.
        """
        names = {product.name for product in self.found}
        found = [p for p in find_products(half, self._quantization.tiers, self._quantization.keep_fp16) if p.name in names]
        model, products = self._precondition(half, found, self.plain)
        return insert_qdq(model, products, amax, precision or self._precision)

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

    def _precondition(
        self, model: onnx.ModelProto, products: Sequence[Product], weights_from: onnx.ModelProto | None
    ) -> tuple[onnx.ModelProto, tuple[Product, ...]]:
        options = self._quantization
        return precondition(
            model, products, self._stats, shift=options.shift, smooth_alpha=options.smooth_alpha, weights_from=weights_from
        )

    def _range(self, tensor: str, calibrator: str) -> float:
        try:
            return threshold(self.histograms[tensor], calibrator, precision=self._precision)
        except CalibrationError as error:
            raise CalibrationError(f"{tensor}: {error}") from None


def _activations(products: Sequence[Product]) -> list[str]:
    return list(dict.fromkeys(product.activation for product in products))
