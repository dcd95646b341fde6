"""The accuracy report as one HTML file that needs nothing else: verdicts, table, charts, the worst masks on the photograph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trt_sam.accuracy.measurement import WorstMask
from trt_sam.accuracy.report import AccuracyReport, group_row, overall_row, reference_truth, shown_columns
from trt_sam.accuracy.summary import Summary
from trt_sam.gate.report._html import document, text
from trt_sam.gate.report.charts import COLOURS, curves, flips, ranges
from trt_sam.gate.report.page import difference_key, verdict_card, worst_figure
from trt_sam.gate.verdict import Verdict

__all__ = ["accuracy_page"]


def accuracy_page(
    report: AccuracyReport, worst: Mapping[str, Sequence[WorstMask]], verdicts: Mapping[str, Verdict] | None = None
) -> str:
    """The whole page.

    Args:
        report: of `accuracy.report.make_report`.
        worst: by variant, as `accuracy.Measurement` has them.
        verdicts: by variant, which stand first.

    Raises:
        MissingDependencyError: matplotlib or Pillow is not installed.
    """
    conditions = dict(report.conditions)
    if report.reference_truth_selected is not None:
        conditions["truth, of FP32 itself"] = f"selected {reference_truth(report)}"
    facts = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in conditions.items())
    shades = {variant.name: COLOURS[i % len(COLOURS)] for i, variant in enumerate(report.variants)}
    overall = {variant.name: variant.overall for variant in report.variants}
    columns: Sequence[tuple[str, Callable[[Summary], str]]] = shown_columns(report)
    every = [overall_row(variant, columns) for variant in report.variants]
    parts = [
        f"<h1>{text(report.title)}</h1>",
        *(verdict_card(name, verdict) for name, verdict in (verdicts or {}).items()),
        f"<dl>{facts}</dl>",
        f"<h2>All prompts</h2>{_table([title for title, _ in columns], every, shades)}{_descriptions(report)}",
        "<h2>How many masks are how far from FP32</h2>",
        curves({variant.name: variant.curve for variant in report.variants}, report.curve_percentiles, shades),
        "<h2>Mask IoU: mean, 5th percentile and least</h2>",
        ranges({name: (each.iou_mean, each.iou_p5, each.iou_min) for name, each in overall.items()}, shades),
        "<h2>Prompts for which another mask is selected</h2>",
        flips({name: (s.flips / s.prompts, s.clear_flips / s.prompts) for name, s in overall.items()}, shades),
        f"<h2>By kind of prompt (mask IoU: mean / 5th percentile)</h2>{_group_table(report, 'by_kind', shades)}",
        f"<h2>By size of mask (mask IoU: mean / 5th percentile)</h2>{_group_table(report, 'by_size', shades)}",
        "<h2>The worst masks</h2>",
        difference_key("FP32", "the variant"),
        *(
            _worst(name, masks[: _few(name, verdicts)], unfolded=number == 0)
            for number, (name, masks) in enumerate(worst.items())
        ),
        f"<h2>Method</h2><ul>{''.join(f'<li>{text(sentence)}</li>' for sentence in report.method)}</ul>",
    ]
    return document(report.title, "".join(parts))


def _group_table(report: AccuracyReport, name: str, shades: Mapping[str, str]) -> str:
    groups = getattr(report.variants[0], name)
    head = [f"{key} ({summary.prompts})" for key, summary in groups.items()]
    return _table(head, [group_row(variant, name, list(groups)) for variant in report.variants], shades)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], shades: Mapping[str, str]) -> str:
    """Rows begin with the variant's name, `head` with the column behind it."""
    titles = "".join(f"<th>{text(title)}</th>" for title in ("variant", *head))
    lines = []
    for name, *cells in rows:
        chip = f'<span class="chip" style="background:{shades[name]}"></span>'
        shown = (f'<td data-name="{text(title)}">{text(cell)}</td>' for title, cell in zip(head, cells, strict=True))
        lines.append(f"<tr><td>{chip}{text(name)}</td>{''.join(shown)}</tr>")
    return f'<table class="figures"><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _descriptions(report: AccuracyReport) -> str:
    lines = [f"<li><b>{text(v.name)}</b>: {text(v.description)}</li>" for v in report.variants if v.description]
    return f'<ul class="soft small">{"".join(lines)}</ul>' if lines else ""


def _few(name: str, verdicts: Mapping[str, Verdict] | None) -> int | None:
    """How many of the worst masks are shown, as on the page of `compare`: a picture has 15 kB, and what passes needs few."""
    return 2 if verdicts and verdicts[name].passed else None


def _worst(name: str, masks: Sequence[WorstMask], *, unfolded: bool) -> str:
    figures = "".join(worst_figure(shown) for shown in masks)
    return f"<details{' open' * unfolded}><summary>{text(name)}</summary>{figures}</details>"
