"""The ranking of `trt-sam sensitivity` as one HTML file: what each group costs, and which nodes it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trt_sam.gate.report._html import document, text
from trt_sam.gate.report.charts import costs

__all__ = ["sensitivity_page"]

_HEAD = ("group", "tier", "cost", "alone: mean / 5 %", "left out: mean / 5 %", "ONNX nodes")

_GOALS = {
    "mean_iou": "mean mask IoU at least",
    "p5_iou": "5th percentile at least",
    "clear_flips": "share of clear flips at most",
}


def sensitivity_page(data: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        data: as `trt-sam sensitivity --json` writes it.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    groups = data["groups"]
    reached = "reached" if data["goal_reached"] else "NOT REACHED"
    kept = ", ".join(data["keep_fp16"]) or "none"
    kind = "pass" if data["goal_reached"] else "fail"
    goal = ", ".join(f"{_GOALS[name]} {value:g}" for name, value in data["goal"].items())
    title = f"What quantization of {data['checkpoint']} costs, group by group"
    rows = "".join(_row(group) for group in groups)
    head = "".join(f"<th{_class(cell)}>{text(cell)}</th>" for cell in _HEAD)
    return document(
        title,
        f"<h1>{text(title)}</h1>"
        f'<div class="card {kind}"><span class="word">goal {reached}</span> {text(goal)}'
        f"<div>groups to keep in float16: <b>{text(kept)}</b></div></div>"
        f'<p class="soft small">{text(data["precision"])} with {text(data["calibrator"])} ranges, judged by '
        f"{data['all_groups']['prompts']} prompts on {text(data['judged_on'])}; all groups quantized: "
        f"{_score(data['all_groups'])}.</p>"
        f"{costs({group['group']: group['cost'] for group in groups})}"
        f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>',
    )


def _row(group: Mapping[str, Any]) -> str:
    cells = (
        group["tier"],
        f"{group['cost']:.5f}",
        _score(group["alone"]),
        _score(group["left_out"]),
        ", ".join(group["nodes"]),
    )
    shown = "".join(
        f'<td{_class(name)} data-name="{text(name)}">{text(cell)}</td>' for name, cell in zip(_HEAD[1:], cells, strict=True)
    )
    return f"<tr><td>{text(group['group'])}</td>{shown}</tr>"


def _class(column: str) -> str:
    """Names are long and may be broken; figures are not."""
    return ' class="names"' if column == _HEAD[-1] else ""


def _score(score: Mapping[str, Any] | None) -> str:
    return "-" if score is None else f"{score['mean_iou']:.4f} / {score['p5_iou']:.4f}"
