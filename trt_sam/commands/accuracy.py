"""How far FP16, INT8 and FP8 are from PyTorch in FP32: masks, edges, choices and scores, as a table, JSON and a page.

Example:
  trt-sam accuracy --checkpoint standin --output report/
  trt-sam accuracy --checkpoint sam.pth --embeddings embeddings/ --variants fp16,int8-entropy-A,int8-auto-AB --output report/
  trt-sam accuracy --checkpoint standin --variants fp16 --graph mine=int8.onnx --output report/

Variants are fp16, fp32, or PRECISION-CALIBRATOR-TIERS, calibrated here on other images than those that are judged. Without
--embeddings or --photos the stand-ins are judged on synthetic scenes that none of them was trained on.

A verdict by the limits of `compare` closes the table; with --limits or a flag of a limit the exit code is 1 where a variant
does not keep them.

Everything runs on the CPU. Quantized graphs are measured as they are delivered, float16 around the pairs, with the pairs in
floating point, so that no figure depends on the CPU's integer instructions; ONNX Runtime took 1.3 times as long for that as for
the same pairs in a float32 graph. It computes their float16 parts in float32. FP16 itself runs in the emulation that
rounds every float16 tensor.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._files import existing_file, write_atomically
from trt_sam._json import strict
from trt_sam._lazy import require_all
from trt_sam._version import __version__
from trt_sam.commands._accuracy_images import Images, add_image_arguments, open_images
from trt_sam.commands._limits import add_limit_arguments, limits_given, limits_of
from trt_sam.commands._options import add_checkpoint_argument, add_json_argument, decoder_for_prompts, write_json
from trt_sam.commands._outputs import check_output_file, check_output_folder
from trt_sam.errors import InputError
from trt_sam.progress import Progress, Stages
from trt_sam.recipe import GraphOptions

if TYPE_CHECKING:
    import onnx

    from trt_sam.accuracy.measurement import Variant
    from trt_sam.accuracy.report import AccuracyReport
    from trt_sam.model.checkpoint import Checkpoint
    from trt_sam.runtime.interface import Runner

HELP = "FP16, INT8 and FP8 against PyTorch: the accuracy table"

DEFAULT_VARIANTS = (
    "fp16",
    *(f"int8-{calibrator}-{tiers}" for tiers in ("A", "AB") for calibrator in ("entropy", "percentile", "mse", "max")),
    "fp8-max-A",
)
_FLOAT = ("fp16", "fp32")
_DRAWN = {
    False: "drawn on exact masks where they are known, else on what FP32 segments at clicks anywhere",
    True: "drawn on exact masks where they are known, else anywhere in the picture",
}
_REPORTS = ("report.md", "report.json", "report.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `accuracy`."""
    add_checkpoint_argument(parser, required=True)
    add_image_arguments(parser, images=16, prompts=16, calibration=16)
    parser.add_argument(
        "--variants",
        metavar="LIST",
        default=",".join(DEFAULT_VARIANTS),
        help='what to judge, "" for none (default: %(default)s)',
    )
    parser.add_argument(
        "--graph", metavar="NAME=F.onnx", action="append", default=[], help="judge this graph of the checkpoint too; repeatable"
    )
    parser.add_argument("--output", required=True, metavar="DIR", type=Path, help=f"for {', '.join(_REPORTS)}")
    add_limit_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Measure; 0 when the report was written, 1 when limits were given and a variant does not keep them."""
    limits = limits_of(args)
    names = [part.strip() for part in args.variants.split(",") if part.strip()]
    given = _given_graphs(args.graph)
    _check_names(names, [name for name, _ in given])
    check_output_folder(args.output)
    check_output_file(args.json)
    quantized = [name for name in names if name not in _FLOAT]
    times = {"load": 1, "images": 5, "export": 3, "calibrate": 2 * len(quantized), "measure": 4 * len(names) + 4 * len(given)}
    with Stages(times) as stages, contextlib.ExitStack() as stack:
        stages.begin("load", f"loading {args.checkpoint}")
        require_all(("torch", "onnx", "onnxscript", "onnxruntime", "PIL"), "to measure accuracy")
        from trt_sam.accuracy.examples import make_examples
        from trt_sam.accuracy.measurement import measure
        from trt_sam.accuracy.page import accuracy_page
        from trt_sam.accuracy.report import make_report, markdown
        from trt_sam.feeds.realistic import shares
        from trt_sam.gate.of_accuracy import judge_variants, verdict_lines
        from trt_sam.model.checkpoint import load_checkpoint
        from trt_sam.runtime.torch_runner import TorchRunner

        checkpoint = load_checkpoint(args.checkpoint)
        variants = [_variant(name, path, checkpoint) for name, path in given]
        work = _Work(args, checkpoint, Path(stack.enter_context(tempfile.TemporaryDirectory())), stages)
        images = work.open_images(calibrate=bool(quantized))
        made = {variant.name: variant for variant in work.make(names, images)}
        variants = [*(made[name] for name in names), *variants]
        total = args.images * args.prompts_per_image * len(variants)
        examples = make_examples(
            images.evaluation(),
            args.prompts_per_image,
            prompts_per_call=4,
            seed=args.seed,
            decode=decoder_for_prompts(args, checkpoint),
            earlier_masks=all(_takes_masks(path) for _, path in given),
        )
        progress = _counted(stages.begin("measure", f"measuring {len(variants)} variants on {args.images} images"), total)
        measurement = measure(TorchRunner(checkpoint.decoder), variants, examples, progress=progress)
    report = make_report(
        measurement,
        title=f"Accuracy of {args.checkpoint}",
        conditions={
            **_conditions(checkpoint, args, images),
            "prompts": f"{_shares(shares(measurement.kinds.tolist()))}, {_DRAWN[args.random_prompts]}",
            **work.about,
        },
        descriptions={variant.name: variant.description for variant in variants},
        facts=work.facts,
    )
    verdicts = judge_variants(measurement, _arithmetics(names, given), limits)
    data = {**report.to_dict(), "verdicts": strict({name: dataclasses.asdict(each) for name, each in verdicts.items()})}
    write_json(str(args.output / "report.json"), data)
    write_atomically(args.output / "report.md", markdown(report))
    write_atomically(args.output / "report.html", accuracy_page(report, measurement.worst))
    if args.json:
        write_json(args.json, data)
    if args.json != "-":
        print(_summary(report, args.output))
        print("\n".join(verdict_lines(verdicts)))
    return 1 if limits_given(args) and not all(verdict.passed for verdict in verdicts.values()) else 0


def _arithmetics(names: Sequence[str], given: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """By variant, whose limits count for it."""
    from trt_sam.graph.metadata import read_graph

    options = {name: read_graph(path).options for name, path in given}
    precisions = {name: each.precision for name, each in options.items() if each is not None}
    precisions |= {name: name for name in names if name in _FLOAT}
    return {name: p if (p := precisions.get(name, "")) in _FLOAT else "quantized" for name in (*names, *options)}


class _Work:
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
            yield _variant("fp32", self._path("fp32"), self._checkpoint)
        if "fp16" in names:
            self._export("fp16")
            yield _variant("fp16", self._path("fp16"), self._checkpoint)
        if images.calibration is None:
            return
        options = FeedOptions(prompts_per_image=self._args.calibration_prompts, seed=self._args.seed, mask_input=True)
        decode = decoder_for_prompts(self._args, self._checkpoint)
        feeds = calibration_feeds(images.calibration, options, encoder_sha256=images.encoder_sha256, decode=decode)
        self.about = {
            "calibration": f"{feeds.num_images} other images, {feeds.num_prompts} prompts "
            f"({_shares(feeds.to_dict()['shares'])}), fingerprint {feeds.fingerprint[:16]}"
        }
        parsed = [parse_variant(name) for name in names if name not in _FLOAT]
        spelled = {str(name): text for name, text in zip(parsed, (n for n in names if n not in _FLOAT), strict=True)}
        plain, half = self._export("fp32"), self._export("fp16")
        progress = self._stages.begin("calibrate", f"calibrating {len(parsed)} variants", phases=True)
        for written in write_variants(parsed, plain, half, feeds, self._folder, progress=progress):
            name = spelled[written.name]
            self.facts[name] = written.facts
            yield dataclasses.replace(_variant(name, written.path, self._checkpoint), description=written.description)

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


def _variant(name: str, path: Path, checkpoint: Checkpoint) -> Variant:
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


def _takes_masks(path: Path) -> bool:
    from trt_sam.runtime.onnx_runner import OnnxRunner

    with OnnxRunner(path) as runner:
        return any(spec.name == "mask_input" for spec in runner.inputs)


def _shares(of: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0%}" for kind, share in of.items())


def _given_graphs(texts: Sequence[str]) -> list[tuple[str, Path]]:
    graphs = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise InputError(f"--graph is {text!r}, must be NAME=F.onnx")
        graphs.append((name, existing_file(path, "graph")))
    return graphs


def _check_names(names: Sequence[str], given: Sequence[str]) -> None:
    from calibrators.variants import parse_variant

    everything = [*(name if name in _FLOAT else str(parse_variant(name)) for name in names), *given]
    if not everything:
        raise InputError("there is nothing to judge: give --variants or --graph")
    for name in everything:
        if everything.count(name) > 1:
            raise InputError(f"variant {name} is named twice; name each once")


def _conditions(checkpoint: Checkpoint, args: argparse.Namespace, images: Images) -> dict[str, Any]:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("onnxruntime", "torch", "onnx", "numpy"))
    stand_in = " (a stand-in trained on synthetic scenes: no figure here is one of SAM)"
    return {
        "checkpoint": f"{args.checkpoint}{stand_in if checkpoint.encoder_kind == 'vit_standin' else ''}, "
        f"decoder {checkpoint.sha256[:16]}",
        "judged on": f"{images.description}, {args.images * args.prompts_per_image} prompts, seed {args.seed}",
        "reference": "PyTorch, FP32, on the CPU",
        "executed by": "ONNX Runtime on the CPU; INT8 and FP8 graphs as delivered, their pairs in floating point "
        "(session.disable_quant_qdq = 1) and their float16 parts computed in float32",
        "versions": f"trt-sam {__version__}, {versions}, {platform.machine()}",
    }


def _counted(tell: Progress, total: int) -> Callable[[str, int], None]:
    done: dict[str, int] = {}

    def progress(name: str, prompts: int) -> None:
        done[name] = prompts
        tell(min(1.0, sum(done.values()) / total), name)

    return progress


def _summary(report: AccuracyReport, folder: Path) -> str:
    from trt_sam.accuracy.report import overall_row, shown_columns

    columns = shown_columns(report)
    rows = [["variant", *(title for title, _ in columns)], *(overall_row(each, columns) for each in report.variants)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]) for row in rows
    ]
    return "\n".join([*lines, f"{folder}: {', '.join(_REPORTS)}"])
