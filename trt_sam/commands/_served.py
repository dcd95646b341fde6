"""The model that `serve` serves: a set on disk, or a checkpoint that becomes one in the cache."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam.commands._click_cache import ClickCache
from trt_sam.commands._encoder_set import write_encoder_set
from trt_sam.commands._kept_sets import GRAPHS_SUFFIX, UNUSED_DAYS, hold, hold_whole, remove_unused
from trt_sam.commands._options import gpu_number
from trt_sam.contract import EMBEDDING_BYTES
from trt_sam.download import nearest_names
from trt_sam.errors import InputError, did_you_mean
from trt_sam.machine.driver import examine_driver
from trt_sam.progress import Stages
from trt_sam.recipe import EngineRecipe, GraphOptions
from trt_sam.recipe_toml import load_recipe
from trt_sam.runtime.set_graphs import graphs_of_set, is_set

if TYPE_CHECKING:
    from trt_sam.serve.model import Model

__all__ = ["cached_set", "open_model"]

_log = logging.getLogger(__name__)


def open_model(args: argparse.Namespace) -> Model:
    """Open what `args.set` names on `args.device`, exported or built into the cache where it is a checkpoint.

    Raises:
        TrtSamError: it is neither, has no image encoder, or cannot be opened.
    """
    device = _device(args.device)
    name = Path(args.set).name if is_set(args.set) else args.set
    folder = Path(args.set) if is_set(args.set) else cached_set(args.set, device)
    return _on_cpu(args, folder, name) if device is None else _on_gpu(args, folder, name, device)


def cached_set(source: str, device: int | None) -> Path:
    """The set of the checkpoint `source` in the cache, written there where it is missing: graphs, or engines for GPU `device`.

    It stays there until this process ends; the sets that other versions left unused go when a new one is written.

    Raises:
        TrtSamError: it is no checkpoint, or cannot be exported.
    """
    cache = ClickCache.of(source)
    if cache is None:
        near = nearest_names(source)
        meant = did_you_mean(near)
        raise InputError(
            f"{source} is neither a set with a manifest nor a checkpoint of this machine; {meant}give a folder of trt-sam "
            "export --encoder, mobile_sam or another name of trt-sam download --list, or a .pth"
        )
    folder = cache.set_folder("graphs" if device is None else "engines")
    if hold_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Stages({"load": 1, "export": 8, "engine": 8}) as stages:
        if device is None:
            recipe = EngineRecipe(graph=GraphOptions(precision="fp32", target="cpu"))
            write_encoder_set(source, recipe, folder, stages, decode_mask=True)
        else:
            _build(source, folder, stages, device)
    hold(folder)
    removed = remove_unused(folder.parent, cache.version)
    if removed:
        _log.info("sets of other versions removed from the cache, unused for %d days: %d", UNUSED_DAYS, len(removed))
    return folder


def _device(asked: str) -> int | None:
    """The GPU's number; None for the CPU."""
    if asked == "cpu":
        return None
    if asked != "auto":
        return gpu_number(asked)
    has_pycuda = importlib.util.find_spec("pycuda") is not None
    return 0 if has_pycuda and examine_driver().gpus else None


def _room(args: argparse.Namespace) -> int:
    """Bytes for the images that are kept, and for one that is on its way in while another goes."""
    return max(args.images, 1) * EMBEDDING_BYTES + EMBEDDING_BYTES


def _on_cpu(args: argparse.Namespace, folder: Path, name: str) -> Model:
    from trt_sam.runtime.onnx_runner import OnnxRunner
    from trt_sam.serve.model import Model

    runner = OnnxRunner(folder, threads=args.threads, image_bytes=_room(args))
    try:
        return Model(runner, _plain(name), executed=f"ONNX Runtime ({runner.options.precision} graph, CPU)")
    except BaseException:
        runner.close()
        raise


def _on_gpu(args: argparse.Namespace, folder: Path, name: str, device: int) -> Model:
    from trt_sam.runner import DecoderRunner
    from trt_sam.runtime.onnx_encoder import OnnxEncoder
    from trt_sam.serve.model import Model

    runner = DecoderRunner.open(folder, device=device, image_bytes=_room(args))
    try:
        encoder: Any = None
        if not getattr(runner, "takes_photos", False):
            graph = graphs_of_set(folder).get("encode")
            encoder = None if graph is None else OnnxEncoder(graph, threads=args.threads)
        return Model(runner, _plain(name), encoder=encoder, executed=f"TensorRT on cuda:{device}")
    except BaseException:
        runner.close()
        raise


def _build(source: str, folder: Path, stages: Stages, device: int) -> None:
    """Export in FP16 and build engines for this GPU."""
    from trt_sam.engine.engine_set import GraphSource, build_set, copy_graph
    from trt_sam.engine.flavour import choose_flavour

    recipe = dataclasses.replace(load_recipe("mobile_sam"), checkpoint=source, decode_mask=True)
    flavour = choose_flavour(None)  # first: it may be missing, and exporting takes long
    # A name of this process alone: another one may build the same set.
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", suffix=GRAPHS_SUFFIX, dir=folder.parent) as graphs:
        write_encoder_set(source, recipe, Path(graphs), stages, decode_mask=True)
        paths = graphs_of_set(graphs)
        sources = [GraphSource(copy_graph(paths[role])) for role in ("decode", "decode_mask")]
        progress = stages.begin("engine", f"building with {flavour.title}")
        encoder = GraphSource(copy_graph(paths["encode"]))
        build_set(sources, recipe, folder, flavour=flavour, encoder=encoder, progress=progress, device=device)


def _plain(name: str) -> str:
    """A name for paths and people: what a file system or an address would not take becomes a dash."""
    stem = Path(name).name.removesuffix(".pth").removesuffix(".pt")
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in stem).strip(".-") or "sam"
