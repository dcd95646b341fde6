"""Show what a graph or an engine holds: tensors, types, metadata, and the kernels that TensorRT makes of it.

An ONNX graph is compiled with TensorRT-RTX, which needs no GPU, and its kernels are counted. An engine, or an engine set's
folder, is read from its manifest.

Example:
  trt-sam inspect decoder.onnx --shape num_prompts=1,num_points=2 --compute-capability 8.9
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

from trt_sam._build_callbacks import TerminalBar
from trt_sam._files import existing_file
from trt_sam.builder import build_engine
from trt_sam.commands._options import add_json_argument, write_json
from trt_sam.commands.build import add_capability_argument, capabilities_from
from trt_sam.contract import TensorSpec
from trt_sam.errors import InputError, ManifestError
from trt_sam.graph import read_graph
from trt_sam.manifest import MANIFEST_NAME, open_manifest
from trt_sam.recipe import BACKENDS, EngineRecipe, ShapeProfile
from trt_sam.tensorrt import load_flavour

HELP = "tensors, types, metadata and kernels of a graph or engine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `inspect`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a .onnx graph, a .engine, or the folder of an engine set")
    parser.add_argument("--shape", metavar="LIST", help='fixed sizes, as "num_prompts=1,num_points=2" (default: dynamic)')
    add_capability_argument(parser)
    parser.add_argument("--backend", choices=BACKENDS, default="rtx", help="which TensorRT compiles (default: rtx)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    if args.file.is_dir() or args.file.suffix == ".engine" or args.file.name == MANIFEST_NAME:
        if args.shape or args.compute_capability:
            raise InputError(f"{args.file} is built already; --shape and --compute-capability are for ONNX graphs")
        report = _inspect_set(args.file)
    else:
        report = _inspect_graph(args)
    if args.json:
        write_json(args.json, report)
    if args.json != "-":
        print("\n".join(_lines(report)))
    return 0


def parse_shape(text: str | None) -> ShapeProfile:
    """The profile with each size of "num_prompts=1,num_points=2" fixed; others stay ranges. Raises InputError."""
    names = [field.name for field in dataclasses.fields(ShapeProfile)]
    sizes: dict[str, tuple[int, int, int]] = {}
    for part in text.split(",") if text is not None else ():
        name, equals, value = part.strip().partition("=")
        if name not in names or not equals or not value.isdecimal() or int(value) < 1:
            raise InputError(f"--shape has {part!r}, must be NAME=SIZE with SIZE from 1 and NAME one of {', '.join(names)}")
        sizes[name] = (int(value),) * 3
    return ShapeProfile(**sizes)


def _inspect_graph(args: argparse.Namespace) -> dict[str, Any]:
    profile = parse_shape(args.shape)
    recipe = EngineRecipe(
        profiles=(profile,),
        compute_capabilities=capabilities_from(args.compute_capability) if args.compute_capability else (),
    )
    graph = read_graph(args.file)
    flavour = load_flavour(args.backend)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(TerminalBar(sys.stderr)) if sys.stderr.isatty() else None
        build = build_engine(args.file, recipe, flavour=flavour, progress=bar)
    dynamic = {dim for spec in graph.inputs for dim in spec.dims if isinstance(dim, str)}
    if any(spec.name == "orig_im_size" for spec in graph.inputs):
        dynamic |= {"height", "width"}
    return {
        "kind": "onnx",
        "path": graph.path,
        "inputs": [dataclasses.asdict(spec) for spec in graph.inputs],
        "outputs": [dataclasses.asdict(spec) for spec in graph.outputs],
        "opset": graph.opset,
        "metadata": dict(graph.metadata),
        "nodes": dict(graph.nodes),
        "tensorrt": {"flavour": flavour.name, "version": flavour.version},
        "compute_capabilities": list(build.compute_capabilities),
        "shapes": {name: list(value) for name, value in vars(profile).items() if name in dynamic},
        "build_seconds": round(build.seconds, 3),
        "engine_bytes": len(build.engine),
        "kernels": [summary.to_dict() for summary in build.kernels],
        "layers": [{"name": layer.name, "type": layer.type, "onnx_nodes": list(layer.onnx_nodes)} for layer in build.layers],
    }


def _inspect_set(path: Path) -> dict[str, Any]:
    folder = path if path.is_dir() else path.parent
    if not path.is_dir():
        existing_file(path, "engine")
    manifest = open_manifest(folder)
    graphs = manifest.graphs
    if path.suffix == ".engine":
        graphs = tuple(graph for graph in graphs if graph.engine.name == path.name)
        if not graphs:
            raise ManifestError(f"{path} is not in the manifest beside it; build it with trt-sam build --output DIR")
    data = manifest.to_dict()
    data["graphs"] = [item for item in data["graphs"] if item["role"] in {graph.role for graph in graphs}]
    return {"kind": "engine", "path": str(path), **data}


def _lines(report: dict[str, Any]) -> list[str]:
    tensorrt = f"{report['tensorrt']['flavour']} {report['tensorrt']['version']}"
    targets = ", ".join(report["compute_capabilities"]) or "all that RTX supports from 8.0"
    lines = [report["path"]]
    if report["kind"] == "engine":
        for graph in report["graphs"]:
            lines.append(f"role {graph['role']}, engine {graph['engine']['size'] / 1e6:.1f} MB")
            lines += _tensor_lines(graph)
            lines.append("options: " + _pairs(graph["options"]))
            lines.append("limits: " + _pairs({name: f"{low} to {high}" for name, (low, high) in graph["limits"].items()}))
            lines += _kernel_lines(graph["kernels"])
        lines.append(f"built by {tensorrt} for compute capability {targets}; every file is as the manifest says")
        return [*lines, "created: " + _pairs(report["created"])]
    lines += _tensor_lines(report)
    lines.append(f"opset {report['opset']}; metadata: " + (_pairs(report["metadata"]) or "none"))
    lines.append("nodes: " + _pairs(report["nodes"]))
    lines.append(f"compiled by {tensorrt} for compute capability {targets}: {report['engine_bytes'] / 1e6:.1f} MB")
    lines.append("shapes (min, opt, max): " + (_pairs(report["shapes"]) or "static"))
    return lines + _kernel_lines(report["kernels"])


def _tensor_lines(graph: dict[str, Any]) -> list[str]:
    return [
        f"  {kind[:-1]:6} {TensorSpec(item['name'], item['dtype'], tuple(item['dims']))}"
        for kind in ("inputs", "outputs")
        for item in graph[kind]
    ]


def _kernel_lines(kernels: list[dict[str, Any]]) -> list[str]:
    if not kernels:
        return ["kernels: not counted, this TensorRT prints no layer list"]
    lines = []
    for number, summary in enumerate(kernels, start=1):
        counts = {name.replace("_", " "): value for name, value in summary.items() if name != "by_type"}
        lines.append(f"profile {number}: " + ", ".join(f"{value} {name}" for name, value in counts.items()))
        lines.append("  by type: " + _pairs(summary["by_type"]))
    return lines


def _pairs(data: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in data.items())
