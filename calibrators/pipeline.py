"""From a checkpoint and calibration feeds to a quantized graph, with a report of every range.

The float32 graph is calibrated: channel statistics of what the products read, the exact shift and scale, histograms of the
result, a range for each. The float16 graph of the same decoder gets the same shift, scale and ranges, and the Q/DQ pairs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from calibrators.calibration import Calibration
from calibrators.feeds import CalibrationFeeds
from calibrators.floor import entropy_floor
from calibrators.report import CalibrationReport, versions
from calibrators.stages import CalibrationStages
from calibrators.trials import HELD_OUT, TRIAL_IMAGES, Trials, trial_feeds
from trt_sam._files import atomic_path
from trt_sam.errors import CalibrationError, InputError
from trt_sam.graph.export import export_decoder
from trt_sam.progress import Progress
from trt_sam.quantize.share import quantization_share
from trt_sam.recipe import GraphOptions, QuantizationOptions
from trt_sam.runtime.onnx_runner import OnnxRunner

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["quantize_decoder"]

_log = logging.getLogger(f"trt_sam.{__name__}")

_PRECISIONS = ("int8", "fp8")
_WEIGHTS = {"export": 4, "channels": 3, "counts": 3, "trials": 12, "check": 2}
"""About how long the stages take, for the progress bar."""
_CHECKED_IMAGES, _CHECKED_PROMPTS = 4, 4


def quantize_decoder(
    checkpoint: Checkpoint,
    feeds: CalibrationFeeds,
    options: GraphOptions,
    quantization: QuantizationOptions,
    output: str | os.PathLike[str],
    *,
    judges: CalibrationFeeds | None = None,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Calibrate `checkpoint` on `feeds` and write the quantized graph.

    Args:
        checkpoint: as `load_checkpoint` gives it.
        feeds: with earlier masks where the graph takes them.
        options: of the graph; its precision is "int8" or "fp8".
        quantization: how; its prompts_per_image and seed are only recorded, the feeds have theirs.
        output: the `.onnx` file, written whole or not at all.
        judges: images that are not calibrated on, to judge the masks by; None for some of those that are.
        progress: told how far it is.

    Raises:
        CalibrationError: the data tell no range for a tensor, or nothing can be quantized at a bearable cost ("auto").
        ExportError: a graph does not match PyTorch.
        InferenceError: ONNX Runtime cannot run a graph.
        InputError: options that do not fit each other, too few images for "auto", or `output` cannot be written.
    """
    _check(feeds, options, quantization)
    # Before the long work: one image cannot be split.
    searched, held_out = feeds.split(HELD_OUT, most=TRIAL_IMAGES) if quantization.calibrator == "auto" else (feeds, None)
    weights = {name: weight for name, weight in _WEIGHTS.items() if quantization.calibrator == "auto" or name != "trials"}
    stages = CalibrationStages(progress, weights)
    with atomic_path(output) as temporary, tempfile.TemporaryDirectory() as folder:
        plain, half = _export(checkpoint, options, Path(folder), stages)
        work = Calibration(plain, searched, quantization, options.precision, progress=stages)
        choice = None
        if held_out is not None:
            choice = work.choose(held_out)
            # Ranges of a quarter less of the images cost more than the choice gains (see benchmarks/results/int8_tried.md).
            work = work.on(feeds)
        calibrators = work.calibrators(choice)
        floor = entropy_floor(work, calibrators) if quantization.floor and quantization.calibrator == "entropy" else None
        calibrators = calibrators if floor is None else floor.calibrators(calibrators)
        amax = work.ranges(calibrators)
        delivered = work.deliver(half, amax)
        _describe(delivered, feeds, held_out, quantization, calibrators, work.alpha)
        onnx.save(delivered, temporary)
        stages.start("check")
        _check_runs(temporary, feeds, options)
        few = {"images": _CHECKED_IMAGES, "prompts": _CHECKED_PROMPTS}
        judged = trial_feeds(feeds.with_sizes(), **few) if judges is None else trial_feeds(judges.with_sizes())
        agreement = Trials(plain, judged).score(work.quantized(amax))
    stages.finish()
    for row in (rows := work.rows(calibrators)):
        _log.debug("%s: %s, range %.4g of the largest %.4g", row.tensor, row.calibrator, row.amax, row.largest)
    return CalibrationReport(
        path=str(output),
        options=options,
        quantization=quantization,
        checkpoint_sha256=checkpoint.sha256,
        tensors=rows,
        quantized_share=quantization_share(plain, work.found),
        left_out=(*quantization.keep_fp16, *(choice.left_out if choice is not None else ())),
        feeds=feeds.to_dict(),
        agreement=agreement,
        versions=versions(),
        choice=choice,
        floor=floor,
        held_back=0 if judges is None else min(judges.num_images, TRIAL_IMAGES),
    )


def _check(feeds: CalibrationFeeds, options: GraphOptions, quantization: QuantizationOptions) -> None:
    if options.precision not in _PRECISIONS:
        raise InputError(
            f"precision is {options.precision!r}, must be one of {', '.join(_PRECISIONS)}; trt-sam export writes the others"
        )
    if quantization.method != "explicit":
        raise InputError(
            f"method is {quantization.method!r}: a graph is quantized explicitly; implicit is for building with TensorRT 10"
        )
    if options.mask_input and not feeds.options.mask_input:
        raise InputError("the graph takes mask_input, but the calibration feeds bring no masks; make them with mask_input")


def _export(
    checkpoint: Checkpoint, options: GraphOptions, folder: Path, stages: CalibrationStages
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The float32 graph to calibrate, with the contract's four masks, and the float16 one that is asked for."""
    wanted = {
        "plain": GraphOptions(precision="fp32", target="gpu", mask_input=options.mask_input),
        "half": dataclasses.replace(options, precision="fp16"),
    }
    models = []
    for number, (name, each) in enumerate(wanted.items()):
        stages("export", number, len(wanted))
        path = folder / f"{name}.onnx"
        export_decoder(checkpoint.decoder, path, each, checkpoint_sha256=checkpoint.sha256)
        models.append(onnx.load(path))
    return models[0], models[1]


def _describe(
    model: onnx.ModelProto,
    feeds: CalibrationFeeds,
    held_out: CalibrationFeeds | None,
    quantization: QuantizationOptions,
    calibrators: Mapping[str, str],
    alpha: float | None,
) -> None:
    """Put into the graph's metadata what it was calibrated on, and how."""
    about = {
        **{key: value for key, value in feeds.to_dict().items() if key not in ("prompts_by_kind", "images_without_prompts")},
        # What "auto" chose by; its ranges were then measured on all images.
        "held_out_sha256": [] if held_out is None else held_out.to_dict()["image_sha256"],
        "alpha": alpha,
        "quantization": dataclasses.asdict(quantization),
        "calibrators": dict(calibrators),
    }
    entry = model.metadata_props.add()
    entry.key, entry.value = "trt_sam.calibration", json.dumps(about)


def _check_runs(path: Path, feeds: CalibrationFeeds, options: GraphOptions) -> None:
    """Run the delivered graph once; what ONNX Runtime cannot run or what is not finite is never written."""
    feed = dict(next(iter(feeds)))
    if options.full_resolution:
        feed["orig_im_size"] = np.array([96, 128], np.int64)
    if not options.mask_input:
        feed = {name: array for name, array in feed.items() if name not in ("mask_input", "has_mask_input")}
    with OnnxRunner(path) as runner:
        for name, array in runner.run(feed).items():
            if not np.isfinite(array).all():
                raise CalibrationError(f"the quantized graph gives {name} that are not finite; try other tiers or keep_fp16")
