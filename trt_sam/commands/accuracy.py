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
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_sam._files import existing_file, write_atomically
from trt_sam._json import strict
from trt_sam._lazy import require_all
from trt_sam._version import __version__
from trt_sam.commands._accuracy_images import Images, add_image_arguments
from trt_sam.commands._accuracy_variants import FLOAT, VariantMaker, graph_variant, shares_text, takes_masks
from trt_sam.commands._limits import add_limit_arguments, limits_given, limits_of
from trt_sam.commands._options import (
    add_checkpoint_argument,
    add_json_argument,
    check_images_given,
    decoder_for_prompts,
    write_json,
)
from trt_sam.commands._outputs import check_output_file, check_reports
from trt_sam.errors import InputError
from trt_sam.progress import Progress, Stages

if TYPE_CHECKING:
    from trt_sam.accuracy.examples import Example
    from trt_sam.accuracy.report import AccuracyReport
    from trt_sam.model.checkpoint import Checkpoint

HELP = "FP16, INT8 and FP8 against PyTorch: the accuracy table"

DEFAULT_VARIANTS = (
    "fp16",
    *(f"int8-{calibrator}-{tiers}" for tiers in ("A", "AB") for calibrator in ("entropy", "percentile", "mse", "max")),
    "fp8-max-A",
)
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
    parser.add_argument(
        "--allow-calibration-images", action="store_true", help="judge a --graph even on images that it was calibrated with"
    )
    parser.add_argument("--output", required=True, metavar="DIR", type=Path, help=f"for {', '.join(_REPORTS)}")
    parser.add_argument("--force", action="store_true", help="replace reports that are there")
    add_limit_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Measure; 0 when the report was written, 1 when limits were given and a variant does not keep them."""
    limits = limits_of(args)
    names = [part.strip() for part in args.variants.split(",") if part.strip()]
    given = _given_graphs(args.graph)
    _check_names(names, [name for name, _ in given])
    check_reports("--output", args.output, _REPORTS, force=args.force)
    check_output_file(args.json)
    check_images_given(args)
    quantized = [name for name in names if name not in FLOAT]
    times = {"load": 1, "images": 5, "export": 3, "calibrate": 2 * len(quantized), "measure": 4 * len(names) + 4 * len(given)}
    with Stages(times) as stages, contextlib.ExitStack() as stack:
        stages.begin("load", f"loading {args.checkpoint}")
        require_all(("torch", "onnx", "onnxscript", "onnxruntime", "PIL", "matplotlib"), "to measure accuracy")
        from trt_sam.accuracy.examples import make_examples
        from trt_sam.accuracy.measurement import measure
        from trt_sam.accuracy.report import make_report, markdown
        from trt_sam.feeds.realistic import shares
        from trt_sam.gate.of_accuracy import judge_variants, verdict_lines
        from trt_sam.gate.report.accuracy_page import accuracy_page
        from trt_sam.model.checkpoint import load_checkpoint
        from trt_sam.runtime.torch_runner import TorchRunner

        checkpoint = load_checkpoint(args.checkpoint)
        variants = [graph_variant(name, path, checkpoint) for name, path in given]
        work = VariantMaker(args, checkpoint, Path(stack.enter_context(tempfile.TemporaryDirectory())), stages)
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
            earlier_masks=all(takes_masks(path) for _, path in given),
        )
        if not args.allow_calibration_images:
            examples = _unseen(examples, given)
        progress = _counted(stages.begin("measure", f"measuring {len(variants)} variants on {args.images} images"), total)
        measurement = measure(TorchRunner(checkpoint.decoder), variants, examples, progress=progress)
    report = make_report(
        measurement,
        title=f"Accuracy of {args.checkpoint}",
        conditions={
            **_conditions(checkpoint, args, images),
            "prompts": f"{shares_text(shares(measurement.kinds.tolist()))}, {_DRAWN[args.random_prompts]}",
            **work.about,
        },
        descriptions={variant.name: variant.description for variant in variants},
        facts=work.facts,
    )
    verdicts = judge_variants(measurement, _arithmetics(names, given), limits)
    data = {**report.to_dict(), "verdicts": strict({name: dataclasses.asdict(each) for name, each in verdicts.items()})}
    write_json(str(args.output / "report.json"), data)
    write_atomically(args.output / "report.md", markdown(report))
    write_atomically(args.output / "report.html", accuracy_page(report, measurement.worst, verdicts))
    if args.json:
        write_json(args.json, data)
    if args.json != "-":
        print(_summary(report, args.output))
        print("\n".join(verdict_lines(verdicts)))
    return 1 if limits_given(args) and not all(verdict.passed for verdict in verdicts.values()) else 0


def _unseen(examples: Iterable[Example], given: Sequence[tuple[str, Path]]) -> Iterator[Example]:
    """The same; raises InputError where one is on an image that a graph of the user was calibrated with."""
    from trt_sam.accuracy.sides import calibration_images
    from trt_sam.gate.fitting import refuse_calibration_images
    from trt_sam.graph.metadata import read_graph

    used = {str(path): calibration_images(read_graph(path).metadata) for _, path in given}
    return (example for example, _ in refuse_calibration_images(((example, None) for example in examples), used))


def _arithmetics(names: Sequence[str], given: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """By variant, whose limits count for it."""
    from trt_sam.graph.metadata import read_graph

    graphs = {name: read_graph(path) for name, path in given}
    floating = {name: each.options.precision for name, each in graphs.items() if each.options and not each.quantized}
    floating |= {name: name for name in names if name in FLOAT}
    return {name: floating.get(name, "quantized") for name in (*names, *graphs)}


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

    everything = [*(name if name in FLOAT else str(parse_variant(name)) for name in names), *given]
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
