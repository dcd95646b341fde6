"""A comparison as strict JSON data, as lines for a terminal, as Markdown for a pull request and as JUnit XML for CI."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np

from trt_sam._json import strict
from trt_sam.accuracy.metrics import decibels
from trt_sam.gate.comparison import Candidate, Comparison
from trt_sam.gate.tally import Figures
from trt_sam.gate.verdict import PASS, TOO_FEW, Check, Verdict

__all__ = ["figures_row", "junit", "lines", "markdown", "missed_lines", "to_dict"]

HEAD = ("", "mean IoU", "5 %", "least", "all: mean", "all: 5 %", "clear flips", "flips", "SQNR dB")


def to_dict(comparison: Comparison, environment: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything but pictures; infinity and NaN are strings."""
    data: dict[str, Any] = {
        "passed": comparison.passed,
        "reference": comparison.reference,
        "executed_by": comparison.executed_by,
        "checkpoint_sha256": comparison.checkpoint_sha256,
        "data": comparison.data,
        "prompts": comparison.prompts,
        "left_out": list(comparison.left_out),
        "environment": dict(environment or {}),
        "candidates": [_candidate(candidate) for candidate in comparison.candidates],
        "noise_floor": {floor.name: _figures(floor.figures) for floor in comparison.floors},
    }
    return strict(data)


def lines(comparison: Comparison) -> list[str]:
    """For a terminal: the verdict last."""
    shown = [
        f"reference  {comparison.reference}, {comparison.executed_by}",
        f"{comparison.prompts} prompts on {comparison.data}",
        *(f"left out: {sentence}" for sentence in comparison.left_out),
    ]
    rows: list[tuple[str, ...]] = [HEAD]
    rows += [(f"floor: {floor.name}", *figures_row(floor.figures)) for floor in comparison.floors]
    rows += [(candidate.name, *figures_row(candidate.figures)) for candidate in comparison.candidates]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    shown += [
        "",
        *(
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ),
        "",
    ]
    for candidate in comparison.candidates:
        verdict = candidate.verdict
        shown.append(f"{verdict.status.upper()}  {candidate.name} ({candidate.executed_by}; limits for {candidate.limits_of})")
        shown += [f"  {line}" for line in missed_lines(verdict)]
        shown += [f"  {candidate.blame.sentence}"] if candidate.blame is not None else []
        shown += [f"  note: {note}" for note in candidate.notes]
    return shown


def missed_lines(verdict: Verdict) -> list[str]:
    """What stands in the way of passing, by lines with their status, which is not said again where nothing failed."""
    found = [check.sentence if verdict.status == TOO_FEW else f"{check.status}: {check.sentence}" for check in verdict.missed]
    return [*found, verdict.advice] if verdict.advice else found


def markdown(comparison: Comparison) -> str:
    """For a pull request."""
    text = [f"## {'Passed' if comparison.passed else 'Not passed'}: {comparison.reference} against {_names(comparison)}", ""]
    for candidate in comparison.candidates:
        text.append(
            f"- **{candidate.verdict.status}**: `{candidate.name}` ({candidate.executed_by}, limits for {candidate.limits_of})"
        )
        text += [f"  - {line}" for line in missed_lines(candidate.verdict)]
        text += [f"  - {candidate.blame.sentence}"] if candidate.blame is not None else []
        text += [f"  - note: {note}" for note in candidate.notes]
    text += [f"- **left out**: {sentence}" for sentence in comparison.left_out]
    rows = [HEAD, ("---", *["---:"] * (len(HEAD) - 1))]
    rows += [(f"floor: {floor.name}", *figures_row(floor.figures)) for floor in comparison.floors]
    rows += [(f"`{candidate.name}`", *figures_row(candidate.figures)) for candidate in comparison.candidates]
    text += ["", *(f"| {' | '.join(row)} |" for row in rows)]
    text += ["", f"{comparison.prompts} prompts on {comparison.data}; reference executed by {comparison.executed_by}.", ""]
    return "\n".join(text)


