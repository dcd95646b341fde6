"""The accuracy report as one HTML page that needs nothing else: plots as inline SVG, the worst masks as inline pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require
from trt_sam.accuracy.measurement import WorstMask
from trt_sam.accuracy.plots import colours, curve_plot, flip_plot, range_plot
from trt_sam.accuracy.report import AccuracyReport, group_row, overall_row, reference_truth, shown_columns
from trt_sam.accuracy.summary import Summary
from trt_sam.contract import FRAME_SIZE, LABEL_BACKGROUND, LABEL_FOREGROUND
from trt_sam.imaging.overlay import Box, Click, draw_overlay

__all__ = ["accuracy_page", "worst_strip"]

Picture = npt.NDArray[np.uint8]

_GAP = 8
_SAME, _LOST, _GAINED = (205, 205, 205), (215, 65, 60), (45, 120, 215)

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; }
body { max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: #5b6b7b; } dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e8ed; }
th:first-child, td:first-child { text-align: left; } th { color: #5b6b7b; font-weight: 600; }
.chip { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .5em; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #1c2733; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
figure { margin: .6rem 0; } figcaption { font-size: 13px; color: #5b6b7b; } img { max-width: 100%; display: block; }
.key { font-size: 13px; } .note { color: #5b6b7b; font-size: 13px; }
"""


def accuracy_page(report: AccuracyReport, worst: Mapping[str, Sequence[WorstMask]]) -> str:
    """The whole page.

    Args:
        report: of `accuracy_report.make_report`.
        worst: by variant, as `accuracy.Measurement` has them.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    conditions = dict(report.conditions)
    if report.reference_truth_selected is not None:
        conditions["truth, of FP32 itself"] = f"selected {reference_truth(report)}"
    head = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in conditions.items())
    parts = [
        f"<h1>{_text(report.title)}</h1><dl>{head}</dl>",
        f"<h2>All prompts</h2>{_main_table(report)}{_descriptions(report)}",
        f"<h2>How many masks are how far from FP32</h2>{curve_plot(report)}",
        f"<h2>Mask IoU: mean, 5th percentile and least</h2>{range_plot(report)}",
        f"<h2>Prompts for which another mask is selected</h2>{flip_plot(report)}",
        f"<h2>By kind of prompt (mask IoU: mean / 5th percentile)</h2>{_group_table(report, 'by_kind')}",
        f"<h2>By size of mask (mask IoU: mean / 5th percentile)</h2>{_group_table(report, 'by_size')}",
        f"<h2>The worst masks</h2>{_worst(worst)}",
        f"<h2>Method</h2><ul>{''.join(f'<li>{_text(sentence)}</li>' for sentence in report.method)}</ul>",
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(report.title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def worst_strip(shown: WorstMask) -> Picture:
    """Four panels side by side, uint8 [256, 1048, 3]: the picture with FP32's mask and the prompt, both masks, the difference.

    In the difference, pixels that only FP32 has are red, those that only the variant has are blue.
    """
    scale = len(shown.reference) / FRAME_SIZE
    clicks: list[Click] = []
    for (x, y), label in zip(shown.coords, shown.labels, strict=True):
        if label in (LABEL_BACKGROUND, LABEL_FOREGROUND):
            clicks.append((float(x) * scale, float(y) * scale, int(label)))
    corners = shown.coords[shown.labels > LABEL_FOREGROUND] * scale
    box: Box | None = (*map(float, corners[0]), *map(float, corners[1])) if len(corners) == 2 else None  # type: ignore[assignment]
    difference = np.full((*shown.reference.shape, 3), 246, np.uint8)
    difference[shown.reference & shown.other] = _SAME
    difference[shown.reference & ~shown.other] = _LOST
    difference[~shown.reference & shown.other] = _GAINED
    panels = [
        _few_colours(draw_overlay(shown.image.picture, shown.reference, clicks, box)),
        *(_as_picture(mask) for mask in (shown.reference, shown.other)),
        difference,
    ]
    gap = np.full((len(difference), _GAP, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def _few_colours(picture: Picture) -> Picture:
    """A third of the size as PNG, and hardly a difference to see."""
    image_module = require("PIL.Image", "to draw the worst masks")
    return np.asarray(image_module.fromarray(picture).quantize(64).convert("RGB"))


def _as_picture(mask: npt.NDArray[np.bool_]) -> Picture:
    return np.where(mask[..., None], np.array((60, 70, 80), np.uint8), np.array((235, 238, 241), np.uint8))


def _main_table(report: AccuracyReport) -> str:
    columns: Sequence[tuple[str, Callable[[Summary], str]]] = shown_columns(report)
    return _table(["variant", *(title for title, _ in columns)], report, [overall_row(v, columns) for v in report.variants])


def _group_table(report: AccuracyReport, name: str) -> str:
    groups = getattr(report.variants[0], name)
    head = ["variant", *(f"{key} ({summary.prompts})" for key, summary in groups.items())]
    return _table(head, report, [group_row(variant, name, list(groups)) for variant in report.variants])


def _table(head: Sequence[str], report: AccuracyReport, rows: Sequence[Sequence[str]]) -> str:
    chips = {name: f'<span class="chip" style="background:{colour}"></span>' for name, colour in colours(report).items()}
    lines = ["".join(f"<th>{_text(cell)}</th>" for cell in head)]
    for row in rows:
        lines.append(f"<td>{chips[row[0]]}{_text(row[0])}</td>" + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:]))
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _descriptions(report: AccuracyReport) -> str:
    lines = [f"<li><b>{_text(v.name)}</b>: {_text(v.description)}</li>" for v in report.variants if v.description]
    return f'<ul class="note">{"".join(lines)}</ul>' if lines else ""


def _worst(worst: Mapping[str, Sequence[WorstMask]]) -> str:
    key = (
        '<p class="key">From the left: the picture (or the embedding in three colours) with the mask of FP32 and the prompt; '
        "the mask of FP32; the variant's; their difference: "
        f'<span class="chip" style="background:rgb{_LOST}"></span>only FP32, '
        f'<span class="chip" style="background:rgb{_GAINED}"></span>only the variant.</p>'
    )
    parts = []
    for number, (name, masks) in enumerate(worst.items()):
        figures = []
        for shown in masks:
            caption = f"IoU {shown.iou:.4f}, {shown.kind} on {shown.image.name}, {int(shown.reference.sum())} pixels of 65,536"
            figures.append(
                f'<figure><img alt="{_text(caption)}" src="{_data_uri(worst_strip(shown))}">'
                f"<figcaption>{_text(caption)}</figcaption></figure>"
            )
        parts.append(f"<details{' open' * (number == 0)}><summary>{_text(name)}</summary>{''.join(figures)}</details>")
    return key + "".join(parts)


def _data_uri(picture: Picture) -> str:
    image_module = require("PIL.Image", "to draw the worst masks")
    buffer = io.BytesIO()
    # The strips have fewer than 256 colours: a palette holds all of them.
    image_module.fromarray(picture).quantize(256).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _text(value: Any) -> str:
    return html.escape(str(value))
