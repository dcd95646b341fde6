"""What can be compared: a checkpoint in PyTorch, an ONNX graph on the CPU, an engine on a GPU, each opened as a runner."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from trt_sam._files import existing_file
from trt_sam._lazy import require
from trt_sam.engine.manifest import MANIFEST_NAME, ONNX_RUNTIME, Manifest, open_manifest
from trt_sam.errors import InferenceError, InputError, ManifestError
from trt_sam.machine.driver import gpu_compute_capability
from trt_sam.recipe import QUANTIZED_PRECISIONS
from trt_sam.runtime.both_decoders import BothDecoders
from trt_sam.runtime.emulated_runner import EmulationRunner
from trt_sam.runtime.interface import Runner
from trt_sam.runtime.onnx_runner import OnnxRunner

if TYPE_CHECKING:
    from trt_sam.model.checkpoint import Checkpoint

__all__ = ["Side", "calibration_images", "open_side", "torch_side"]

Array = npt.NDArray[Any]
_OF_CHECKPOINTS = (
    "config.json",
    *(f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")),
)
_DECODERS = ("decode", "decode_mask")
_OTHER_DECODERS = {"decode_mask": "prompts with an earlier mask", "decode_prepared": "many prompts on an image"}
"""Those of a set of graphs that are not judged where its folder is named, and what they take."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison, ready to run; whoever opened it closes `runner`."""

    source: str
    """What was asked for."""
    executed_by: str
    """"PyTorch on the CPU", "ONNX Runtime on the CPU", ..."""
    arithmetic: str
    """"fp32", "tf32" (FP32 on a GPU, where TensorRT may use TF32), "fp16" or "quantized": decides the tolerance."""
    runner: Runner = field(repr=False)
    checkpoint_sha256: str
    """Of the decoder's weights; empty where unknown."""
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    """Where the side is a checkpoint."""
    calibration_images: frozenset[str] = field(default=frozenset(), repr=False)
    """SHA-256 of the embeddings that a quantized graph was calibrated with; empty where it does not say."""
    graphs: tuple[Path, ...] = ()
    """The ONNX graph that the side is, or those that its engines were built from; empty for a checkpoint."""
    left_out: Mapping[Path, str] = field(default_factory=dict)
    """Decoders of a set of graphs that the side does not run, and which prompts they take."""


def open_side(source: str, *, device: int = 0) -> Side:
    """Open a checkpoint, a `.onnx` graph, or an engine set (its folder, manifest or engine) on GPU number `device`.

    A float16 graph runs in the emulation that rounds every float16 tensor: ONNX Runtime on a CPU would run it in float32. A
    quantized graph runs as it stands, its Q/DQ pairs rounding and its products in float32. A set with two decoders runs both
    (see `BothDecoders`); the name of one engine is that engine alone.

    Raises:
        TrtSamError: it cannot be opened, or it is an engine and cannot execute here; the message says what to do.
    """
    path = Path(source)
    if path.suffix == ".onnx":
        return _open_graph(path)
    if path.suffix == ".engine" or path.name == MANIFEST_NAME or (path / MANIFEST_NAME).exists():
        return _open_engine(path, device)
    if path.is_dir() and not any((path / name).exists() for name in _OF_CHECKPOINTS):
        raise InputError(
            f"{path} has neither a {MANIFEST_NAME} (an engine set) nor a config.json (a checkpoint); "
            "give one of them, a .pth or a .onnx"
        )
    require("torch", "to run a checkpoint")
    from trt_sam.model.checkpoint import load_checkpoint

    return torch_side(load_checkpoint(source))


def torch_side(checkpoint: Checkpoint) -> Side:
    """A loaded checkpoint in PyTorch, float32, on the CPU."""
    from trt_sam.runtime.torch_runner import TorchRunner

    runner = TorchRunner(checkpoint.decoder)
    return Side(checkpoint.source, "PyTorch on the CPU", "fp32", runner, checkpoint.sha256, checkpoint)


