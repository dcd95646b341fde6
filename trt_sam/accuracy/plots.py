"""The plots of the accuracy page, each a string of SVG. No drawing library: the page must work alone."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from trt_sam.accuracy.report import AccuracyReport

__all__ = ["colours", "curve_plot", "flip_plot", "range_plot"]

_PALETTE = (
    "#5b6b7b",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7a4fc0",
    "#8c6d1f",
    "#b3123f",
    "#2f7d32",
    "#3d4db7",
)
_DASHES = ("", "7 3", "2 3")
"""For variants beyond the palette."""
_WIDTH, _LEFT, _RIGHT, _TOP = 900, 190, 30, 14
_ROW = 26
_FRONT = 1e-4
"""Least 1 - IoU on the logarithmic axes."""


def colours(report: AccuracyReport) -> dict[str, str]:
    """The colour of each variant, the same in every plot and table."""
    return {variant.name: _PALETTE[i % len(_PALETTE)] for i, variant in enumerate(report.variants)}


def curve_plot(report: AccuracyReport) -> str:
    """Share of prompts whose mask is farther from FP32 than each distance; lower and further left is better."""
    height, bottom = 400, 340
    shades = colours(report)
    labels = _spread([variant.name for variant in report.variants], _TOP + 8, 17)
    right = _WIDTH - 200

    def across(distance: float) -> float:
        return _log_position(distance, 60, right)

    def down(share: float) -> float:
        return bottom - (bottom - _TOP) * share

    parts = [*_log_axis(across, _TOP, bottom), _label((60 + right) / 2, height - 14, "1 - mask IoU", "middle")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(60, down(share), right, down(share), "#e3e8ed"))
        parts.append(_label(52, down(share) + 4, f"{100 * share:.0f} %", "end"))
    for number, variant in enumerate(report.variants):
        points = [
            f"{across(1.0 - iou):.1f},{down(1.0 - percentile / 100):.1f}"
            for iou, percentile in zip(variant.curve, report.curve_percentiles, strict=True)
        ]
        dash = _DASHES[(number // len(_PALETTE)) % len(_DASHES)]
        style = f'fill="none" stroke="{shades[variant.name]}" stroke-width="2" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{" ".join(points)}" {style}/>')
        y = labels[variant.name]
        parts.append(f'<line x1="{right + 14}" y1="{y}" x2="{right + 40}" y2="{y}" {style}/>')
        parts.append(_label(right + 46, y + 4, variant.name))
    parts.append(_line(across(0.05), _TOP, across(0.05), bottom, "#9aa7b4", "4 3"))
    parts.append(_label(across(0.05) + 4, _TOP + 12, "IoU 0.95"))
    return _svg(height, parts, "Share of prompts by distance of their mask from FP32")


def range_plot(report: AccuracyReport) -> str:
    """A row per variant on an axis of 1 - IoU: a dot for the mean, a bar to the 5th percentile, a tick for the least."""
    bottom = _TOP + _ROW * len(report.variants)
    height, right = bottom + 58, _WIDTH - _RIGHT
    shades = colours(report)

    def across(distance: float) -> float:
        return _log_position(distance, _LEFT, right)

    parts = [*_log_axis(across, _TOP, bottom)]
    for number, variant in enumerate(report.variants):
        y, shade, figures = _TOP + _ROW * (number + 0.5), shades[variant.name], variant.overall
        mean, p5, least = (across(1.0 - iou) for iou in (figures.iou_mean, figures.iou_p5, figures.iou_min))
        parts.append(_label(_LEFT - 10, y + 4, variant.name, "end"))
        parts.append(_line(min(mean, p5), y, max(mean, p5), y, shade, width=7, opacity=0.45))
        parts.append(_line(max(mean, p5), y, least, y, shade, "2 3"))
        parts.append(_line(least, y - 7, least, y + 7, shade, width=2.5))
        parts.append(f'<circle cx="{mean:.1f}" cy="{y}" r="5.5" fill="{shade}"/>')
    legend = "1 - mask IoU; dot: mean, bar: to the 5th percentile, tick: least"
    parts.append(_label((_LEFT + right) / 2, height - 12, legend, "middle"))
    return _svg(height, parts, "Mask IoU of each variant")


def flip_plot(report: AccuracyReport) -> str:
    """A row per variant: share of prompts that flip, and in full colour the share that flip clearly."""
    bottom = _TOP + _ROW * len(report.variants)
    height, right = bottom + 58, _WIDTH - 60
    shades = colours(report)
    rates = [(v.overall.flips / v.overall.prompts, v.overall.clear_flips / v.overall.prompts) for v in report.variants]
    top = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if max(rate for rate, _ in rates) <= step), 1.0)

    def across(share: float) -> float:
        return _LEFT + (right - _LEFT) * share / top

    parts = []
    for share in np.linspace(0, top, 6):
        parts.append(_line(across(share), _TOP, across(share), bottom, "#e3e8ed"))
        parts.append(_label(across(share), bottom + 18, f"{100 * share:.3g} %", "middle"))
    for number, (variant, (raw, clear)) in enumerate(zip(report.variants, rates, strict=True)):
        y, shade = _TOP + _ROW * (number + 0.5), shades[variant.name]
        parts.append(_label(_LEFT - 10, y + 4, variant.name, "end"))
        for share, opacity in ((raw, 0.35), (clear, 1.0)):
            # A line of no length would still leave a hair.
            parts += [_line(_LEFT, y, across(share), y, shade, width=12, opacity=opacity)] * (share > 0)
        parts.append(_label(across(raw) + 6, y + 4, f"{100 * raw:.1f} % ({100 * clear:.1f} %)"))
    legend = "share of prompts; full colour: clear flips, beyond a difference of 0.01 in FP32's scores"
    parts.append(_label((_LEFT + right) / 2, height - 12, legend, "middle"))
    return _svg(height, parts, "Flips of each variant")


def _log_position(distance: float, left: float, right: float) -> float:
    decades = np.log10(np.clip(distance, _FRONT, 1.0) / _FRONT)
    return float(left + (right - left) * decades / -np.log10(_FRONT))


def _log_axis(across: Callable[[float], float], top: float, bottom: float) -> Iterator[str]:
    for distance in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        yield _line(across(distance), top, across(distance), bottom, "#c9d2da")
        yield _label(across(distance), bottom + 18, "≤ 0.0001" if distance == _FRONT else f"{distance:g}", "middle")
        for part in range(2, 10):
            if distance < 1.0:
                yield _line(across(part * distance), top, across(part * distance), bottom, "#eff2f5")


def _spread(names: Sequence[str], top: float, step: float) -> dict[str, float]:
    return {name: top + step * i for i, name in enumerate(names)}


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "", *, width: float = 1, opacity: float = 1
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}" '
        f'stroke-dasharray="{dash}" opacity="{opacity}"/>'
    )


def _label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">'
        f"<title>{html.escape(title)}</title>{''.join(parts)}</svg>"
    )
