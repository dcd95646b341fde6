"""The image encoder on a CPU, ours in ONNX Runtime beside its peers: time by turns in one run, and memory.

mobile_sam: MobileSAM's own encoder in PyTorch, and `torch.onnx.export` of it in a session like ours. vit_b: transformers' with
random weights. photo_to_mask: a photo and one click, beside MobileSAM's own predictor. Each subject has files of its own. On a
busy machine give --threads 1: PyTorch's threads wait for each other spinning, which is processor time too.

Example:
  python benchmarks/encoder.py mobile_sam photo_to_mask --output benchmarks/results
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.script import finish, say  # noqa: E402
from trt_sam._files import write_atomically  # noqa: E402
from trt_sam.accuracy.metrics import relative_error  # noqa: E402
from trt_sam.bench.process import Worker  # noqa: E402
from trt_sam.bench.stats import Latency, Ratio, ratio_of_medians, summarize  # noqa: E402
from trt_sam.machine.load import clocks, describe_machine  # noqa: E402

SUBJECTS = {
    "mobile_sam": (
        "ours, ONNX Runtime",
        "torch.onnx.export of MobileSAM, ONNX Runtime",
        "the same from pixels that are normalised already",
        "MobileSAM, PyTorch",
    ),
    "vit_b": ("ours, ONNX Runtime", "transformers, PyTorch"),
    "photo_to_mask": ("ours, ONNX Runtime", "MobileSAM's predictor, PyTorch"),
}
"""The sides of each subject, ours first; the last is what is called its peer."""
TOLERANCE = 1e-4
"""Largest difference to ours, relative to the largest |value| of ours."""
METHOD = (
    "A call takes a photo of 512 x 512 to its embedding, or, with a click, to the logits of three masks. One process per side; "
    "one works, the others wait. A round times each side in turn, the order rotated from round to round, after a call that is "
    "not counted. A ratio is of two medians in one round; what is given is the median of the rounds and their quartiles. "
    "Processor time is of all threads; it says what the work costs on a machine that others use too. Memory is the peak of the "
    "process's resident memory over all its calls, and before the side loads its model, with its libraries imported and the "
    "photo read. Sessions of ONNX Runtime have the options of OnnxEncoder."
)


@dataclass
class Run:
    """One side while it is measured."""

    name: str
    worker: Worker
    about: dict[str, str]
    rounds: list[list[float]] = field(default_factory=list)
    """Milliseconds of each call, by round."""
    processor: list[list[float]] = field(default_factory=list)
    """Milliseconds of processor time of a call in the mean, one number for each round."""
    difference: float = 0.0


@dataclass(frozen=True)
class Result:
    """One side of one subject."""

    subject: str
    side: str
    about: dict[str, str]
    latency: Latency
    processor_ms: float
    """Of all threads in a call: the median of the rounds' means."""
    peak_mb: float
    difference: float
    """Of its output to ours, relative to the largest |value|."""


@dataclass(frozen=True)
class Compared:
    """How many times faster ours is than another side, and how many times less processor time it takes."""

    wall: Ratio
    processor: Ratio


