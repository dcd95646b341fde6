"""The variants that `accuracy` judges: exported and calibrated here, or graphs that the user brings."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam.commands._accuracy_images import Images, open_images
from trt_sam.commands._options import decoder_for_prompts
from trt_sam.errors import InputError
from trt_sam.progress import Stages
from trt_sam.recipe import GraphOptions

if TYPE_CHECKING:
    import onnx

    from trt_sam.accuracy.measurement import Variant
    from trt_sam.model.checkpoint import Checkpoint
    from trt_sam.runtime.interface import Runner

FLOAT = ("fp16", "fp32")
"""Variants that need no calibration."""


class VariantMaker:
    """Makes the variants in a temporary folder."""

    def __init__(self, args: argparse.Namespace, checkpoint: Checkpoint, folder: Path, stages: Stages) -> None:
        self._args, self._checkpoint, self._folder, self._stages = args, checkpoint, folder, stages
        self.about: dict[str, Any] = {}
        """Of the calibration, for the report's head."""
        self.facts: dict[str, Any] = {}
        """By variant: its ranges."""

    def open_images(self, *, calibrate: bool) -> Images:
        folder = self._folder / "calibration"
        folder.mkdir()
        progress = self._stages.begin("images", "opening the images")
        return open_images(self._args, self._checkpoint, folder, calibrate=calibrate, progress=progress)

    def make(self, names: Sequence[str], images: Images) -> Iterator[Variant]:
        from calibrators.feeds import FeedOptions, calibration_feeds
        from calibrators.variants import parse_variant, write_variants

        if "fp32" in names:
            self._export("fp32")
            yield graph_variant("fp32", self._path("fp32"), self._checkpoint)
        if "fp16" in names:
            self._export("fp16")
            yield graph_variant("fp16", self._path("fp16"), self._checkpoint)
        if images.calibration is None:
            return
        options = FeedOptions(prompts_per_image=self._args.calibration_prompts, seed=self._args.seed, mask_input=True)
        decode = decoder_for_prompts(self._args, self._checkpoint)
        feeds = calibration_feeds(images.calibration, options, encoder_sha256=images.encoder_sha256, decode=decode)
        self.about = {
            "calibration": f"{feeds.num_images} other images, {feeds.num_prompts} prompts "
            f"({shares_text(feeds.to_dict()['shares'])}), fingerprint {feeds.fingerprint[:16]}"
        }
        parsed = [parse_variant(name) for name in names if name not in FLOAT]
        spelled = {str(name): text for name, text in zip(parsed, (n for n in names if n not in FLOAT), strict=True)}
        plain, half = self._export("fp32"), self._export("fp16")
        progress = self._stages.begin("calibrate", f"calibrating {len(parsed)} variants", phases=True)
        for written in write_variants(parsed, plain, half, feeds, self._folder, progress=progress):
            name = spelled[written.name]
            self.facts[name] = written.facts
            yield dataclasses.replace(graph_variant(name, written.path, self._checkpoint), description=written.description)

    def _export(self, precision: str) -> onnx.ModelProto:
        import onnx

        from trt_sam.graph.export import export_decoder

        path = self._path(precision)
        if not path.exists():
            self._stages.begin("export", f"exporting the {precision} graph")
            options = GraphOptions(precision=precision, target="gpu", mask_input=True)
            export_decoder(self._checkpoint.decoder, path, options, checkpoint_sha256=self._checkpoint.sha256)
        return onnx.load(path)

    def _path(self, precision: str) -> Path:
        return self._folder / f"{precision}.onnx"


def graph_variant(name: str, path: Path, checkpoint: Checkpoint) -> Variant:
    """A graph as a variant, opened once now to see that it can be, and that it is of this checkpoint."""
    from trt_sam.accuracy.measurement import Variant
    from trt_sam.runtime.emulated_runner import EmulationRunner
    from trt_sam.runtime.onnx_runner import OnnxRunner

    with OnnxRunner(path) as runner:
        precision = runner.options.precision
        if runner.options.best_mask:
            raise InputError(f"{path} gives the selected mask only; measure a graph without --best-mask")
        if runner.checkpoint_sha256 not in ("", checkpoint.sha256):
            raise InputError(
                f"{path} holds the weights {runner.checkpoint_sha256[:12]}, the checkpoint {checkpoint.source} has "
                f"{checkpoint.sha256[:12]}; name the checkpoint that the graph was made from"
            )

    def open_runner() -> Runner:
        runner = OnnxRunner(path, emulate_quantization=True)
        return EmulationRunner(path, runner) if precision == "fp16" else runner

    described = {"fp16": "FP16, every float16 tensor rounded in emulation", "fp32": "the FP32 graph in ONNX Runtime"}
    return Variant(name, open_runner, described.get(precision, f"{precision.upper()} graph {path.name}"))


def takes_masks(path: Path) -> bool:
    from trt_sam.runtime.onnx_runner import OnnxRunner

    with OnnxRunner(path) as runner:
        return any(spec.name == "mask_input" for spec in runner.inputs)


def shares_text(of: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0%}" for kind, share in of.items())
