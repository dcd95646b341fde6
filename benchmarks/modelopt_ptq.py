"""ModelOpt's ONNX PTQ beside our INT8: one FP32 graph, one set of calibration feeds, one set of held-out prompts.

NVIDIA's `modelopt.onnx.quantization.quantize` (int8, entropy and max) gets the `--target gpu` FP32 graph and our calibration
feeds, as files: with its own choice of nodes, and with the products of our tiers A and A+B. All graphs, ours too, are FP32 with
Q/DQ pairs, run by ONNX Runtime with the pairs in floating point (session.disable_quant_qdq = 1), and are judged by mask IoU
against PyTorch in FP32. Beside it stands the share of multiply-adds of which both operands come from a DequantizeLinear.

ModelOpt needs older onnx and onnxruntime than ours, so an environment of its own:

  python -m venv /tmp/modelopt
  /tmp/modelopt/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
  /tmp/modelopt/bin/pip install 'nvidia-modelopt[onnx]==0.47.*'

Without a GPU, `onnxruntime==1.24.*` in the place of onnxruntime-gpu will do, and cupy is not needed.

Example (8 minutes on two quiet cores):
  python benchmarks/modelopt_ptq.py --modelopt-python /tmp/modelopt/bin/python --output benchmarks/results/modelopt_ptq.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from modelopt_ptq_report import OURS, THEIRS, Side, markdown, report
from script import finish, say

if TYPE_CHECKING:
    import onnx

    from calibrators.feeds import CalibrationFeeds

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("entropy", "max")
TIERS = {"A": ("A",), "A+B": ("A", "B")}
SIZES = {"num_prompts": 1, "num_points": 2}

Feed = Mapping[str, np.ndarray]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; 0 where ModelOpt is nowhere better at an equal or larger share, 1 where it is, 2 on bad input."""
    sys.path.insert(0, str(ROOT))
    from trt_sam.commands._accuracy_images import add_image_arguments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modelopt-python", type=Path, required=True, metavar="PATH", help="Python with nvidia-modelopt[onnx]")
    parser.add_argument("--output", type=Path, required=True, metavar="F.json", help="F.md is written beside it")
    parser.add_argument("--checkpoint", default="standin", metavar="C", help="default: %(default)s")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the graphs here")
    add_image_arguments(parser, images=16, prompts=16, calibration=16)
    parser.set_defaults(calibration_prompts=8)
    return finish("modelopt_ptq", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """What the flags ask for."""
    from calibrators.feeds import FeedOptions, calibration_feeds
    from trt_sam._files import write_atomically
    from trt_sam.accuracy.examples import make_examples
    from trt_sam.accuracy.measurement import Variant, measure
    from trt_sam.commands._accuracy_images import open_images
    from trt_sam.commands._options import decoder_for_prompts
    from trt_sam.errors import InputError
    from trt_sam.model.checkpoint import load_checkpoint
    from trt_sam.runtime.onnx_runner import OnnxRunner
    from trt_sam.runtime.torch_runner import TorchRunner

    if args.output.suffix != ".json":
        raise InputError(f"--output is {str(args.output)!r}, must end in .json")
    versions = modelopt_versions(args.modelopt_python)
    checkpoint = load_checkpoint(args.checkpoint)
    with tempfile.TemporaryDirectory(prefix="trt-sam-modelopt-") as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        embeddings = Path(temporary) / "embeddings"
        embeddings.mkdir()
        say("scenes and their embeddings")
        images = open_images(args, checkpoint, embeddings, calibrate=True)
        options = FeedOptions(prompts_per_image=args.calibration_prompts, seed=args.seed)
        decode = decoder_for_prompts(args, checkpoint)
        feeds = calibration_feeds(embeddings, options, encoder_sha256=images.encoder_sha256, decode=decode)
        plain = _export(checkpoint, folder / "fp32.onnx")
        sides = [*_ours(plain, feeds, folder), *_theirs(args.modelopt_python, plain, feeds, folder)]
        variants = [Variant(s.name, lambda path=s.path: OnnxRunner(path, emulate_quantization=True)) for s in sides]
        say(f"{len(sides)} graphs on {args.images * args.prompts_per_image} held-out prompts")
        examples = make_examples(images.evaluation(), args.prompts_per_image, prompts_per_call=4, seed=args.seed, decode=decode)
        measurement = measure(TorchRunner(checkpoint.decoder), variants, examples, keep_worst=0)
    stand_in = " (a stand-in trained on synthetic scenes: no figure here is one of SAM)" if images.encoder_sha256 else ""
    about = {
        "checkpoint": f"{args.checkpoint}{stand_in}, decoder {checkpoint.sha256[:16]}",
        "calibrated on": f"{feeds.num_images} images, {feeds.num_prompts} prompts in {len(feeds)} feeds, fingerprint "
        f"{feeds.fingerprint[:16]}",
        "judged on": f"{images.description}, {args.images * args.prompts_per_image} prompts, seed {args.seed}",
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in ("onnxruntime", "torch", "onnx", "numpy")),
        "ModelOpt's versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    data = report(sides, measurement, about)
    write_atomically(args.output, json.dumps(data, indent=2) + "\n")
    write_atomically(args.output.with_suffix(".md"), markdown(data))
    print(markdown(data))
    return 1 if data["modelopt_better"] else 0


def quantized_products(plain: onnx.ModelProto, quantized: onnx.ModelProto) -> tuple[float, tuple[str, ...], dict[str, int]]:
    """Count what a quantized form of a graph computes from quantized numbers.

    Args:
        plain: the graph before; its nodes have names.
        quantized: the graph after; its products kept their names.

    Returns:
        (share of `plain`'s multiply-adds of which both operands come from a DequantizeLinear, names of these products, other
        nodes that read a dequantized tensor, counted by operator).
    """
    from trt_sam.graph.arithmetic import count_graph

    counted = count_graph(plain, SIZES)
    dequantized = {node.output[0] for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    found: list[str] = []
    others: dict[str, int] = {}
    for node in quantized.graph.node:
        read = [name in dequantized for name in node.input]
        if node.name in counted.products and len(read) >= 2 and all(read[:2]):
            found.append(node.name)
        elif any(read):
            others[node.op_type] = others.get(node.op_type, 0) + 1
    return sum(counted.products[name] for name in found) / counted.multiply_adds, tuple(found), others


def modelopt_versions(python: Path) -> dict[str, str]:
    """Versions in ModelOpt's environment; raises InputError that says in one line what is missing."""
    from trt_sam.errors import InputError

    names = ["nvidia-modelopt", "onnx", "onnxruntime", "torch", "numpy"]
    code = (
        "import importlib.metadata as m, json; import modelopt.onnx.quantization\n"
        "def v(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return m.version(n + '-gpu')\n"
        f"print(json.dumps({{n: v(n) for n in {names}}}))"
    )
    help_line = "make the environment that the top of benchmarks/modelopt_ptq.py describes"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"--modelopt-python {python} cannot be run ({error.strerror}); {help_line}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{python} cannot import modelopt.onnx.quantization ({last}); {help_line}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _export(checkpoint: Any, path: Path) -> onnx.ModelProto:
    import onnx

    from trt_sam.graph.export import export_decoder
    from trt_sam.recipe import GraphOptions

    say("export of the FP32 graph")
    options = GraphOptions(precision="fp32", target="gpu")
    export_decoder(checkpoint.decoder, path, options, checkpoint_sha256=checkpoint.sha256)
    return onnx.load(path)


def _ours(plain: onnx.ModelProto, feeds: CalibrationFeeds, folder: Path) -> Iterator[Side]:
    import onnx

    from calibrators.calibration import Calibration
    from trt_sam.recipe import QuantizationOptions

    for title, tiers in TIERS.items():
        for recipe in (True, False) if title == "A" else (True,):
            say(f"our calibration, tiers {title}{'' if recipe else ', plain'}")
            options = QuantizationOptions(tiers=tiers)
            if not recipe:
                options = dataclasses.replace(options, shift=False, smooth_alpha=None, second_order=False)
            calibration = Calibration(plain, feeds, options, "int8")
            for method in METHODS:
                ranges = calibration.ranges({product.activation: method for product in calibration.products})
                model = calibration.quantized(ranges)
                path = folder / f"ours_{method}_{title}{'' if recipe else '_plain'}.onnx"
                onnx.save(model, path)
                name = f"ours, {method}, {title}{'' if recipe else ', plain'}"
                yield Side(name, OURS, method, path, *quantized_products(plain, model), recipe)


def _theirs(python: Path, plain: onnx.ModelProto, feeds: CalibrationFeeds, folder: Path) -> Iterator[Side]:
    from trt_sam.quantize.share import find_products

    stored = store_feeds(feeds, folder / "feeds")
    chosen: dict[str, list[str] | None] = {"its own choice": None}
    chosen.update((f"nodes of {title}", [p.name for p in find_products(plain, tiers)]) for title, tiers in TIERS.items())
    for title, nodes in chosen.items():
        for method in METHODS:
            say(f"ModelOpt, {method}, {title}")
            path = folder / f"modelopt_{method}_{title.replace(' ', '_')}.onnx"
            model = modelopt_graph(python, folder / "fp32.onnx", stored, path, method, nodes)
            yield Side(f"ModelOpt, {method}, {title}", THEIRS, method, path, *quantized_products(plain, model))


def store_feeds(feeds: CalibrationFeeds, folder: Path) -> Path:
    """Write the feeds to the new folder, as ModelOpt's process reads them; returns the folder."""
    folder.mkdir()
    for number, feed in enumerate(feeds):
        np.savez(folder / f"{number:05d}.npz", **feed)
    return folder


def modelopt_graph(
    python: Path, plain: Path, feeds: Path, output: Path, method: str, nodes: Sequence[str] | None
) -> onnx.ModelProto:
    """Let ModelOpt write the int8 form of the graph `plain` to `output`, and return it.

    Args:
        python: of ModelOpt's environment.
        plain: an FP32 graph of this package.
        feeds: folder of `store_feeds`.
        output: the file.
        method: "entropy" or "max".
        nodes: names of the nodes to quantize; None for ModelOpt's own choice.
    """
    import onnx

    _run_modelopt(python, {"graph": plain, "feeds": feeds, "output": output, "method": method}, nodes)
    model = onnx.load(output)
    # ModelOpt drops the metadata by which OnnxRunner knows a decoder.
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(plain, load_external_data=False).metadata_props)
    onnx.save(model, output)
    return model


def _run_modelopt(python: Path, job: Mapping[str, str | Path], nodes: Sequence[str] | None) -> None:
    from trt_sam.errors import TrtSamError

    text = json.dumps({**{key: str(value) for key, value in job.items()}, "nodes": nodes})
    done = subprocess.run([str(python), __file__, "worker", text], capture_output=True, text=True, check=False)
    if done.returncode or not Path(job["output"]).exists():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrtSamError(f"ModelOpt ended with status {done.returncode} ({last})")


class _Reader:
    """ModelOpt's calibration reader over stored feeds, one in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("*.npz"))
        self.rewind()

    def get_next(self) -> Feed | None:
        path = next(self._left, None)
        return None if path is None else self._load(path)

    def get_first(self) -> Feed:
        return self._load(self._paths[0])

    def rewind(self) -> None:
        self._left = iter(self._paths)

    @staticmethod
    def _load(path: Path) -> Feed:
        with np.load(path) as stored:
            return dict(stored)


def worker(text: str) -> int:
    """In ModelOpt's environment: one graph, by the JSON job `text`."""
    import re

    from modelopt.onnx.quantization import quantize

    job = json.loads(text)
    nodes = job["nodes"]
    quantize(
        job["graph"],
        quantize_mode="int8",
        calibration_method=job["method"],
        calibration_data_reader=_Reader(Path(job["feeds"])),
        calibration_eps=["cpu"],
        # Regular expressions to ModelOpt.
        nodes_to_quantize=None if nodes is None else [f"^{re.escape(name)}$" for name in nodes],
        high_precision_dtype="fp32",
        output_path=job["output"],
        log_level="WARNING",
    )
    return 0


if __name__ == "__main__":
    sys.exit(worker(sys.argv[2]) if sys.argv[1:2] == ["worker"] else main())