def main(argv: list[str] | None = None) -> int:
    """Measure; 0 when all outputs agree with ours, 1 when one does not, 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for encoder_SUBJECT.json and .md")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="per side and round (default: %(default)g)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of every side (default: %(default)s)")
    return finish("encoder", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """What the flags ask for."""
    from trt_sam.errors import InputError

    subjects = args.subjects or list(SUBJECTS)
    if not set(subjects) <= set(SUBJECTS):
        raise InputError(f"subjects are {', '.join(subjects)}, must be of {', '.join(SUBJECTS)}")
    if args.rounds < 1 or args.threads < 1:
        raise InputError(f"--rounds is {args.rounds} and --threads {args.threads}, both must be at least 1")
    agree = True
    for subject in subjects:
        with tempfile.TemporaryDirectory(prefix="trt-sam-encoder-") as folder:
            results, ratios = measure(subject, Path(folder) / subject, args)
        report = {
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": describe_machine(),
            "clocks": clocks(),
            "arguments": {"subject": subject, "rounds": args.rounds, "seconds": args.seconds, "threads": args.threads},
            "method": METHOD,
            "results": [dataclasses.asdict(result) for result in results],
            "ours_to_others": [dataclasses.asdict(ratio) for ratio in ratios],
        }
        text = markdown(report, results, ratios)
        write_atomically(args.output / f"encoder_{subject}.json", json.dumps(report, indent=2) + "\n")
        write_atomically(args.output / f"encoder_{subject}.md", text)
        print(text)
        agree &= all(result.difference <= TOLERANCE for result in results)
    return int(not agree)


def measure(subject: str, folder: Path, args: argparse.Namespace) -> tuple[list[Result], list[Compared]]:
    """All sides of a subject, in turn."""
    folder.mkdir()
    factories = write_graphs(subject, folder)
    with contextlib.ExitStack() as stack:
        runs = []
        for name, (factory, settings) in zip(SUBJECTS[subject], factories, strict=True):
            say(f"{subject}: opening {name}")
            (folder / str(len(runs))).mkdir()
            worker = stack.enter_context(Worker(threads=args.threads, scratch=folder / str(len(runs))))
            request = {"factory": f"benchmarks.encoder_sides:{factory}", "settings": settings | {"threads": args.threads}}
            about = worker.ask("open", **request, path=[str(ROOT)])["about"]
            worker.ask("prepare", prompts=1, warmup_s=0, save=str(folder / f"{len(runs)}.npz"))
            runs.append(Run(name, worker, about))
        reference = _kept(folder, 0)
        for number, each in enumerate(runs):
            each.difference = relative_error(reference, _kept(folder, number))
        for turn in range(args.rounds):
            say(f"{subject}: round {turn + 1} of {args.rounds}")
            at = turn % len(runs)
            for each in (*runs[at:], *runs[:at]):
                found = each.worker.ask("measure", prompts=1, seconds=args.seconds)
                each.rounds.append(found["samples_ms"])
                each.processor.append([found["processor_ms"]])
        results = [
            Result(
                subject,
                each.name,
                each.about,
                summarize([ms for turn in each.rounds for ms in turn]),
                float(np.median(each.processor)),
                each.worker.ask("memory")["peak_mb"],
                each.difference,
            )
            for each in runs
        ]
    ours, *others = runs
    return results, [
        Compared(
            ratio_of_medians(ours.name, ours.rounds, each.name, each.rounds, prompts=1),
            ratio_of_medians(ours.name, ours.processor, each.name, each.processor, prompts=1),
        )
        for each in others
    ]


def write_graphs(subject: str, folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """What the sides need, and for each its factory in `encoder_sides` with its settings but for the threads."""
    from benchmarks.encoder_sides import write_ours, write_plain

    say(f"{subject}: writing graphs")
    if subject == "photo_to_mask":
        from trt_sam.cli import main as trt_sam

        code = trt_sam(["export", "--checkpoint", "mobile_sam", "--encoder", "--output", str(folder / "set")])
        assert code == 0, "the export has said why"
        return [("open_our_photo_to_mask", {"path": str(folder / "set")}), ("open_their_photo_to_mask", {})]
    write_ours(subject, folder / "ours.onnx")
    ours = ("open_ours", {"path": str(folder / "ours.onnx")})
    if subject == "vit_b":
        return [ours, ("open_transformers", {})]
    write_plain(subject, folder / "plain.onnx")
    plain = {"path": str(folder / "plain.onnx")}
    return [
        ours,
        ("open_plain", {**plain, "prepared": False}),
        ("open_plain", {**plain, "prepared": True}),
        ("open_mobile_sam", {}),
    ]


def markdown(report: dict[str, Any], results: Sequence[Result], ratios: Sequence[Compared]) -> str:
    """The report for readers."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"# Image encoders on a CPU: {report['arguments']['subject']}",
        "",
        f"{report['created']}, {machine['processor']}, {machine['cpus_allowed']} CPUs, {report['arguments']['threads']} "
        f"threads per side, load {report['clocks'].get('load_average', '?')}. {versions}.",
        "",
        METHOD,
        "",
        "| side | p50, ms | p90, ms | calls | processor time, ms | peak memory, MB | before the model | difference to ours |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        p90 = "-" if result.latency.p90 is None else f"{result.latency.p90:.0f}"
        lines.append(
            f"| {result.side} | {result.latency.p50:.0f} | {p90} | {result.latency.samples} "
            f"| {result.processor_ms:.0f} | {result.peak_mb:.0f} | {result.about['imported_mb']} | {result.difference:.1e} |"
        )
    lines += [
        *("", "Ours beside the others, times as fast and times less processor time:", ""),
        "| side | ratio of medians | quartiles of the rounds | range | processor time | quartiles |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for compared in ratios:
        wall, processor = compared.wall, compared.processor
        lines.append(
            f"| {wall.baseline} | {wall.ratio:.2f} | {wall.low:.2f} to {wall.high:.2f} | {wall.least:.2f} to "
            f"{wall.most:.2f} | {processor.ratio:.2f} | {processor.low:.2f} to {processor.high:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _kept(folder: Path, number: int) -> np.ndarray[Any, Any]:
    with np.load(folder / f"{number}.npz", allow_pickle=False) as kept:
        output: np.ndarray[Any, Any] = kept["masks"]
        return output


if __name__ == "__main__":
    sys.exit(main())
