"""What `trt-sam build --precision int8|fp8` does before the engine: photos, embeddings, calibration, quantized graph.

Every finished step is kept in the folder `calibration` of the output under a name made of all that went into it. So an
interrupted build goes on where it stopped, and a changed photo, checkpoint or option never meets an old result.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam import __version__
from trt_sam._files import sha256_of, write_atomically
from trt_sam.commands.calibrate import open_feeds, warn_of_coarse
from trt_sam.engine.manifest import Manifest, open_manifest
from trt_sam.errors import InputError, ManifestError
from trt_sam.imaging.photos import list_images, read_image
from trt_sam.progress import TerminalBar
from trt_sam.recipe import EngineRecipe

if TYPE_CHECKING:
    from calibrators.feeds import CalibrationFeeds
    from calibrators.sources import Encoder
    from trt_sam.engine.flavour import Flavour
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["STEPS", "calibration_feeds_of", "finished_set", "quantized_graph"]

STEPS = "calibration"
"""Folder of the finished steps inside the output."""


def quantized_graph(
    args: argparse.Namespace, checkpoint: Checkpoint, recipe: EngineRecipe, bar: TerminalBar | None = None
) -> tuple[Path, bool]:
    """The quantized graph for `recipe` in the output's `calibration` folder, and whether it was there already.

    Args:
        args: with the flags of `calibrate.add_calibration_arguments`, and `output`, the folder of the engine set.
        checkpoint: what is quantized.
        recipe: its graph's precision is int8 or fp8.
        bar: told how far it is.

    Raises:
        InputError: the calibration data cannot be used, or the folder cannot be written.
    """
    from calibrators.pipeline import quantize_decoder

    with calibration_feeds_of(args, checkpoint, recipe, bar) as feeds:
        about = {
            "trt_sam": __version__,
            "checkpoint": checkpoint.sha256,
            "feeds": feeds.fingerprint,
            "graph": dataclasses.asdict(recipe.graph),
            "quantization": dataclasses.asdict(recipe.quantization),
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        path = args.output / STEPS / f"{recipe.graph.precision}-{key}.onnx"
        report = path.with_suffix(".json")
        # The report is written last and has the graph's hash: without it, or with another hash, the step is not finished.
        if _recorded_hash(report) == (sha256_of(path) if path.is_file() else ""):
            return path, True
        report.unlink(missing_ok=True)
        done = quantize_decoder(checkpoint, feeds, recipe.graph, recipe.quantization, path, progress=bar)
    if bar is not None and done.coarse:
        print(file=sys.stderr)  # or the warning would go on in the bar's line
    warn_of_coarse(done)
    write_atomically(report, json.dumps({**done.to_dict(), "inputs": about, "sha256": sha256_of(path)}, indent=2) + "\n")
    return path, False


def finished_set(folder: Path, graphs: Sequence[Path], recipe: EngineRecipe, flavour: Flavour) -> Manifest | None:
    """The engine set in `folder` if it was built from exactly these graphs, recipe and TensorRT and is undamaged, else None."""
    try:
        manifest = open_manifest(folder)
    except ManifestError:
        return None
    same_graphs = [entry.onnx.sha256 for entry in manifest.graphs] == [sha256_of(graph) for graph in graphs]
    same_builder = (manifest.flavour, manifest.flavour_version) == (flavour.name, flavour.version)
    return manifest if same_graphs and same_builder and manifest.recipe == recipe else None


@contextlib.contextmanager
def calibration_feeds_of(
    args: argparse.Namespace, checkpoint: Checkpoint, recipe: EngineRecipe, bar: TerminalBar | None = None
) -> Iterator[CalibrationFeeds]:
    """The feeds of `--embeddings`, or of `--photos`, each embedded once and kept; usable inside the block."""
    if args.photos is None:
        yield open_feeds(args, recipe, checkpoint, Path(), bar)
        return
    photos = list_images([args.photos])
    store = args.output / STEPS / "embeddings"
    encoder = checkpoint.image_encoder()
    with contextlib.ExitStack() as stack:
        try:
            store.mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".set-", dir=store)))
        except OSError as error:
            raise InputError(f"cannot write {store}: {error.strerror}; choose another --output") from error
        for number, photo in enumerate(photos, start=1):
            _link(_embedded(photo, encoder, store), folder / f"{number:06d}_{photo.stem}.npz")
            if bar is not None:
                bar(number / len(photos), "photos")
        stored = argparse.Namespace(**{**vars(args), "photos": None, "embeddings": folder})
        yield open_feeds(stored, recipe, checkpoint, folder, bar)


def _embedded(photo: Path, encoder: Encoder, store: Path) -> Path:
    """The embedding file of a photo, under a name that its bytes, its file name and the encoder's weights decide."""
    from trt_sam.imaging.embeddings import Embedding, save_embedding

    name = hashlib.sha256(f"{sha256_of(photo)} {encoder.sha256} {photo.name}".encode()).hexdigest()[:32]
    path = store / f"{name}.npz"
    if not path.exists():
        rgb = read_image(photo)
        save_embedding(path, Embedding(encoder.embed(rgb), (rgb.shape[0], rgb.shape[1]), photo.name, encoder.sha256))
    return path


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _recorded_hash(report: Path) -> str | None:
    try:
        data: Any = json.loads(report.read_text(encoding="utf-8"))
        return str(data["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
