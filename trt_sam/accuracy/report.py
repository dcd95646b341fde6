"""The accuracy table as JSON data and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_sam._json import strict
from trt_sam.accuracy.measurement import SIZES, Measurement
from trt_sam.accuracy.summary import CLEAR_MARGIN, Summary, known_mean, summarize

__all__ = [
    "COLUMNS",
    "METHOD",
    "AccuracyReport",
    "VariantReport",
    "group_row",
    "make_report",
    "markdown",
    "overall_row",
    "reference_truth",
    "shown_columns",
]

_CURVE = np.concatenate([np.linspace(0, 90, 46), np.linspace(90.5, 100, 20)])
"""Percentiles of 1 - IoU that the report keeps for its plot."""

METHOD = (
    "Mask IoU is that of the mask that SAM's rule selects by the FP32 scores, against the variant's mask of the same index: "
    "256 x 256 logits cut at 0, the picture's part of them without the padding, 1 where both are empty. Beside it stands its "
    "95 % interval, by resampling images. 5 % and 1 % are percentiles over prompts.",
    "Full size is the same at the photo's size (a long side of at most 1024), as a user receives it, with its boundary IoU.",
    "Boundary IoU compares the inner edges of the same two masks, 2 % of the diagonal wide (Cheng et al., CVPR 2021). "
    "Four masks: mean IoU of all four, index by index. Selected: IoU of what each side selects by its own scores.",
    "Flips are prompts for which the variant selects another mask; clear ones are those whose mask FP32 scores more than "
    f"{CLEAR_MARGIN} below its choice. From three points on SAM's rule takes mask 0, so several clicks never flip.",
    "Tau is Kendall's tau-a of a prompt's four IoU scores, SQNR that of all logits.",
    "Truth: mean IoU with the exact mask at 256 x 256, of the selected mask and of the best of the four (oracle).",
    "Sizes are the share of the picture that the FP32 mask covers: "
    + ", ".join(f"{name} {_range}" for name, _range in zip(SIZES, ("under 0.5 %", "0.5 to 5 %", "from 5 %"), strict=True))
    + ".",
)
"""How the figures were made, sentence by sentence."""


@dataclass(frozen=True)
class VariantReport:
    """One variant's figures."""

    name: str
    description: str
    overall: Summary
    by_kind: Mapping[str, Summary]
    by_size: Mapping[str, Summary]
    curve: tuple[float, ...]
    """Mask IoU at the percentiles `curve_percentiles` of 1 - IoU."""
    facts: Mapping[str, Any]
    """Whatever else is known of it: which tensors got which range, the share of quantized multiply-adds."""


@dataclass(frozen=True)
class AccuracyReport:
    """Everything that the JSON, Markdown and HTML forms show."""

    title: str
    conditions: Mapping[str, Any]
    """Checkpoint, images, prompts, versions: what a reader needs to repeat it."""
    method: tuple[str, ...]
    reference_truth_selected: float | None
    reference_truth_oracle: float | None
    variants: tuple[VariantReport, ...]
    curve_percentiles: tuple[float, ...]
    areas: tuple[float, ...]
    """Share of the picture of the mask that FP32 selects, at the percentiles 0, 10, ... 100."""

    def to_dict(self) -> dict[str, Any]:
        """The report as strict JSON data: infinity and NaN are strings."""
        data: dict[str, Any] = strict(dataclasses.asdict(self))
        return data


