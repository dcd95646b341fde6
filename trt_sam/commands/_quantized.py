"""What `trt-sam build --precision int8|fp8` does before the engine: photos, embeddings, calibration, quantized graph.

Every finished step is kept in the folder `calibration` of the output under a name made of all that went into it. So an
interrupted build goes on where it stopped, and a changed photo, checkpoint or option never meets an old result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._files import sha256_of, write_atomically
from trt_sam._version import __version__
from trt_sam.commands._calibration import FEW_IMAGES, warn_of_coarse, warn_of_few
from trt_sam.engine.manifest import Manifest, open_manifest
from trt_sam.errors import InputError, ManifestError
from trt_sam.progress import Stages
from trt_sam.recipe import EngineRecipe

if TYPE_CHECKING:
    from calibrators.feeds import CalibrationFeeds
    from calibrators.request import CalibrationRequest
    from calibrators.shipped import ShippedRanges
    from trt_sam.engine.flavour import Flavour
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["EMBEDDINGS", "STEPS", "Quantized", "finished_set", "quantized_graph", "shipped_graph"]

STEPS = "calibration"
"""Folder of the finished steps inside the output."""
EMBEDDINGS = "embeddings"
"""Folder of the embedded photos inside `STEPS`."""


@dataclass(frozen=True)
class Quantized:
    """A quantized graph."""

    path: Path
    was_there: bool
    """Whether an earlier build has made it."""
    judged: str
    """How near its masks are to FP32's, and on which images, in words; "" where that is not known."""


def quantized_graph(
    request: CalibrationRequest, checkpoint: Checkpoint, recipe: EngineRecipe, steps: Path, stages: Stages
) -> Quantized:
    """The quantized graph for `recipe` in the folder `steps`, judged on images that were held back if there are enough.

    Args:
        request: what to calibrate on.
        checkpoint: what is quantized.
        recipe: its graph's precision is int8 or fp8.
        steps: the folder of finished steps.
        stages: with "data" and "calibrate", each followed by " mask" for a graph that takes masks.

    Raises:
        InputError: the calibration data cannot be used, or the folder cannot be written.
    """
    from calibrators.pipeline import quantize_decoder

    of = " mask" if recipe.graph.mask_input else ""
    with request.open(checkpoint, stages.begin(f"data{of}", f"reading {request.data}")) as everything:
        feeds, judges = _hold_back(everything)
        about = {
            "trt_sam": __version__,
            "checkpoint": checkpoint.sha256,
            "feeds": feeds.fingerprint,
            "graph": dataclasses.asdict(recipe.graph),
            "quantization": dataclasses.asdict(recipe.quantization),
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        path = steps / f"{recipe.graph.precision}-{key}.onnx"
        report = path.with_suffix(".json")
        # The report is written last and has the graph's hash: without it, or with another hash, the step is not finished.
        if _recorded_hash(report) == (sha256_of(path) if path.is_file() else ""):
            return Quantized(path, True, _judged(report))
        report.unlink(missing_ok=True)
        warn_of_few(everything.num_images)
        line = f"calibrating {recipe.graph.precision} on {feeds.num_images} images"
        progress = stages.begin(f"calibrate{of}", line, phases=True)
        done = quantize_decoder(checkpoint, feeds, recipe.graph, recipe.quantization, path, judges=judges, progress=progress)
        warn_of_coarse(done)
    write_atomically(report, json.dumps({**done.to_dict(), "inputs": about, "sha256": sha256_of(path)}, indent=2) + "\n")
    return Quantized(path, False, _judged(report))


def shipped_graph(ranges: ShippedRanges, checkpoint: Checkpoint, recipe: EngineRecipe, steps: Path) -> Quantized:
    """As `quantized_graph`, by ranges that come with the package, without any data."""
    from calibrators.shipped import quantize_by_ranges

    about = {
        "trt_sam": __version__,
        "checkpoint": checkpoint.sha256,
        "ranges": ranges.to_dict(),
        "graph": dataclasses.asdict(recipe.graph),
        "quantization": dataclasses.asdict(recipe.quantization),
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = steps / f"{recipe.graph.precision}-{key}.onnx"
    report = path.with_suffix(".json")
    if _recorded_hash(report) == (sha256_of(path) if path.is_file() else ""):
        return Quantized(path, True, "")
    report.unlink(missing_ok=True)
    done = quantize_by_ranges(checkpoint, ranges, recipe.graph, recipe.quantization, path)
    write_atomically(report, json.dumps({**done, "sha256": sha256_of(path)}, indent=2) + "\n")
    return Quantized(path, False, "")


def finished_set(folder: Path, graphs: Sequence[Path], recipe: EngineRecipe, flavour: Flavour) -> Manifest | None:
    """The engine set in `folder` if it was built from exactly these graphs, recipe and TensorRT and is undamaged, else None."""
    try:
        manifest = open_manifest(folder)
    except ManifestError:
        return None
    same_graphs = [entry.onnx.sha256 for entry in manifest.graphs] == [sha256_of(graph) for graph in graphs]
    same_builder = (manifest.flavour, manifest.flavour_version) == (flavour.name, flavour.version)
    # Another name of the same weights makes no other engines.
    same_recipe = replace(manifest.recipe, checkpoint=recipe.checkpoint) == recipe
    return manifest if same_graphs and same_builder and same_recipe else None


def _hold_back(feeds: CalibrationFeeds) -> tuple[CalibrationFeeds, CalibrationFeeds | None]:
    """What to calibrate with, and what to judge by: None where there are too few images to do without some."""
    from calibrators.trials import HELD_OUT, TRIAL_IMAGES

    if feeds.num_images < FEW_IMAGES:
        return feeds, None
    try:
        return feeds.split(HELD_OUT, most=TRIAL_IMAGES)
    except InputError:  # copies of one image
        return feeds, None


def _judged(report: Path) -> str:
    data: Any = json.loads(report.read_text(encoding="utf-8"))
    try:
        score, held_back = data["agreement"], data["held_back"]
        where = f"{held_back} images held back" if held_back else "images of the calibration"
        return (
            f"mask IoU against FP32 {score['mean_iou']:.4f} on average, {score['p5_iou']:.4f} at the 5th percentile "
            f"({score['prompts']} prompts on {where})"
        )
    except (KeyError, TypeError):  # of another version
        return ""


def _recorded_hash(report: Path) -> str | None:
    try:
        data: Any = json.loads(report.read_text(encoding="utf-8"))
        return str(data["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