def _open_graph(path: Path) -> Side:
    runner = OnnxRunner(path, emulate_quantization=True)
    if _quantized(path, runner):
        executed = "ONNX Runtime on the CPU, quantization emulated"
        used = calibration_images(runner.metadata)
        return Side(str(path), executed, "quantized", runner, runner.checkpoint_sha256, calibration_images=used, graphs=(path,))
    if runner.options.precision != "fp16":
        return Side(str(path), "ONNX Runtime on the CPU", "fp32", runner, runner.checkpoint_sha256, graphs=(path,))
    emulation = EmulationRunner(path, runner)
    return Side(str(path), "FP16 emulation on the CPU", "fp16", emulation, runner.checkpoint_sha256, graphs=(path,))


def _quantized(path: Path, runner: OnnxRunner) -> bool:
    if runner.options.precision in QUANTIZED_PRECISIONS or importlib.util.find_spec("onnx") is None:
        return runner.options.precision in QUANTIZED_PRECISIONS
    from trt_sam.graph.metadata import read_graph

    return read_graph(path).quantized


def _open_engine(path: Path, device: int) -> Side:
    """Open the decoders of the set that is named by its folder or its manifest, or the one whose engine file is named."""
    folder = path if path.is_dir() else path.parent
    if not path.is_dir():
        existing_file(path, "engine")
    manifest = open_manifest(folder)
    if manifest.flavour == ONNX_RUNTIME:
        others = {
            folder / graph.onnx.name: _OTHER_DECODERS[graph.role] for graph in manifest.graphs if graph.role in _OTHER_DECODERS
        }
        return dataclasses.replace(_open_graph(folder / manifest.graph("decode").onnx.name), left_out=others)
    graphs = [g for g in manifest.graphs if g.role in _DECODERS and path.name in (g.engine_name, *_any_name(path))]
    if not graphs:
        held = ", ".join(f"{g.engine_name} ({g.role})" for g in manifest.graphs)
        raise ManifestError(f"{path} is no decoder engine of its set, which holds {held}; name one that decodes")
    if gpu_compute_capability(device) is None:
        raise InferenceError(_cannot_execute(manifest, [folder / graph.onnx.name for graph in graphs], device))
    from trt_sam.runner.decoder_runner import DecoderRunner

    graph = graphs[0]
    runner: Runner = DecoderRunner.open(folder, role=None if len(graphs) > 1 else graph.role, device=device)
    if len(graphs) > 1:
        runner = BothDecoders(runner)
    # TensorRT may run FP32 products in TF32, which has FP16's mantissa.
    kinds = {"fp32": "tf32", "fp16": "fp16"} if manifest.recipe.graph.precision == graph.options.precision else {}
    arithmetic = kinds.get(graph.options.precision, "quantized")
    executed = f"{manifest.flavour} {manifest.flavour_version} on GPU {device}"
    # Opening has held every file of the set against its hash.
    beside = tuple(folder / graph.onnx.name for graph in graphs)
    used: frozenset[str] = frozenset()
    if arithmetic == "quantized":
        from trt_sam.graph.metadata import read_graph

        used = calibration_images(read_graph(beside[0]).metadata)
    return Side(str(path), executed, arithmetic, runner, graph.checkpoint_sha256, calibration_images=used, graphs=beside)


def calibration_images(metadata: Mapping[str, str]) -> frozenset[str]:
    """The hashes of the embeddings that a graph's ranges were measured or chosen on; empty where it does not say."""
    try:
        about = json.loads(metadata["trt_sam.calibration"])
        return frozenset(map(str, (*about["image_sha256"], *about.get("held_out_sha256", ()))))
    except (KeyError, ValueError, TypeError):
        return frozenset()


def _any_name(path: Path) -> tuple[str, ...]:
    return () if path.suffix == ".engine" else (path.name,)


def _cannot_execute(manifest: Manifest, graphs: Sequence[Path], device: int) -> str:
    missing = f"no NVIDIA GPU number {device}" if gpu_compute_capability(0) is not None else "no NVIDIA GPU or driver"
    return (
        f"engine set {manifest.folder} cannot execute here: this machine has {missing}; "
        f"compare the graph it was built from instead: {' or '.join(map(str, graphs))}"
    )
