"""A comparison as one HTML file that needs nothing else: the verdict, figures, and the worst masks on the photograph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from trt_sam.accuracy.measurement import WorstMask
from trt_sam.gate.comparison import Candidate, Comparison
from trt_sam.gate.report._html import document, text
from trt_sam.gate.report.charts import COLOURS, distances, layer_sqnr
from trt_sam.gate.report.pictures import AGREED, GAINED, LOST, data_uri, panels
from trt_sam.gate.report.text import HEAD, figures_row
from trt_sam.gate.verdict import FAIL, PASS, Check, Verdict

__all__ = ["comparison_page", "difference_key", "verdict_card", "worst_figure"]


def comparison_page(comparison: Comparison, environment: Mapping[str, Any]) -> str:
    """The whole page.

    Raises:
        MissingDependencyError: matplotlib or Pillow is not installed.
    """
    ranked = sorted(comparison.candidates, key=lambda each: (each.verdict.passed, float(each.figures.iou.mean())))
    # One order for cards, tables and charts: what did not pass first, worst first.
    comparison = dataclasses.replace(comparison, candidates=tuple(ranked))
    title = f"{'Passed' if comparison.passed else 'Not passed'}: {len(comparison.candidates)} against {comparison.reference}"
    ious = {candidate.name: candidate.figures.iou for candidate in ranked}
    colours = dict(zip(ious, COLOURS * (len(ious) // len(COLOURS) + 1), strict=False))
    p5 = {f"{candidate.limits_of}: {candidate.limits.min_p5_iou:g}": candidate.limits.min_p5_iou for candidate in ranked}
    parts = [
        f"<h1>{text(title)}</h1>",
        *(_verdict(candidate) for candidate in ranked),
        f'<p class="soft small">{comparison.prompts} prompts on {text(comparison.data)}.</p>',
        *(f"<p><b>Left out:</b> {text(sentence)}.</p>" for sentence in comparison.left_out),
        f"<h2>Figures</h2>{_figures(comparison, colours)}",
        f"<h2>How many masks are how far away</h2>{distances(ious, p5, colours)}",
        *_layers(comparison, colours),
        "<h2>The worst masks</h2>",
        difference_key("the reference", "the candidate"),
        *(_worst(candidate) for candidate in ranked),
        "<h2>Every limit</h2>",
        *(_limits(candidate) for candidate in ranked),
        f"<h2>Made with</h2>{_environment(comparison, environment)}",
    ]
    return document(title, "".join(parts))


def verdict_card(name: str, verdict: Verdict, *, about: str = "", more: str = "") -> str:
    """A verdict and what stands in the way of passing; `about` is plain text and `more` HTML."""
    missed = "".join(f"<li>{_open(check)}{text(check.sentence)}</li>" for check in verdict.missed)
    by_name = {check.name: check for check in verdict.checks}
    kept = by_name.get("min_mean_iou", by_name["min_sqnr_db"])
    summary = f"<ul>{missed}</ul>" if missed else f'<p class="small">{text(kept.sentence)}; all limits kept.</p>'
    facts = "; ".join(part for part in (about, f"intervals by resampling {verdict.intervals_by}") if part)
    return (
        f'<div class="card {_kind(verdict.status)}"><span class="word">{text(verdict.status)}</span> <b>{text(name)}</b>'
        f'<div class="small soft">{text(facts)}</div>{summary}{more}</div>'
    )


def _verdict(candidate: Candidate) -> str:
    advice = f"<p>{text(candidate.verdict.advice)}</p>" if candidate.verdict.advice else ""
    blame = f"<p>{text(candidate.blame.sentence)}</p>" if candidate.blame is not None else ""
    notes = "".join(f'<p class="small soft">{text(note)}</p>' for note in candidate.notes)
    about = f"{candidate.executed_by}; limits for {candidate.limits_of}"
    return verdict_card(candidate.name, candidate.verdict, about=about, more=advice + blame + notes)


def _open(check: Check) -> str:
    return "" if check.status == FAIL else f'<b class="open">{text(check.status)}:</b> '


def _figures(comparison: Comparison, colours: Mapping[str, str]) -> str:
    chips = {name: f'<span class="chip" style="background:{colour}"></span>' for name, colour in colours.items()}
    rows = [(text(f"floor: {floor.name}"), figures_row(floor.figures)) for floor in comparison.floors]
    rows += [(chips[c.name] + text(c.name), figures_row(c.figures)) for c in comparison.candidates]
    body = "".join(
        f"<tr><td>{name}</td>"
        + "".join(f'<td data-name="{text(head)}">{text(cell)}</td>' for head, cell in zip(HEAD[1:], cells, strict=True))
        + "</tr>"
        for name, cells in rows
    )
    head = "".join(f"<th>{text(cell)}</th>" for cell in HEAD)
    return f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _limits(candidate: Candidate) -> str:
    head = ("limit", "figure", "95 % interval", "must be", "verdict")
    body = "".join(_limit_row(head, check) for check in candidate.verdict.checks)
    cells = "".join(f"<th>{text(cell)}</th>" for cell in head)
    return f'<h3>{text(candidate.name)}</h3><table class="figures"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'


def _limit_row(head: Sequence[str], check: Check) -> str:
    interval = "-" if check.low is None or check.high is None else f"{check.low:.4f} to {check.high:.4f}"
    must = f"{'at least' if check.higher_is_better else 'at most'} {check.limit:g}"
    cells = ((f"{check.value:.5g}", ""), (interval, ""), (must, ""), (check.status, _kind(check.status)))
    shown = (
        f'<td data-name="{text(name)}" class="{kind}">{text(cell)}</td>'
        for name, (cell, kind) in zip(head[1:], cells, strict=True)
    )
    return f"<tr><td>{text(check.title)}</td>{''.join(shown)}</tr>"


def _layers(comparison: Comparison, colours: Mapping[str, str]) -> list[str]:
    found = {c.name: c.layers for c in comparison.candidates if c.layers}
    if not found:
        return []
    rows = {name: [row.sqnr_db for row in layers] for name, layers in found.items()}
    marked = {
        c.name: next((i for i, row in enumerate(c.layers) if row.node == c.blame.node), 0)
        for c in comparison.candidates
        if c.layers and c.blame is not None
    }
    notes = ["A dot marks the node that is blamed."] if marked else []
    for name, layers in found.items():
        if rescaled := sum(row.rescaled for row in layers):
            notes.append(
                f"{rescaled} of {len(layers)} tensors of {name} are shifted and scaled by calibration, which a later product "
                "undoes; they are held against its own without rounding."
            )
    return ["<h2>Layer by layer</h2>", layer_sqnr(rows, marked, colours), f'<p class="soft small">{text(" ".join(notes))}</p>']


def difference_key(reference: str, other: str) -> str:
    """What is seen of a worst mask, with the colours of the difference; the names are plain text."""
    chips = (("both", AGREED), (f"only {reference}", LOST), (f"only {other}", GAINED))
    shown = ", ".join(f'<span class="chip" style="background:rgb{colour}"></span>{text(name)}' for name, colour in chips)
    return f'<p class="small soft">The mask of {text(reference)}, of {text(other)}, and their difference: {shown}.</p>'


def _worst(candidate: Candidate) -> str:
    few = 2 if candidate.verdict.passed else len(candidate.figures.worst)
    figures = "".join(worst_figure(shown) for shown in candidate.figures.worst[:few])
    return f"<h3>{text(candidate.name)}</h3>{figures}"


def worst_figure(shown: WorstMask) -> str:
    """The photograph with both masks, their difference, and what is to be known of the prompt."""
    points = ", ".join(
        f"({x:.0f}, {y:.0f}) label {label:.0f}" for (x, y), label in zip(shown.coords, shown.labels, strict=True)
    )
    caption = (
        f"IoU {shown.iou:.4f}, {shown.kind} on {shown.image.name}: {points} in the 1024 frame; "
        f"{int(shown.reference.sum())} and {int(shown.other.sum())} pixels of 65,536"
    )
    names = ("the reference's mask", "the other mask", "their difference")
    images = "".join(
        f'<img alt="{text(f"{name}; {caption}")}" src="{data_uri(picture)}">'
        for name, picture in zip(names, panels(shown), strict=True)
    )
    return f'<figure><div class="panels">{images}</div><figcaption class="small">{text(caption)}</figcaption></figure>'


def _environment(comparison: Comparison, environment: Mapping[str, Any]) -> str:
    facts = {
        "reference": f"{comparison.reference}, {comparison.executed_by}",
        "decoder of the reference, SHA-256": comparison.checkpoint_sha256 or "unknown",
        **environment,
    }
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in facts.items())}</dl>"


def _kind(status: str) -> str:
    return {PASS: "pass", FAIL: "fail"}.get(status, "open")
