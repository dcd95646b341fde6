"""Ranges that come with the package for a known checkpoint, so that INT8 can be built before anyone has a calibration set.

One JSON file per checkpoint: of each tensor its shift, scale, mixing and ranges by calibrator, and how they were made. It is
bound to the decoder's weights and to the kind of image encoder: the decoder of MobileSAM is SAM ViT-H's too, but sees other
embeddings.

Weights are rounded to the nearest here, for second-order rounding needs the inputs' moments, which are as large as the weights;
the bias still makes good for what rounding does to the mean. One's own photos are a little better: see benchmarks/results.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from calibrators.calibration import Calibration
from calibrators.thresholds import THRESHOLDS
from trt_sam._files import atomic_path
from trt_sam.errors import InputError
from trt_sam.graph.export import export_decoder
from trt_sam.quantize.share import (
    ChannelChange,
    InputMoments,
    apply_changes,
    find_products,
    insert_qdq,
    product_groups,
    quantization_share,
)
from trt_sam.recipe import GraphOptions, QuantizationOptions

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["ShippedRanges", "ShippedTensor", "quantize_by_ranges", "ranges_of", "shipped_ranges"]

FloatArray = npt.NDArray[np.float64]

_FORMAT = 1
_DIGITS = 6
"""Significant digits of what is stored: far finer than float16, which the graph keeps them in."""


@dataclass(frozen=True)
class ShippedTensor:
    """What is known of one quantized tensor [..., channels]."""

    change: ChannelChange
    mean: FloatArray = field(repr=False)
    """float64 [channels], after shift and scale."""
    amax: Mapping[str, float]
    """The range by calibrator."""


@dataclass(frozen=True)
class ShippedRanges:
    """What is shipped for one checkpoint."""

    checkpoint: str
    """Its name in the catalogue."""
    decoder_sha256: str
    encoder_kind: str
    made_from: Mapping[str, Any]
    """Photographs, prompts, seed, alpha, versions."""
    tensors: Mapping[str, ShippedTensor]
    """By activation, as `precondition` names it."""

    def to_dict(self) -> dict[str, Any]:
        """As the file has it."""
        tensors = {
            name: {
                "shift": _short(each.change.shift),
                "scale": _short(each.change.scale),
                "mean": _short(each.mean),
                "amax": {calibrator: float(f"{value:.{_DIGITS}g}") for calibrator, value in each.amax.items()},
                **({} if each.change.mix is None else {"mix": _short_mix(each.change.mix)}),
            }
            for name, each in self.tensors.items()
        }
        return {**dataclasses.asdict(dataclasses.replace(self, tensors={})), "format": _FORMAT, "tensors": tensors}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ShippedRanges:
        """Undo `to_dict`."""
        tensors = {
            name: ShippedTensor(
                ChannelChange(
                    np.array(each["shift"], np.float64),
                    np.array(each["scale"], np.float64),
                    np.array(each["mix"], np.float64) if "mix" in each else None,
                ),
                np.array(each["mean"], np.float64),
                each["amax"],
            )
            for name, each in data["tensors"].items()
        }
        names = ("checkpoint", "decoder_sha256", "encoder_kind", "made_from")
        return cls(**{name: data[name] for name in names}, tensors=tensors)


def shipped_ranges(checkpoint: Checkpoint) -> ShippedRanges | None:
    """What the package has for this checkpoint, by its weights and not by its name; None for nothing."""
    folder = resources.files("trt_sam") / "data" / "ranges"
    if not folder.is_dir():
        return None
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        found = json.loads(file.read_text(encoding="utf-8"))
        if (found["decoder_sha256"], found["encoder_kind"]) == (checkpoint.sha256, checkpoint.encoder_kind):
            return ShippedRanges.from_dict(found)
    return None


def ranges_of(calibration: Calibration, checkpoint: Checkpoint, name: str, made_from: Mapping[str, Any]) -> ShippedRanges:
    """What is to be shipped of a calibration with second-order rounding (its moments have the means).

    Raises:
        CalibrationError: a tensor is 0 everywhere.
    """
    amax = {each: calibration.ranges({p.activation: each for p in calibration.products}) for each in THRESHOLDS}
    tensors = {
        tensor: ShippedTensor(change, calibration.moments[tensor].mean, {each: amax[each][tensor] for each in THRESHOLDS})
        for tensor, change in calibration.changes.items()
    }
    about = {**made_from, "alpha": calibration.alpha}
    return ShippedRanges(name, checkpoint.sha256, checkpoint.encoder_kind, about, tensors)


def quantize_by_ranges(
    checkpoint: Checkpoint,
    ranges: ShippedRanges,
    options: GraphOptions,
    quantization: QuantizationOptions,
    output: str | os.PathLike[str],
) -> dict[str, Any]:
    """Write the INT8 graph of `checkpoint` by ranges that are known, without any calibration data.

    Args:
        checkpoint: as `load_checkpoint` gives it.
        ranges: of it.
        options: of the graph; its precision is "int8".
        quantization: tiers, keep_fp16 and calibrator are used; "auto" takes the range of "max". Shift and scale are shipped.
        output: the `.onnx` file, written whole or not at all.

    Returns:
        What was done, as JSON-able data.

    Raises:
        ExportError: the graph does not match PyTorch.
        InputError: the ranges are of other tensors than these tiers', another precision, or `output` cannot be written.
    """
    if options.precision != "int8":
        raise InputError(f"the ranges that come with the package are int8's, not {options.precision}'s; give photos")
    calibrator = "max" if quantization.calibrator == "auto" else quantization.calibrator
    wanted = {
        "plain": GraphOptions(precision="fp32", target="gpu", mask_input=options.mask_input),
        "half": dataclasses.replace(options, precision="fp16"),
    }
    with atomic_path(output) as temporary, tempfile.TemporaryDirectory() as folder:
        graphs = {}
        for name, each in wanted.items():
            path = Path(folder) / f"{name}.onnx"
            export_decoder(checkpoint.decoder, path, each, checkpoint_sha256=checkpoint.sha256)
            graphs[name] = onnx.load(path)
        found = find_products(graphs["half"], quantization.tiers, quantization.keep_fp16)
        changes = {name: each.change for name, each in ranges.tensors.items()}
        model, products = apply_changes(graphs["half"], found, changes, weights_from=graphs["plain"])
        missing = sorted({product.group for product in products if product.activation not in ranges.tensors})
        if missing:
            raise InputError(
                f"no ranges are shipped for {', '.join(missing)} of tiers {', '.join(quantization.tiers)}; give --photos DIR"
            )
        used = {product.activation: ranges.tensors[product.activation] for product in products}
        amax = {name: each.amax[calibrator] for name, each in used.items()}
        moments = {name: InputMoments(each.mean, None) for name, each in used.items()}
        quantized = insert_qdq(model, products, amax, options.precision, moments=moments)
        entry = quantized.metadata_props.add()
        about = {"shipped": ranges.checkpoint, "made_from": dict(ranges.made_from), "calibrator": calibrator}
        entry.key, entry.value = "trt_sam.calibration", json.dumps(about)
        onnx.save(quantized, temporary)
        share = quantization_share(graphs["half"], found)
    groups = list(product_groups(found))
    return {**about, "path": str(output), "ranges": amax, "groups": groups, "quantized_share": share}


def _short_mix(mix: FloatArray) -> list[list[list[float]]]:
    return [[_short(row) for row in head] for head in mix]


def _short(values: FloatArray) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]
