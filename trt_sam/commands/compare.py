"""Judge graphs and engines by a reference on the same prompts: one verdict each, by limits on masks, scores and logits.

The reference and every candidate is a checkpoint, an ONNX graph, or an engine set where a GPU can run it. Prompts are put on
--photos, --embeddings (with --photos beside them as pictures for the report) or --golden data, which bring the reference's
answers along. Without these a stand-in is judged on scenes that it was not trained on, and mobile_sam on the golden data in the
package. An FP16 graph is compared through an emulation that rounds every FP16 tensor.

Exit code 0 when every candidate passes; 1 when a limit is missed or there are too few prompts to tell; 2 for bad input.

Example:
  trt-sam compare mobile_sam engines/built/mobile_sam/decoder.onnx --embeddings embeddings/ --photos photos/ --report report/
  trt-sam compare --golden golden.npz engines/built/mobile_sam --min-mean-iou 0.995
  trt-sam compare standin fp16.onnx int8.onnx --limits limits.toml --json report.json
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trt_sam.commands._judged_on import DEFAULT_PROMPTS, prompts_of, questions_of
from trt_sam.commands._limits import add_limit_arguments, limits_of, outputs_limited
from trt_sam.commands._options import add_cache_argument, add_json_argument, gpu_number, write_json
from trt_sam.commands._outputs import check_output_file, check_reports
from trt_sam.errors import InputError
from trt_sam.progress import Progress, Stages

if TYPE_CHECKING:
    from trt_sam.accuracy.sides import Side
    from trt_sam.gate.comparison import Comparison
    from trt_sam.gate.fitting import Asked
    from trt_sam.gate.golden import Golden

HELP = "a verdict on graphs and engines, by limits on masks, scores and logits"

REPORTS = ("report.html", "report.md", "report.json", "junit.xml")
_ASKED = {"fp32": "fp32", "tf32": "tf32", "fp16": "fp16", "int8": "quantized", "fp8": "quantized"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `compare`."""
    what = "mobile_sam, standin or another checkpoint, a .onnx graph, or an engine set's folder"
    parser.add_argument("sides", metavar="[REFERENCE] CANDIDATE", nargs="+", help=f"{what}; with --golden candidates alone")
    add_cache_argument(parser)
    data = parser.add_argument_group("what it is judged on")
    data.add_argument(
        "--golden", metavar="G.npz", type=Path, help="prompts and answers of trt-sam golden; no reference is named"
    )
    data.add_argument(
        "--golden-inputs", metavar="F.json", type=Path, help="its inputs, where --golden is outputs of Polygraphy"
    )
    data.add_argument("--embeddings", metavar="DIR", type=Path, help="embeddings of trt-sam embed")
    data.add_argument("--photos", metavar="DIR", type=Path, help="photos, embedded on the way, or the pictures of --embeddings")
    data.add_argument("--random-embeddings", action="store_true", help="noise: compares arithmetic, says nothing of masks")
    data.add_argument("--prompts", metavar="N", type=int, help=f"how many (default: {DEFAULT_PROMPTS}, or all golden ones)")
    data.add_argument("--seed", metavar="N", type=int, default=0, help="of the prompts (default: 0)")
    data.add_argument(
        "--allow-calibration-images", action="store_true", help="judge a graph even on images that it was calibrated with"
    )
    add_limit_arguments(parser)
    parser.add_argument("--precision", choices=tuple(_ASKED), help="what the candidates should be; a coarser one fails")
    parser.add_argument(
        "--layers", action="store_true", help="compare tensors too, and name the first node that breaks a limit"
    )
    parser.add_argument("--report", metavar="DIR", type=Path, help=f"write {', '.join(REPORTS)}")
    parser.add_argument("--force", action="store_true", help="replace reports that are there")
    parser.add_argument("--device", metavar="cuda:N", default="cuda:0", help="GPU for engines (default: %(default)s)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Judge; 0 when every candidate passes, 1 when one does not."""
    photos = _check_flags(args)
    limits = limits_of(args)
    device = gpu_number(args.device)
    from trt_sam.accuracy.sides import open_side
    from trt_sam.gate.by_golden import about_golden, check_checkpoint
    from trt_sam.gate.comparison import Questions, compare_with
    from trt_sam.gate.fitting import LeftOut, fitting, refuse_calibration_images
    from trt_sam.gate.reference import half_of

    golden = _golden(args)
    with Stages({"open": 1, "compare": 5, "layers": 5 * args.layers}) as stages, contextlib.ExitStack() as stack:
        sides: list[Side] = []
        for source in args.sides:
            stages.begin("open", f"opening {source}")
            sides.append(open_side(source, device=device))
            stack.callback(sides[-1].runner.close)
        reference, candidates = (None, sides) if golden is not None else (sides[0], sides[1:])
        _check_outputs(outputs_limited(args), candidates)
        if golden is not None:
            for side in candidates:
                check_checkpoint(golden, side.source, side.checkpoint_sha256)
        if args.layers:
            from trt_sam.gate.blame import check_layers

            check_layers(reference, candidates)
        found = questions_of(args, reference, candidates, golden, photos)
        left_out = LeftOut()
        asked: Iterable[Asked] = fitting(found.examples, sides, left_out)
        if not args.allow_calibration_images:
            asked = refuse_calibration_images(asked, {side.source: side.calibration_images for side in candidates})
        questions = Questions(asked, found.description, found.masks_mean_something, left_out)
        count = prompts_of(args, golden)
        telling = stages.begin("compare", f"comparing on {count} prompts")
        comparison = compare_with(
            reference,
            candidates,
            questions,
            limits,
            about=None if golden is None else about_golden(golden),
            expected=None if args.precision is None else _ASKED[args.precision],
            half=None if reference is None or reference.checkpoint is None else half_of(reference.checkpoint),
            progress=_counted(telling, count),
        )
        if args.layers:
            from trt_sam.gate.blame import with_layers

            stages.begin("layers", "comparing layers")
            comparison = with_layers(comparison, reference, candidates)
    _write(args, comparison)
    return 0 if comparison.passed else 1


def _check_outputs(limited: Sequence[str], candidates: Sequence[Side]) -> None:
    """Raise InputError for a tolerance of an output that no candidate gives: it would judge nothing."""
    given = list(dict.fromkeys(spec.name for side in candidates for spec in side.runner.outputs))
    for name in limited:
        if name not in given:
            raise InputError(f"there is a tolerance for {name}, which no candidate gives; they give {', '.join(given)}")


def _golden(args: argparse.Namespace) -> Golden | None:
    if args.golden is None:
        return None
    if args.golden.suffix == ".json":
        if args.golden_inputs is None:
            raise InputError(f"{args.golden} are outputs that Polygraphy saved; name their inputs with --golden-inputs F.json")
        from trt_sam.polygraphy.exchange import read_polygraphy

        return read_polygraphy(args.golden_inputs, args.golden)
    from trt_sam.gate.golden import load_golden

    return load_golden(args.golden)


def _check_flags(args: argparse.Namespace) -> list[Path]:
    """Raise InputError for impossible flags; the files that `--photos` names, before a checkpoint is loaded."""
    if args.golden is None and len(args.sides) < 2:
        raise InputError("there is a reference but no candidate: name both, or give --golden G.npz CANDIDATE")
    if args.prompts is not None and args.prompts < 1:
        raise InputError(f"--prompts is {args.prompts}, must be at least 1")
    if args.seed < 0:
        raise InputError(f"--seed is {args.seed}, must be at least 0")
    if args.golden is not None and args.layers:
        raise InputError(
            "--layers need a reference's own tensors, and --golden has none: leave --golden out and name a checkpoint, or a "
            "float32 graph, before the candidate"
        )
    sources = [n for n in ("golden", "embeddings", "random_embeddings") if getattr(args, n)]
    sources += ["photos"] if args.photos is not None and args.embeddings is None else []
    if len(sources) > 1:
        raise InputError(f"--{sources[0].replace('_', '-')} and --{sources[1].replace('_', '-')} exclude each other; give one")
    photos = _photos(args)
    check_output_file(args.json)
    if args.report is not None:
        check_reports("--report", args.report, REPORTS, force=args.force)
    return photos


def _photos(args: argparse.Namespace) -> list[Path]:
    """The photos; raises InputError for folders that hold nothing to judge on."""
    from trt_sam.imaging.embeddings import embedding_files
    from trt_sam.imaging.photos import list_images

    if args.embeddings is not None:
        embedding_files(args.embeddings)
    return [] if args.photos is None else list_images([args.photos])


def _counted(tell: Progress, total: int) -> Callable[[int], None]:
    def progress(done: int) -> None:
        tell(min(1.0, done / total), f"{done} prompts")

    return progress


def _write(args: argparse.Namespace, comparison: Comparison) -> None:
    from trt_sam._files import write_atomically
    from trt_sam.gate.report.environment import environment
    from trt_sam.gate.report.text import junit, lines, markdown, to_dict

    about = environment([*args.sides, *([str(args.golden)] if args.golden else [])])
    data = to_dict(comparison, about)
    if args.report is not None:
        from trt_sam.gate.report.page import comparison_page

        write_json(str(args.report / "report.json"), data)
        write_atomically(args.report / "report.md", markdown(comparison))
        write_atomically(args.report / "junit.xml", junit(comparison))
        write_atomically(args.report / "report.html", comparison_page(comparison, about))
    if args.json:
        write_json(args.json, data)
    if args.json != "-":
        print("\n".join(lines(comparison)))
        if args.report is not None:
            print(f"{args.report}: {', '.join(REPORTS)}")
