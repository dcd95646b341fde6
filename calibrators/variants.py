"""Quantized variants of one decoder by name, such as "int8-entropy-A": what an accuracy table compares.

A name is PRECISION-CALIBRATOR-TIERS, with "-plain" for neither shift nor scale nor second-order rounding nor entropy's floor.
Statistics and histograms are collected once per set of tiers and precision and shared by all calibrators; "auto" has its own
for the search, without the images that it judges by, and then once more on all.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from calibrators.calibration import Calibration
from calibrators.feeds import CalibrationFeeds
from calibrators.floor import entropy_floor
from calibrators.trials import HELD_OUT, TRIAL_IMAGES
from trt_sam.errors import InputError
from trt_sam.progress import Progress
from trt_sam.quantize.share import quantization_share
from trt_sam.recipe import CALIBRATORS, TIERS, QuantizationOptions

__all__ = ["VariantFile", "VariantName", "parse_variant", "write_variants"]


@dataclass(frozen=True)
class VariantName:
    """A variant's name, taken apart."""

    precision: str
    calibrator: str
    tiers: tuple[str, ...]
    plain: bool = False
    """Neither shift nor scale nor second-order rounding nor entropy's floor."""

    def __str__(self) -> str:
        return f"{self.precision}-{self.calibrator}-{''.join(self.tiers)}{'-plain' if self.plain else ''}"

    @property
    def quantization(self) -> QuantizationOptions:
        """As a recipe has it."""
        options = QuantizationOptions(calibrator=self.calibrator, tiers=self.tiers)
        if not self.plain:
            return options
        return dataclasses.replace(options, shift=False, smooth_alpha=None, second_order=False, floor=False)


@dataclass(frozen=True)
class VariantFile:
    """A quantized float16 graph, as `trt-sam calibrate` delivers it."""

    name: str
    path: Path
    description: str
    facts: dict[str, Any] = field(repr=False)
    """Ranges by tensor, the share of multiply-adds, and what "auto" decided."""


def parse_variant(text: str) -> VariantName:
    """Take "int8-entropy-AB" or "fp8-max-A-plain" apart.

    Raises:
        InputError: it is no such name.
    """
    pattern = rf"(int8|fp8)-({'|'.join(CALIBRATORS)})-([{''.join(TIERS)}]+)(-plain)?"
    match = re.fullmatch(pattern, text)
    if match is None or len(set(match[3])) != len(match[3]):
        raise InputError(
            f"variant {text!r} is unknown; write fp16, fp32 or PRECISION-CALIBRATOR-TIERS, such as int8-entropy-AB, of int8, "
            f"fp8, {', '.join(CALIBRATORS)}, letters of {''.join(TIERS)}; -plain at the end is for neither shift nor scale"
        )
    return VariantName(match[1], match[2], tuple(sorted(match[3])), match[4] is not None)


def write_variants(
    names: Sequence[VariantName],
    plain: onnx.ModelProto,
    half: onnx.ModelProto,
    feeds: CalibrationFeeds,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> Iterator[VariantFile]:
    """Write each variant to `folder`, in an order that shares calibrations, and give it as soon as it is there.

    Args:
        names: different ones.
        plain: the float32 graph, target gpu.
        half: the float16 graph of the same decoder.
        feeds: to calibrate on.
        folder: gets NAME.onnx of each.
        progress: told the fraction of one calibration, and its phase.

    Raises:
        CalibrationError: a tensor is 0 everywhere or not finite.
        GraphError: the graphs are not those of an export for target gpu.
        InferenceError: ONNX Runtime cannot run a graph.
        InputError: too few images for "auto".
    """

    def tell(phase: str, done: int, total: int) -> None:
        if progress is not None:
            progress(min(1.0, done / max(total, 1)), phase)

    shared: dict[tuple[tuple[str, ...], bool, str], list[VariantName]] = {}
    for name in names:
        if name.calibrator != "auto":
            shared.setdefault((name.tiers, name.plain, name.precision), []).append(name)
    for same in shared.values():
        calibration = Calibration(plain, feeds, same[0].quantization, same[0].precision, progress=tell)
        for name in same:
            calibrators, facts = {product.activation: name.calibrator for product in calibration.products}, {}
            if name.calibrator == "entropy" and name.quantization.floor:
                floor = entropy_floor(calibration, calibrators)
                calibrators, facts = floor.calibrators(calibrators), {"floor": dataclasses.asdict(floor)}
            yield _write(name, calibration, calibrators, half, folder, facts)
    for name in (each for each in names if each.calibrator == "auto"):
        used, held_out = feeds.split(HELD_OUT, most=TRIAL_IMAGES)
        calibration = Calibration(plain, used, name.quantization, name.precision, progress=tell)
        choice = calibration.choose(held_out)
        calibration = calibration.on(feeds)
        yield _write(name, calibration, calibration.calibrators(choice), half, folder, {"choice": choice.to_dict()})


def _write(
    name: VariantName,
    calibration: Calibration,
    calibrators: dict[str, str],
    half: onnx.ModelProto,
    folder: Path,
    facts: dict[str, Any],
) -> VariantFile:
    amax = calibration.ranges(calibrators)
    path = folder / f"{name}.onnx"
    onnx.save(calibration.deliver(half, amax), path)
    share = quantization_share(calibration.plain, calibration.found)
    facts = {"calibrators": calibrators, "ranges": amax, "alpha": calibration.alpha, "quantized_share": share, **facts}
    left_out = facts.get("choice", {}).get("left_out", [])
    description = (
        f"{name.precision.upper()}, {name.calibrator}, tiers {', '.join(name.tiers)}"
        f"{', neither shift nor scale' if name.plain else ''}: {100 * share:.0f} % of the multiply-adds"
        f"{'; float16 stay ' + ', '.join(left_out) if left_out else ''}"
    )
    return VariantFile(str(name), path, description, facts)
