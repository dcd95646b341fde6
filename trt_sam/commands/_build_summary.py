"""What `trt-sam build` ends with: files, sizes, GPUs, masks, modelled time, and what to do next."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_sam.contract import FRAME_SIZE
from trt_sam.engine.builder import BuildResult, build_engine
from trt_sam.engine.engine_set import BuiltSet
from trt_sam.engine.flavour import Flavour
from trt_sam.engine.kernel_cost import GPUS, kernel_costs, model_time
from trt_sam.engine.manifest import MANIFEST_NAME, GraphEntry, Manifest
from trt_sam.graph.arithmetic import count_graph
from trt_sam.graph.metadata import read_graph
from trt_sam.machine.driver import RTX_GPUS, rtx_runs_on
from trt_sam.progress import Progress
from trt_sam.recipe import EngineRecipe, ShapeProfile

__all__ = ["Modelled", "build_summary", "covered_gpus", "encoder_warning", "modelled", "verified_line"]

_POINTS = 2
"""Of the modelled call: one click and SAM's padding point."""
_RTX_LACKS = "9.0 (H100, H200) and 10.0 (B200) are not among them: build there with --backend tensorrt"

_SHOWN_BYTES = 50_000
_FEW = 0.2
"""Share of the constants under which quantized weights make no engine smaller."""
# Seen on the SAM decoder, tier A: 0.33 of 17.0 MB are int8, 8.4 are the terms [4096, 256 or 384] that are added at each image
# position, 8.4 the tokens' weights. The RTX engine holds all of them as they are in the graph: 22.7 MB, as for float16.
_WHY_AS_LARGE = (
    ", so the engine is about as large as FP16's: the quantized products have few weights, and the terms of the image's "
    "positions and the tokens' weights stay float16"
)


@dataclasses.dataclass(frozen=True)
class Modelled:
    """The modelled time of one click in each precision."""

    gpu: str
    microseconds: Mapping[str, float]
    """By precision, the set's own first."""


def covered_gpus(manifest: Manifest) -> str:
    """The compute capabilities that a set was built for, in words."""
    if manifest.compute_capabilities:
        return ", ".join(manifest.compute_capabilities)
    return f"{RTX_GPUS} ({_RTX_LACKS})"


def modelled(graphs: Mapping[str, Path], flavour: Flavour, *, progress: Progress) -> tuple[Modelled, ...]:
    """The modelled time of one click: each graph is compiled at fixed sizes, and its kernels are costed.

    Args:
        graphs: by precision.
        flavour: one that prints its layer list.
        progress: told which graph is compiled.

    Raises:
        TrtSamError: a graph cannot be compiled or counted.
    """
    # Engines of TensorRT for RTX, whose layer lists these are, run on some of them alone.
    gpus = [gpu for gpu in GPUS if rtx_runs_on(gpu.compute_capability)]
    times: dict[str, dict[str, float]] = {gpu.name: {} for gpu in gpus}
    for place, (precision, path) in enumerate(graphs.items()):
        progress(place / len(graphs), precision)
        sizes = {"num_prompts": 1, "num_points": _POINTS}
        fixed: dict[str, tuple[int, int, int]] = {name: (size,) * 3 for name, size in sizes.items()}
        values = {}
        if any(spec.name == "orig_im_size" for spec in read_graph(path).inputs):
            values["orig_im_size"] = [FRAME_SIZE, FRAME_SIZE]
            fixed |= dict.fromkeys(("height", "width"), (FRAME_SIZE,) * 3)
        products = count_graph(path, sizes, values).products
        build = build_engine(path, EngineRecipe(profiles=(ShapeProfile(**fixed),)), flavour=flavour)
        costs = kernel_costs(build.layers, products)
        for gpu in gpus:
            times[gpu.name][precision] = model_time(costs, gpu).seconds * 1e6
    return tuple(Modelled(gpu, by_precision) for gpu, by_precision in times.items())


def build_summary(
    built: BuiltSet, title: str, *, judged: Sequence[str], times: Sequence[Modelled], checkpoint: str | None
) -> str:
    """The summary as lines.

    Args:
        built: what was built.
        title: of the TensorRT.
        judged: of each graph, how near its masks are to FP32's, in words; empty where nothing was measured.
        times: what `modelled` gave.
        checkpoint: as the user named it; None for a graph.
    """
    manifest = built.manifest
    precision = manifest.graphs[0].options.precision
    files = [file.name for graph in manifest.graphs for file in graph.files]
    seconds = sum(build.seconds for build in built.builds)
    lines = [
        f"{manifest.folder}: {', '.join(files)}, {MANIFEST_NAME}",
        f"  {_precisions(manifest)}, {title}, built in {seconds:.1f} s",
        f"  compute capability {covered_gpus(manifest)}",
    ]
    for place, (graph, build) in enumerate(zip(manifest.graphs, built.builds, strict=True)):
        head = f"{graph.role}: " if len(built.builds) > 1 else ""
        lines += _graph_lines(manifest.folder, graph, build, head)
        lines.append(f"  {head}{judged[place]}" if place < len(judged) and judged[place] else f"  {head}masks: not measured")
    lines += [_time_line(time) for time in times]
    if told := verified_line(manifest.verified, manifest.not_verified):
        lines.append(f"  {told}")
    return "\n".join([*lines, *_next_lines(manifest, precision, checkpoint)])