def make_report(
    measurement: Measurement,
    *,
    title: str,
    conditions: Mapping[str, Any],
    descriptions: Mapping[str, str] | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> AccuracyReport:
    """Sum a measurement up.

    Args:
        measurement: of `accuracy.measure`.
        title: of the report.
        conditions: JSON-able; shown in the report's head.
        descriptions: a phrase per variant.
        facts: JSON-able, per variant; kept in the JSON form.
    """
    groups = measurement.groups()
    reports = []
    for name, columns in measurement.variants.items():
        by = {what: {key: summarize(columns, rows) for key, rows in split.items()} for what, split in groups.items()}
        curve = 1.0 - np.percentile(1.0 - columns["iou"], _CURVE)
        reports.append(
            VariantReport(
                name,
                (descriptions or {}).get(name, ""),
                summarize(columns),
                **by,
                curve=tuple(curve.tolist()),
                facts=(facts or {}).get(name, {}),
            )
        )
    truth = known_mean(measurement.reference["truth_selected"])
    return AccuracyReport(
        title=title,
        conditions=conditions,
        # Photos and embeddings come without an exact mask, and the table without the columns of it.
        method=tuple(sentence for sentence in METHOD if truth is not None or not sentence.startswith("Truth: ")),
        reference_truth_selected=truth,
        reference_truth_oracle=known_mean(measurement.reference["truth_oracle"]),
        variants=tuple(reports),
        curve_percentiles=tuple(_CURVE.tolist()),
        areas=tuple(np.percentile(measurement.areas, np.linspace(0, 100, 11)).tolist()),
    )


COLUMNS: Sequence[tuple[str, Callable[[Summary], str]]] = (
    ("mask IoU", lambda s: f"{s.iou_mean:.4f}"),
    ("95 % interval", lambda s: "{:.4f} to {:.4f}".format(*s.iou_mean_interval)),
    ("5 %", lambda s: f"{s.iou_p5:.4f}"),
    ("1 %", lambda s: f"{s.iou_p1:.3f}"),
    ("least", lambda s: f"{s.iou_min:.3f}"),
    ("under 0.95", lambda s: _percent(s.share_under_095)),
    ("boundary IoU", lambda s: f"{s.boundary_mean:.4f}"),
    ("full size (boundary)", lambda s: f"{s.full_mean:.4f} ({s.full_boundary_mean:.4f})"),
    ("four masks", lambda s: f"{s.all_masks_mean:.4f}"),
    ("selected", lambda s: f"{s.selected_mean:.4f}"),
    ("flips (clear)", lambda s: f"{_percent(s.flips / s.prompts)} ({_percent(s.clear_flips / s.prompts)})"),
    ("tau", lambda s: f"{s.kendall_tau:.3f}"),
    ("SQNR dB", lambda s: f"{s.sqnr_db:.1f}"),
    ("truth: selected", lambda s: _known(s.truth_selected)),
    ("truth: oracle", lambda s: _known(s.truth_oracle)),
)
"""Heading and cell of every column of the table, for Markdown and HTML alike."""


def markdown(report: AccuracyReport) -> str:
    """The report as a Markdown document."""
    columns = shown_columns(report)
    lines = [f"# {report.title}", ""]
    lines += [f"- {name}: {value}" for name, value in report.conditions.items()]
    if report.reference_truth_selected is not None:
        lines.append(f"- truth, of FP32 itself: selected {reference_truth(report)}")
    lines += ["", *_table(["variant", *(title for title, _ in columns)], [overall_row(v, columns) for v in report.variants])]
    for title, name in (("Mask IoU, mean / 5th percentile, by kind of prompt", "by_kind"), ("... by size of mask", "by_size")):
        keys = list(getattr(report.variants[0], name)) if report.variants else []
        counts = [f"{key} ({getattr(report.variants[0], name)[key].prompts})" for key in keys]
        lines += ["", f"## {title}", "", *_table(["variant", *counts], [group_row(v, name, keys) for v in report.variants])]
    lines += ["", "## Method", "", *(f"- {sentence}" for sentence in report.method), ""]
    return "\n".join(lines)


def shown_columns(report: AccuracyReport) -> list[tuple[str, Callable[[Summary], str]]]:
    """COLUMNS, without those of the truth where it is not known."""
    known = report.reference_truth_selected is not None
    return [(title, cell) for title, cell in COLUMNS if known or not title.startswith("truth")]


def overall_row(variant: VariantReport, columns: Sequence[tuple[str, Callable[[Summary], str]]]) -> list[str]:
    """A row of the main table."""
    return [variant.name, *(cell(variant.overall) for _, cell in columns)]


def group_row(variant: VariantReport, name: str, keys: Sequence[str]) -> list[str]:
    """A row of the tables by kind and by size (`name` is "by_kind" or "by_size")."""
    groups = getattr(variant, name)
    return [variant.name, *(f"{groups[key].iou_mean:.4f} / {groups[key].iou_p5:.4f}" for key in keys)]


def reference_truth(report: AccuracyReport) -> str:
    """The reference's own mean IoU with the exact masks, in words."""
    return f"{_known(report.reference_truth_selected)}, oracle {_known(report.reference_truth_oracle)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---", *("---:" for _ in head[1:])], *rows)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
