"""From an engine set on disk to engines on a GPU."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam.cuda.device import Device
from trt_sam.engine.manifest import CACHE_SUFFIX, GraphEntry, Manifest, open_manifest
from trt_sam.errors import GraphError, ManifestError
from trt_sam.machine.driver import gpu_model
from trt_sam.runner.complaints import recorder_of
from trt_sam.runner.engine import Engine

if TYPE_CHECKING:
    from trt_sam.engine.flavour import Flavour

__all__ = ["open_engines"]

_log = logging.getLogger(__name__)

_DECODERS = ("decode", "decode_mask")
_ENCODER = "encode"


def open_engines(
    folder: str | os.PathLike[str], role: str | None, device: int, *, runtime_cache: bool, encoder: bool = False
) -> tuple[Device, list[Engine], list[Engine]]:
    """Open the engine that has `role`, or for None the set's decoders: "decode", then "decode_mask".

    With `encoder` the set's image encoder too, if it has one: the second list has it or is empty. The caller closes the device,
    after the engines are dropped.

    Raises:
        MissingDependencyError, ManifestError, GraphError, InferenceError: as `DecoderRunner.open`.
    """
    from trt_sam.engine.flavour import load_flavour

    manifest = open_manifest(folder, verify=False)  # `read` below checks the files that are used
    roles = [r for r in _DECODERS if any(graph.role == r for graph in manifest.graphs)] if role is None else [role]
    graphs = [manifest.graph(r) for r in roles or ["decode"]]
    decoders = len(graphs)
    if encoder and role is None:
        graphs += [graph for graph in manifest.graphs if graph.role == _ENCODER]
        _check_encoders(folder, graphs[0], graphs[decoders:])
    flavour = load_flavour("rtx" if manifest.flavour == "tensorrt_rtx" else "tensorrt")
    manifest.check_fits(flavour, None)
    plan_files = [manifest.engine(graph) for graph in graphs]
    gpu = Device(device)
    try:
        manifest.check_fits(flavour, gpu.compute_capability)
        if words := manifest.other_model(gpu_model(device)):
            logging.getLogger(__name__).warning(words)
        plans = [manifest.read(file) for file in plan_files]
        with gpu.active():
            engines = _deserialize(manifest, flavour, graphs, plans, runtime_cache=runtime_cache)
    except BaseException:
        gpu.close()
        raise
    return gpu, engines[:decoders], engines[decoders:]


def _check_encoders(folder: object, decoder: GraphEntry, encoders: Sequence[GraphEntry]) -> None:
    if any(each.checkpoint_sha256 != decoder.checkpoint_sha256 for each in encoders):
        raise GraphError(f"the image encoder of {folder} is of another checkpoint than its decoder; build both from one")


def _deserialize(
    manifest: Manifest, flavour: Flavour, graphs: Sequence[GraphEntry], plans: Sequence[bytes], *, runtime_cache: bool
) -> list[Engine]:
    runtime: Any = flavour.trt.Runtime(_logger(flavour.trt.Logger))
    recorder, complaints = recorder_of(flavour.trt.IErrorRecorder)
    runtime.error_recorder = recorder  # what it makes has it too
    if manifest.recipe.version_compatible:
        # Such a plan brings its runtime as code, which TensorRT refuses by default; the manifest's hash names the file.
        runtime.engine_host_code_allowed = True
    engines = []
    for graph, plan in zip(graphs, plans, strict=True):
        flavour.check_engine(runtime, plan)
        complaints.forget()
        deserialized = runtime.deserialize_cuda_engine(plan)
        if deserialized is None:
            raise ManifestError(complaints.after(f"{flavour.title} could not load {graph.engine_name}"))
        # An engine whose shapes are all fixed has one profile, whatever the recipe says of the others.
        shapes_of = manifest.recipe.profiles if graph.limits else manifest.recipe.profiles[:1]
        profiles = [
            {name: (getattr(shapes, name)[0], getattr(shapes, name)[2]) for name in graph.limits} for shapes in shapes_of
        ]
        cache = Path(manifest.folder, graph.engine_name + CACHE_SUFFIX) if runtime_cache else None
        # The engine keeps the runtime; nobody else may, for both must be gone before the device is closed.
        _log.debug("%s of %s loaded by %s", graph.engine_name, manifest.folder, flavour.title)
        made = Engine(flavour.trt, deserialized, graph.inputs, graph.outputs, profiles, (runtime,), cache, complaints)
        made.checkpoint_sha256 = graph.checkpoint_sha256
        engines.append(made)
    return engines


@functools.cache
def _logger(kind: Any) -> Any:
    """One for the life of the process: TensorRT keeps a pointer to the first logger it saw, and does not keep it alive."""
    return kind(kind.WARNING)