def encoder_warning(manifest: Manifest) -> str:
    """What to say of a float32 image encoder beside a decoder in fewer bits; empty where there is nothing to say."""
    precisions = {graph.role: graph.options.precision for graph in manifest.graphs}
    if precisions.get("encode") != "fp32" or precisions["decode" if "decode" in precisions else "decode_mask"] == "fp32":
        return ""
    return (
        "the image encoder's graph is fp32, so its engine is larger and fuses fewer attentions than in fp16; build from "
        "--checkpoint with --encoder, or take encoder.onnx of trt-sam export --checkpoint CHECKPOINT --encoder "
        "--precision fp16 --output SET"
    )


def _precisions(manifest: Manifest) -> str:
    """Of the decoder, and of the image encoder where there is one."""
    decoder = manifest.graphs[0].options.precision
    encoders = [graph.options.precision for graph in manifest.graphs if graph.role == "encode"]
    return f"decoder {decoder}, image encoder {encoders[0]}" if encoders else decoder


def verified_line(verified: Mapping[str, Any] | None, not_verified: str) -> str:
    """For people, what a manifest says of how its engines were judged; empty where it says nothing."""
    if verified is None:
        return f"not verified: {not_verified}" if not_verified else ""
    figures = "; ".join(
        f"{role} mask IoU {each['figures']['min_mean_iou']:.5f}, 5th percentile {each['figures']['min_p5_iou']:.4f}"
        for role, each in verified["graphs"].items()
    )
    golden = verified["golden"]["checkpoint"]
    left_out = "".join(f" ({sentence})" for sentence in verified.get("left_out", ()))  # sets of before do not say it
    return f"verified on {verified['gpu']} by golden data of {golden}, {verified['prompts']} prompts{left_out}: {figures}"


def _graph_lines(folder: Path, graph: GraphEntry, build: BuildResult, head: str) -> list[str]:
    lines = [f"  {head}engine {len(build.engine) / 1e6:.1f} MB, graph {graph.onnx.size / 1e6:.1f} MB"]
    constants = read_graph(folder / graph.onnx.name).constant_bytes
    parts = [f"{size / 1e6:.1f} MB {dtype}" for dtype, size in constants.items() if size >= _SHOWN_BYTES]
    if parts:
        quantized = sum(size for dtype, size in constants.items() if dtype.startswith(("int8", "float8")))
        few = 0 < quantized < _FEW * sum(constants.values())
        lines.append(f"  {head}constants: {', '.join(parts)}{_WHY_AS_LARGE if few else ''}")
    for number, summary in enumerate(build.kernels, start=1):
        lines.append(
            f"  {head}profile {number}: {summary.kernels} kernels, {summary.matrix_products} matrix products, "
            f"{summary.fused_attentions} fused attentions"
        )
    return lines


def _time_line(time: Modelled) -> str:
    (own, first), *others = time.microseconds.items()
    beside = "".join(
        f"; {precision} {value:.0f} us, so {own} takes {first / value:.2f} times as long" for precision, value in others
    )
    return f"  one click, modelled on {time.gpu}, not measured: {own} {first:.0f} us{beside}"


def _next_lines(manifest: Manifest, precision: str, checkpoint: str | None) -> list[str]:
    folder = manifest.folder
    lines = ["next:"]
    options = manifest.graphs[0].options
    if checkpoint is not None and not (options.best_mask or options.full_resolution):
        graph = folder / manifest.graphs[0].onnx.name
        judged = ["--photos", "PHOTOS", "--variants", "", "--graph", f"{precision}={graph}"]
        words = ["trt-sam", "accuracy", "--checkpoint", checkpoint, *judged, "--output", str(folder / "accuracy")]
        lines.append(f"  {shlex.join(words)}")
    bench = shlex.join(["trt-sam", "bench", "--engine", str(folder), "--output", str(folder / "bench")])
    lines.append(f"  {bench}   (on one of these GPUs)")
    return lines
