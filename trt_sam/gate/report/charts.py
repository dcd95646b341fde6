"""Charts of the page by matplotlib, as SVG that takes the page's colours and fonts."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam._lazy import require

__all__ = ["COLOURS", "costs", "curves", "distances", "flips", "layer_sqnr", "ranges"]

Array = npt.NDArray[Any]

COLOURS = ("#2f7fd6", "#d9662c", "#1f9e77", "#b05cc6", "#c9a227", "#5b6b7b")
"""Legible on white and on black."""
_INK = "#010203"
"""Stands for the page's own colour in what matplotlib writes."""
_FRONT = 1e-4
_DASHES: tuple[Any, ...] = ("-", (0, (7, 3)), (0, (2, 3)))
"""For more variants than colours."""


def distances(ious: Mapping[str, Array], limits: Mapping[str, float], colours: Mapping[str, str]) -> str:
    """Share of prompts whose mask is farther from the reference than each distance; lower is better. SVG.

    `limits` of the 5th percentile are drawn with their names beside them.
    """
    with _figure(3.0) as (figure, axes):
        for name, values in ious.items():
            far = np.sort(np.clip(1.0 - values, _FRONT, 1.0))
            axes.step(far, 1.0 - np.arange(len(far)) / len(far), where="pre", color=colours[name], label=name, linewidth=1.8)
        for name, limit in limits.items():
            place = max(1.0 - limit, _FRONT)
            axes.axvline(place, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(name, (place, 1.0), (3, 0), textcoords="offset points", va="top", fontsize=8, rotation=90)
        _by_distance(axes)
        axes.set_ylim(0.0, 1.02)
        axes.set_xlabel("1 - mask IoU (dashed: limit of the 5th percentile)")
        axes.set_ylabel("share of prompts farther away")
        axes.axhline(0.05, color=_INK, linewidth=0.5)
        _legend(figure)
        return _svg(figure, "Share of prompts by distance of their mask from the reference")


def curves(ious: Mapping[str, Sequence[float]], percentiles: Sequence[float], colours: Mapping[str, str]) -> str:
    """The same of mask IoUs at given percentiles of their distance. SVG."""
    with _figure(2.8 + 0.16 * -(-len(ious) // 2)) as (figure, axes):
        far = 1.0 - np.asarray(percentiles, np.float64) / 100.0
        for number, (name, values) in enumerate(ious.items()):
            distance = np.clip(1.0 - np.asarray(values, np.float64), _FRONT, 1.0)
            dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
            axes.plot(distance, far, color=colours[name], label=name, linewidth=1.6, linestyle=dash)
        _by_distance(axes)
        axes.set_ylim(0.0, 1.02)
        axes.set_xlabel("1 - mask IoU")
        axes.set_ylabel("share of prompts farther away")
        _legend(figure, columns=2)
        return _svg(figure, "Share of prompts by distance of their mask from FP32")


def ranges(ious: Mapping[str, tuple[float, float, float]], colours: Mapping[str, str]) -> str:
    """A row for each (mean, 5th percentile, least) mask IoU: a dot, a bar as far as there, a tick. SVG."""
    with _figure(0.8 + 0.26 * len(ious)) as (figure, axes):
        for row, (name, values) in enumerate(ious.items()):
            mean, p5, least = (max(1.0 - value, _FRONT) for value in values)
            axes.plot([mean, p5], [row, row], color=colours[name], linewidth=5, alpha=0.45, solid_capstyle="butt")
            axes.plot([max(mean, p5), least], [row, row], color=colours[name], linewidth=1, linestyle=(0, (2, 3)))
            axes.plot([mean], [row], "o", color=colours[name], markersize=6)
            axes.plot([least], [row], "|", color=colours[name], markersize=10, markeredgewidth=2)
        _rows(axes, list(ious))
        _by_distance(axes)
        axes.set_xlabel("1 - mask IoU; dot: mean, bar: to the 5th percentile, tick: least")
        return _svg(figure, "Mask IoU of each variant")


def flips(shares: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> str:
    """A row for each (share of prompts that flip, share that flip clearly), the latter in full colour. SVG."""
    with _figure(0.8 + 0.26 * len(shares)) as (figure, axes):
        for row, (name, (every, clear)) in enumerate(shares.items()):
            axes.barh([row, row], [every, clear], height=0.55, color=[(colours[name], 0.35), colours[name]])
            words = f"{100 * every:.1f} % ({100 * clear:.1f} %)"
            axes.annotate(words, (every, row), (5, 0), textcoords="offset points", va="center", fontsize=8)
        _rows(axes, list(shares))
        axes.set_xlim(0.0, 1.45 * max(0.01, *(every for every, _ in shares.values())))
        axes.xaxis.set_major_locator(_matplotlib("ticker").MaxNLocator(4))
        axes.xaxis.set_major_formatter(_matplotlib("ticker").PercentFormatter(1.0, symbol=" %"))
        axes.set_xlabel("of all prompts; full colour, and in brackets: clear flips")
        return _svg(figure, "Flips of each variant")


def layer_sqnr(rows: Mapping[str, Sequence[float]], marked: Mapping[str, int], colours: Mapping[str, str]) -> str:
    """Signal to noise of every matched tensor in graph order, one line a candidate; a dot at the node that is to blame. SVG."""
    with _figure(3.0) as (figure, axes):
        for name, values in rows.items():
            colour = colours[name]
            shown = np.clip(np.asarray(values, np.float64), 0.0, 160.0)
            axes.plot(shown, color=colour, label=name, linewidth=1.4)
            if name in marked:
                axes.plot([marked[name]], [shown[marked[name]]], "o", color=colour, markersize=8)
        axes.set_ylim(0.0, 165.0)
        axes.set_xlabel("tensors in graph order")
        axes.set_ylabel("SQNR, dB")
        _legend(figure)
        return _svg(figure, "Signal to noise of the tensors in graph order")


def costs(by_group: Mapping[str, float]) -> str:
    """A bar a group: the mask IoU that it costs. SVG."""
    with _figure(0.8 + 0.32 * len(by_group)) as (figure, axes):
        names = list(by_group)[::-1]
        axes.barh(names, [max(by_group[name], 0.0) for name in names], color=COLOURS[0])
        axes.xaxis.set_major_locator(_matplotlib("ticker").MaxNLocator(4))
        axes.set_xlabel("mask IoU lost")
        return _svg(figure, "Mask IoU that each group of products costs")


def _by_distance(axes: Any) -> None:
    axes.set_xscale("log")
    axes.set_xlim(_FRONT, 1.0)


def _rows(axes: Any, names: Sequence[str]) -> None:
    """One name a row, from above."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


@contextmanager
def _figure(height: float) -> Iterator[tuple[Any, Any]]:
    _matplotlib("figure")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "trt-sam",
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(settings):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        yield figure, figure.subplots()


def _matplotlib(module: str) -> Any:
    return require(f"matplotlib.{module}", "to draw charts")


def _legend(figure: Any, *, columns: int = 1) -> None:
    legend = figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=columns)
    for text in legend.get_texts():
        text.set_color(_INK)


def _svg(figure: Any, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # The page scales it, and says what it is.
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r'<svg \1role="img"', text, count=1)
    text = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", text, count=1)
    return text.replace(">", f"><title>{title}</title>", 1)