def junit(comparison: Comparison) -> str:
    """A test suite per candidate, a test case per limit; a limit that cannot be told is a failure too."""
    root = ElementTree.Element("testsuites", name="trt-sam compare")
    for candidate in comparison.candidates:
        checks = candidate.verdict.checks
        missed = str(len(candidate.verdict.missed))
        suite = ElementTree.SubElement(root, "testsuite", name=candidate.name, tests=str(len(checks)), failures=missed)
        for check in checks:
            case = ElementTree.SubElement(suite, "testcase", classname=candidate.name, name=check.name)
            if check.status != PASS:
                failure = ElementTree.SubElement(case, "failure", type=check.status, message=check.sentence)
                failure.text = check.sentence
            else:
                ElementTree.SubElement(case, "system-out").text = check.sentence
        if comparison.left_out:
            ElementTree.SubElement(suite, "system-out").text = "\n".join(f"left out: {each}" for each in comparison.left_out)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def figures_row(figures: Figures) -> tuple[str, ...]:
    """Cells under HEAD but for the first."""
    seen = _figures(figures)
    count = len(figures.iou)
    return (
        f"{seen['iou_mean']:.5f}",
        f"{seen['iou_p5']:.4f}",
        f"{seen['iou_least']:.4f}",
        f"{seen['iou_four_mean']:.5f}",
        f"{seen['iou_four_p5']:.4f}",
        f"{100 * seen['clear_flips'] / count:.1f} %",
        f"{100 * seen['flips'] / count:.1f} %",
        f"{seen['sqnr_db']:.1f}",
    )


def _names(comparison: Comparison) -> str:
    return ", ".join(candidate.name for candidate in comparison.candidates)


def _candidate(candidate: Candidate) -> dict[str, Any]:
    verdict = candidate.verdict
    return {
        "name": candidate.name,
        "verdict": verdict.status,
        "passed": verdict.passed,
        "executed_by": candidate.executed_by,
        "arithmetic": candidate.arithmetic,
        "limits_of": candidate.limits_of,
        "limits": dataclasses.asdict(candidate.limits),
        "checkpoint_sha256": candidate.checkpoint_sha256,
        "intervals_by": verdict.intervals_by,
        "checks": [_check(check) for check in verdict.checks],
        "figures": _figures(candidate.figures),
        "worst": [
            {
                "iou": shown.iou,
                "kind": shown.kind,
                "image": shown.image.name,
                "original_size": list(shown.image.original_size),
                "points": shown.coords.tolist(),
                "labels": shown.labels.tolist(),
                "reference_pixels": int(shown.reference.sum()),
                "candidate_pixels": int(shown.other.sum()),
            }
            for shown in candidate.figures.worst
        ],
        "blame": None if candidate.blame is None else dataclasses.asdict(candidate.blame),
        "layers": [dataclasses.asdict(row) for row in candidate.layers],
        "notes": list(candidate.notes),
    }


def _check(check: Check) -> dict[str, Any]:
    return {**dataclasses.asdict(check), "sentence": check.sentence}


def _figures(figures: Figures) -> dict[str, Any]:
    by_kind = {}
    for kind in sorted(set(figures.kinds)):
        rows = np.array([each == kind for each in figures.kinds])
        by_kind[kind] = {"prompts": int(rows.sum()), "iou_mean": float(figures.iou[rows].mean())}
    logits = figures.outputs["low_res_masks"]
    return {
        "prompts": len(figures.iou),
        "images": len(figures.names),
        "iou_mean": float(figures.iou.mean()),
        "iou_p5": float(np.percentile(figures.iou, 5)),
        "iou_least": float(figures.iou.min()),
        "iou_four_mean": float(figures.iou_four.mean()),
        "iou_four_p5": float(np.percentile(figures.iou_four, 5)),
        "flips": int(figures.flip.sum()),
        "clear_flips": figures.clear_flips,
        "sqnr_db": decibels(logits.signal, logits.noise),
        "outputs": {
            name: {"error": each.error, "sqnr_db": decibels(each.signal, each.noise), "not_finite": each.not_finite}
            for name, each in figures.outputs.items()
        },
        "by_kind": by_kind,
    }
