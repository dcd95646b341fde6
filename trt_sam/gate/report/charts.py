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

__all__ = ["COLOURS", "costs", "distances", "layer_sqnr"]

Array = npt.NDArray[Any]

COLOURS = ("#2f7fd6", "#d9662c", "#1f9e77", "#b05cc6", "#c9a227", "#5b6b7b")
"""Legible on white and on black."""
_INK = "#010203"
"""Stands for the page's own colour in what matplotlib writes."""
_FRONT = 1e-4


def distances(ious: Mapping[str, Array], limits: Sequence[float], colours: Mapping[str, str]) -> str:
    """Share of prompts whose mask is farther from the reference than each distance; lower is better. SVG."""
    with _figure(3.0) as (figure, axes):
        for name, values in ious.items():
            far = np.sort(np.clip(1.0 - values, _FRONT, 1.0))
            axes.step(far, 1.0 - np.arange(len(far)) / len(far), where="pre", color=colours[name], label=name, linewidth=1.8)
        for limit in limits:
            axes.axvline(max(1.0 - limit, _FRONT), color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xscale("log")
        axes.set_xlim(_FRONT, 1.0)
        axes.set_ylim(0.0, 1.02)
        axes.set_xlabel("1 - mask IoU (dashed: limit of the 5th percentile)")
        axes.set_ylabel("share of prompts farther away")
        axes.axhline(0.05, color=_INK, linewidth=0.5)
        _legend(figure)
        return _svg(figure, "Share of prompts by distance of their mask from the reference")


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
        axes.set_xlabel("mask IoU lost")
        return _svg(figure, "Mask IoU that each group of products costs")


@contextmanager
def _figure(height: float) -> Iterator[tuple[Any, Any]]:
    require("matplotlib", "to draw charts")
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


def _legend(figure: Any) -> None:
    legend = figure.legend(frameon=False, fontsize=8, loc="outside upper left")
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
