"""From a checkpoint and photographs to a quantized image encoder: the way of `pipeline`, judged end to end.

The float32 graph is calibrated; the float16 graph of the same encoder gets the same shift, scale and ranges, and Q/DQ pairs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from calibrators.calibration import Calibration
from calibrators.encoder_trials import EncoderTrials
from calibrators.pictures import PictureFeeds
from calibrators.report import CalibrationReport, versions
from calibrators.stages import CalibrationStages
from trt_sam._files import atomic_path
from trt_sam.graph.encoder import export_encoder
from trt_sam.imaging.frame import to_frame
from trt_sam.imaging.photos import read_image
from trt_sam.progress import Progress
from trt_sam.quantize.share import quantization_share
from trt_sam.recipe import ENCODER_QUANTIZATION, GraphOptions, QuantizationOptions
from trt_sam.runtime.onnx_encoder import OnnxEncoder

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["quantize_encoder"]

_WEIGHTS = {"export": 6.0, "channels": 3.0, "counts": 3.0, "check": 1.0, "judge": 2.0}
"""About how long the stages take, for the progress bar."""
_JUDGED_IMAGES, _JUDGED_PROMPTS = 8, 8


def quantize_encoder(
    checkpoint: Checkpoint,
    feeds: PictureFeeds,
    output: str | os.PathLike[str],
    *,
    quantization: QuantizationOptions = ENCODER_QUANTIZATION,
    judges: PictureFeeds | None = None,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Calibrate the image encoder of `checkpoint` on `feeds` and write its INT8 graph.

    Args:
        checkpoint: as `load_checkpoint` gives it.
        feeds: the photographs.
        output: the `.onnx` file, written whole or not at all.
        quantization: how. "auto" is "max": a choice by masks would run the encoder hundreds of times. Prompts and the floor are
            a decoder's.
        judges: photographs that are not calibrated on, to judge the masks by; None for some of those that are.
        progress: told how far it is.

    Raises:
        CalibrationError: the photographs tell no range for a tensor.
        CheckpointError: there is no image encoder.
        ExportError: a graph does not match PyTorch, or there is none of this encoder.
        InferenceError: ONNX Runtime cannot run a graph, or the quantized one gives NaN.
        InputError: `output` cannot be written.
        RecipeError: `keep_fp16` names no group of the encoder, or leaves nothing.
    """
    from trt_sam.runtime.torch_runner import TorchRunner

    calibrator = "max" if quantization.calibrator == "auto" else quantization.calibrator
    quantization = dataclasses.replace(quantization, calibrator=calibrator, floor=False)
    stages = CalibrationStages(progress, _WEIGHTS)
    with atomic_path(output) as temporary, tempfile.TemporaryDirectory() as folder:
        plain, half = _export(checkpoint, Path(folder), feeds, stages)
        work = Calibration(plain, feeds, quantization, "int8", progress=stages)
        calibrators = work.calibrators()
        amax, rows = work.ranges(calibrators), work.rows(calibrators)
        delivered = work.deliver(half, amax)
        _describe(delivered, feeds, quantization, calibrators)
        onnx.save(delivered, temporary)
        stages.start("check")
        _check_runs(temporary, feeds)
        stages.start("judge")
        pictures = (feeds if judges is None else judges).pictures[:_JUDGED_IMAGES]
        decode = TorchRunner(checkpoint.decoder).run
        trials = EncoderTrials(plain, decode, pictures, prompts=_JUDGED_PROMPTS, seed=quantization.seed)
        agreement = trials.score(work.quantized(amax))
    stages.finish()
    return CalibrationReport(
        path=str(output),
        options=GraphOptions(precision="int8", target="gpu"),
        quantization=quantization,
        checkpoint_sha256=checkpoint.sha256,
        tensors=rows,
        quantized_share=quantization_share(plain, work.found),
        left_out=quantization.keep_fp16,
        feeds=feeds.to_dict(),
        agreement=agreement,
        versions=versions(),
        held_back=0 if judges is None else len(pictures),
    )


def _export(
    checkpoint: Checkpoint, folder: Path, feeds: PictureFeeds, stages: CalibrationStages
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The float32 graph to calibrate and the float16 one that is delivered, each compared with PyTorch on one photograph."""
    encoder = checkpoint.image_encoder()
    samples = [to_frame(read_image(feeds.pictures[0].path))]
    models = []
    for number, precision in enumerate(("fp32", "fp16")):
        stages("export", number, 2)
        path = folder / f"{precision}.onnx"
        export_encoder(encoder, path, precision=precision, checkpoint_sha256=checkpoint.sha256, samples=samples)
        models.append(onnx.load(path))
    return models[0], models[1]


def _describe(
    model: onnx.ModelProto, feeds: PictureFeeds, quantization: QuantizationOptions, calibrators: Mapping[str, str]
) -> None:
    """Put into the graph's metadata what it was calibrated on, and how."""
    about = {
        **feeds.to_dict(),
        "alpha": quantization.smooth_alpha,
        "quantization": dataclasses.asdict(quantization),
        "calibrators": dict(calibrators),
    }
    entry = model.metadata_props.add()
    entry.key, entry.value = "trt_sam.calibration", json.dumps(about)


def _check_runs(path: Path, feeds: PictureFeeds) -> None:
    """Run the delivered graph once; what ONNX Runtime cannot run or what is not finite is never written."""
    feed = feeds.pictures[0].feed()
    encoder = OnnxEncoder(path)
    encoder.embed_frame(feed["image"], feed["image_size"])
    encoder.close()
