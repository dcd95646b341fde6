"""Show what a graph or an engine holds: tensors, types, metadata, arithmetic, and the kernels that TensorRT makes of it.

With sizes for its dynamic dimensions a graph's multiply-adds and bytes are counted. With --kernels it is compiled, by
TensorRT-RTX without a GPU, its kernels are counted and, at fixed sizes, their time on an H100 and an RTX 4090 is modelled.
An engine, or an engine set's folder, is read from its manifest.

Example:
  trt-sam inspect decoder.onnx --prompts 1 --points 2 --kernels --compute-capability 8.9
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from trt_sam._files import existing_file
from trt_sam.commands._build_summary import verified_line
from trt_sam.commands._options import add_capability_argument, add_json_argument, capabilities_from, write_json
from trt_sam.contract import TensorSpec
from trt_sam.engine.builder import build_engine
from trt_sam.engine.flavour import load_flavour
from trt_sam.engine.kernel_cost import GPUS, kernel_costs, model_time, unplaced_products
from trt_sam.engine.manifest import MANIFEST_NAME, ONNX_RUNTIME, open_manifest
from trt_sam.errors import GraphError, InputError, ManifestError
from trt_sam.graph.arithmetic import Arithmetic, count_graph
from trt_sam.graph.metadata import read_graph
from trt_sam.machine.driver import RTX_GPUS
from trt_sam.progress import Stages
from trt_sam.recipe import BACKENDS, EngineRecipe, ShapeProfile

HELP = "tensors, types, metadata, arithmetic and kernels of a graph or engine"

_GRAPH_FLAGS = ("--prompts", "--points", "--shape", "--kernels", "--compute-capability", "--backend")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `inspect`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a .onnx graph, a .engine, or the folder of an engine set")
    parser.add_argument("--prompts", metavar="N", help="short for --shape num_prompts=N")
    parser.add_argument("--points", metavar="N", help="short for --shape num_points=N")
    parser.add_argument("--shape", metavar="LIST", help='fixed sizes, as "num_prompts=1,num_points=2" (default: dynamic)')
    parser.add_argument(
        "--kernels", action="store_true", help="compile the graph and count its kernels (the next two imply it)"
    )
    add_capability_argument(parser)
    parser.add_argument("--backend", choices=BACKENDS, help="which TensorRT compiles (default: rtx)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    if args.file.is_dir() or args.file.suffix == ".engine" or args.file.name == MANIFEST_NAME:
        given = [flag for flag in _GRAPH_FLAGS if getattr(args, flag.strip("-").replace("-", "_"))]
        if given:
            raise InputError(
                f"{args.file} is built already; {' and '.join(given)} {'is' if len(given) == 1 else 'are'} for ONNX graphs"
            )
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
            raise InputError(f"size {part!r} must be NAME=SIZE with SIZE from 1 and NAME one of {', '.join(names)}")
        if name in sizes:
            raise InputError(f"{name} is given twice; --prompts and --points are short for --shape, so give each size once")
        sizes[name] = (int(value),) * 3
    return ShapeProfile(**sizes)


def _inspect_graph(args: argparse.Namespace) -> dict[str, Any]:
    profile = parse_shape(_shape_text(args))
    graph = read_graph(args.file)
    dynamic = {dim for spec in graph.inputs for dim in spec.dims if isinstance(dim, str)}
    sized = {"height", "width"} if any(spec.name == "orig_im_size" for spec in graph.inputs) else set()
    shapes = {name: value for name, value in vars(profile).items() if name in dynamic | sized}
    report = {
        "kind": "onnx",
        "path": graph.path,
        "inputs": [dataclasses.asdict(spec) for spec in graph.inputs],
        "outputs": [dataclasses.asdict(spec) for spec in graph.outputs],
        "opset": graph.opset,
        "metadata": dict(graph.metadata),
        "nodes": dict(graph.nodes),
        "shapes": {name: list(value) for name, value in shapes.items()},
    }
    arithmetic = None
    if dynamic <= set(shapes) and all(low == high for low, _, high in shapes.values()):
        sizes = {name: value[0] for name, value in shapes.items()}
        values = {"orig_im_size": [sizes["height"], sizes["width"]]} if sized else {}
        try:
            arithmetic = count_graph(args.file, {name: sizes[name] for name in sorted(dynamic)}, values)
            report["arithmetic"] = arithmetic.to_dict()
        except GraphError as error:  # TensorRT may still know the operator that is not known to the counter
            report["arithmetic_error"] = str(error)
    if args.kernels or args.compute_capability or args.backend:
        report |= _compile(args, profile, arithmetic)
    return report


def _shape_text(args: argparse.Namespace) -> str | None:
    parts = [
        f"{name}={value}" for name, value in (("num_prompts", args.prompts), ("num_points", args.points)) if value is not None
    ]
    return ",".join([*parts, *([args.shape] if args.shape is not None else [])]) if parts or args.shape is not None else None


def _compile(args: argparse.Namespace, profile: ShapeProfile, arithmetic: Arithmetic | None) -> dict[str, Any]:
    """What TensorRT makes of the graph; with `arithmetic`, which fixed sizes have, also what its kernels cost."""
    capabilities = capabilities_from(args.compute_capability) if args.compute_capability else ()
    recipe = EngineRecipe(profiles=(profile,), compute_capabilities=capabilities)
    flavour = load_flavour(args.backend or "rtx")
    with Stages({"compile": 1}) as stages:
        progress = stages.begin("compile", f"compiling {args.file} with {flavour.title}")
        build = build_engine(args.file, recipe, flavour=flavour, progress=progress)
    layers = [{"name": layer.name, "type": layer.type, "onnx_nodes": list(layer.onnx_nodes)} for layer in build.layers]
    report = {
        "tensorrt": {"flavour": flavour.name, "version": flavour.version},
        "compute_capabilities": list(build.compute_capabilities),
        "build_seconds": round(build.seconds, 3),
        "engine_bytes": len(build.engine),
        "kernels": [summary.to_dict() for summary in build.kernels],
        "layers": layers,
    }
    if arithmetic is not None and build.layers:
        costs = kernel_costs(build.layers, arithmetic.products)
        report["kernel_costs"] = [dataclasses.asdict(cost) for cost in costs]
        report["modelled"] = [model_time(costs, gpu).to_dict() for gpu in GPUS]
        report["unplaced_products"] = unplaced_products(build.layers, arithmetic.products)
    return report


def _inspect_set(path: Path) -> dict[str, Any]:
    folder = path if path.is_dir() else path.parent
    if not path.is_dir():
        existing_file(path, "engine")
    manifest = open_manifest(folder)
    graphs = manifest.graphs
    if path.suffix == ".engine":
        graphs = tuple(graph for graph in graphs if graph.engine_name == path.name)
        if not graphs:
            held = ", ".join(graph.engine_name for graph in manifest.graphs if graph.engine_name) or "no engine"
            raise ManifestError(f"{path} is not in the manifest beside it, which has {held}; give its folder, or one of these")
    data = manifest.to_dict()
    data["graphs"] = [item for item in data["graphs"] if item["role"] in {graph.role for graph in graphs}]
    return {"kind": "engine", "path": str(path), **data}


def _lines(report: dict[str, Any]) -> list[str]:
    return [report["path"], *(_set_lines(report) if report["kind"] == "engine" else _graph_lines(report))]


def _set_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for graph in report["graphs"]:
        engine, kind = graph["engine"], "engine" if graph["engine"] else "graph"
        lines.append(f"role {graph['role']}, {kind} {(engine or graph['onnx'])['size'] / 1e6:.1f} MB")
        lines += _tensor_lines(graph)
        lines.append("options: " + _pairs(graph["options"]))
        limits = {name: f"{low} to {high}" for name, (low, high) in graph["limits"].items()}
        lines.append("limits: " + (_pairs(limits) or "none"))
        if engine:
            lines += _kernel_lines(graph["kernels"])
        if graph["layers"]:
            lines.append(f"every layer with its types and kernel: {graph['layers']['name']}")
    if told := verified_line(report["verified"], report["not_verified"]):
        lines.append(told)
    made = f"built by {_builder(report)}"
    if report["tensorrt"]["flavour"] == ONNX_RUNTIME:
        made = f"for {report['tensorrt']['flavour']}, made beside its version {report['tensorrt']['version']}"
    lines.append(f"{made}; every file is as the manifest says")
    return [*lines, "created: " + _pairs(report["created"])]


def _graph_lines(report: dict[str, Any]) -> list[str]:
    lines = _tensor_lines(report)
    lines.append(f"opset {report['opset']}; metadata: " + (_pairs(report["metadata"]) or "none"))
    lines.append("nodes: " + _pairs(report["nodes"]))
    lines.append("shapes (min, opt, max): " + (_pairs(report["shapes"]) or "static"))
    if "arithmetic" in report:
        lines += _arithmetic_lines(report["arithmetic"])
    elif "arithmetic_error" in report:
        lines.append(f"arithmetic: not counted, {report['arithmetic_error']}")
    else:
        lines.append("arithmetic: not counted; give every dynamic size, with --prompts and --points or --shape")
    if "tensorrt" not in report:
        return [*lines, "kernels: not counted; give --kernels to compile the graph"]
    lines.append(f"compiled by {_builder(report)}: {report['engine_bytes'] / 1e6:.1f} MB")
    lines += _kernel_lines(report["kernels"])
    for time in report.get("modelled", ()):
        bounds = ", ".join(f"{time[f'{bound}_bound']} by {bound}" for bound in ("launch", "bandwidth", "arithmetic"))
        lines.append(f"modelled on {time['gpu']}: {time['microseconds']:.0f} us, not measured (kernels bound {bounds})")
    if report.get("unplaced_products"):
        flop = 2 * sum(report["unplaced_products"].values())
        lines.append(
            f"the layer list does not say which kernels compute {flop / 1e9:.3g} GFLOP; they are not in the modelled time"
        )
    return lines


def _arithmetic_lines(counted: dict[str, Any]) -> list[str]:
    head = f"arithmetic, unfused: {counted['gflop']:.3f} GFLOP ({counted['multiply_adds']:,} multiply-adds)"
    lines = [f"{head}, {counted['bytes'] / 1e6:.1f} MB moved", f"  {'operator':22}{'nodes':>6}{'M multiply-adds':>17}{'MB':>9}"]
    return lines + [
        f"  {kind:22}{each['nodes']:6}{each['multiply_adds'] / 1e6:17.3f}{each['bytes'] / 1e6:9.3f}"
        for kind, each in counted["kinds"].items()
    ]


def _builder(report: dict[str, Any]) -> str:
    targets = ", ".join(report["compute_capabilities"]) or RTX_GPUS
    return f"{report['tensorrt']['flavour']} {report['tensorrt']['version']} for compute capability {targets}"


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
        counts = {name.replace("_", " "): value for name, value in summary.items() if name not in ("by_type", "precisions")}
        lines.append(f"profile {number}: " + ", ".join(f"{value} {name}" for name, value in counts.items()))
        lines.append("  by type: " + _pairs(summary["by_type"]))
        lines.append("  products and attentions by precision: " + _pairs(summary["precisions"]))
    return lines


def _pairs(data: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in data.items())
