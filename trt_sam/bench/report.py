"""A benchmark's report as Markdown and as a plot."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trt_sam._lazy import require
from trt_sam.bench.benchmark import BenchmarkReport, PromptsResult, SideReport
from trt_sam.bench.stats import Latency

__all__ = ["markdown", "plot_svg"]

NOT_HERE = "not measured here"
_INCLUDED = {
    "call": "a call",
    "best mask": "a call for the best mask",
    "bits": "a call for the best mask as bits",
    "events": "between CUDA events",
}
"""What of a side's `about` says what its times include, and how the report calls it."""
_COLORS = ("#4c6a92", "#d98032", "#5b9a5b", "#b04a4a", "#7d6aa8", "#8a7a5c", "#3f9ea8", "#777777")


def markdown(report: BenchmarkReport) -> str:
    """The whole report as Markdown."""
    return "\n".join(_lines(report)) + "\n"


def plot_svg(report: BenchmarkReport) -> bytes:
    """Median time per prompt of every side, over the number of prompts, as SVG; the whisker is the rounds' range.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "to draw the plot")
    figure_module = require("matplotlib.figure", "to draw the plot")
    sides = [side for side in report.sides if _measured(side)]
    prompts = [n for n in report.plan.prompts if any(r.prompts == n for side in sides for r in _measured(side))]
    width = 0.8 / len(sides)
    # The salt and the empty date make the same report the same file.
    with matplotlib.rc_context({"svg.hashsalt": "trt-sam", "svg.fonttype": "none", "font.size": 9}):
        figure = figure_module.Figure(figsize=(max(6.0, 1.6 + 0.45 * len(prompts) * len(sides)), 4.2), layout="constrained")
        axes = figure.subplots()
        for index, side in enumerate(sides):
            results = {r.prompts: r for r in _measured(side)}
            known = [n for n in prompts if n in results]
            places = [prompts.index(n) + (index - (len(sides) - 1) / 2) * width for n in known]
            heights = [_p50(results[n]) / n for n in known]
            spread = [
                [h - min(results[n].round_medians_ms) / n for n, h in zip(known, heights, strict=True)],
                [max(results[n].round_medians_ms) / n - h for n, h in zip(known, heights, strict=True)],
            ]
            # A pooled median may lie outside the rounds' medians by a hair.
            errors = [[max(0.0, value) for value in row] for row in spread]
            color = _COLORS[index % len(_COLORS)]
            axes.bar(places, heights, width * 0.92, yerr=errors, label=side.name, color=color, ecolor="#333333", capsize=2)
            for place, height, above in zip(places, heights, errors[1], strict=True):
                top = (place, height + above)
                axes.annotate(f"{height:.3g}", top, (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=7)
        axes.set_xticks(range(len(prompts)), [str(n) for n in prompts])
        axes.set_xlabel("prompts per call")
        axes.set_ylabel("milliseconds per prompt (median, host to host)")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        axes.set_title(f"{report.title}\n{_where(report.machine)}", fontsize=9, loc="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _measured(side: SideReport) -> list[PromptsResult]:
    return [result for result in side.results if result.host_to_host is not None]


def _p50(result: PromptsResult) -> float:
    assert result.host_to_host is not None
    return result.host_to_host.p50


def _where(machine: Mapping[str, Any]) -> str:
    place = str(machine.get("gpu", {}).get("name") or machine["processor"])
    return f"{place}, {machine['cpus_allowed']} CPUs"


def _lines(report: BenchmarkReport) -> Iterator[str]:
    plan = report.plan
    yield from (f"# {report.title}", "", f"{report.created}, {_where(report.machine)}, {plan.threads} threads per side.", "")
    yield from _lead_lines(report)
    yield from (f"One call: {report.calls}.", "", report.method, "")
    warm = f"{plan.warmup_s:g} s of warm-up per side and number of prompts"
    yield f"{plan.rounds} rounds, {plan.seconds:g} s of timed calls in all, {warm}."
    yield from ("", "## Host to host, milliseconds", "")
    yield "| side | prompts | p50 | p90 | p99 | max | prompts/s | calls | first call | largest logit difference |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for side, result in _rows(report):
        if result.host_to_host is None:
            yield f"| {side.name} | {result.prompts} | {NOT_HERE}: {_cell(result.not_measured)} | | | | | | | |"
            continue
        error = "" if result.logits_error is None else f"{result.logits_error:.1e}"
        cells = (_latency(result.host_to_host), _figure(result.prompts_per_second), str(result.host_to_host.samples))
        yield f"| {side.name} | {result.prompts} | {' | '.join(cells)} | {_figure(result.first_call_ms)} | {error} |"
    yield from (
        "",
        "A dash: too few calls for that percentile. Differences are to the first side, relative to its largest |logit|.",
    )
    yield from _table("Best mask only, host to host, milliseconds", [(s, r.prompts, r.best_mask) for s, r in _rows(report)])
    if any(result.best_bits is not None for _, result in _rows(report)):
        rows = [(s, r.prompts, r.best_bits) for s, r in _rows(report)]
        yield from _table("Best mask as bits, host to host, milliseconds", rows)
    yield from _table("Between CUDA events, milliseconds", [(s, r.prompts, r.device) for s, r in _rows(report)])
    yield from _ratio_lines(report)
    yield from _profile_lines(report)
    yield from _side_lines(report)
    yield from _machine_lines(report)


def _lead_lines(report: BenchmarkReport) -> Iterator[str]:
    """What a service that segments many objects at once asks first: the best mask as bits, of the most prompts."""
    rows = [(side, result.prompts, result.best_bits) for side, result in _rows(report)]
    known = [(side, prompts, latency) for side, prompts, latency in rows if latency is not None]
    if not known:
        return
    most = max(prompts for _, prompts, _ in known)
    ratios = {ratio.side: ratio for ratio in report.bits_ratios if ratio.prompts == most}
    yield from (f"## The best mask of {most} prompts as bits, host to host, milliseconds", "")
    against = next((f"times as fast as {ratio.baseline}" for ratio in ratios.values()), "times as fast as the baseline")
    yield f"| side | p50 | p90 | p99 | max | calls | prompts/s at p50 | {against} |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for side, prompts, latency in known:
        if prompts == most:
            ratio = ratios.get(side.name)
            times = "" if ratio is None else f"{ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            rate = _figure(1000 * most / latency.p50)
            yield f"| {side.name} | {_latency(latency)} | {latency.samples} | {rate} | {times} |"
    yield ""


def _table(title: str, rows: Sequence[tuple[SideReport, int, Latency | None]]) -> Iterator[str]:
    """Times that some sides have; which have none is said."""
    known = [(side, prompts, latency) for side, prompts, latency in rows if latency is not None]
    yield from ("", f"## {title}", "")
    if not known:
        yield f"{NOT_HERE}: no side has such times on this device."
        return
    yield from ("| side | prompts | p50 | p90 | p99 | max | calls |", "|---|---:|---:|---:|---:|---:|---:|")
    for side, prompts, latency in known:
        yield f"| {side.name} | {prompts} | {_latency(latency)} | {latency.samples} |"
    others = [side.name for side, _, latency in rows if latency is None and all(side is not each for each, _, _ in known)]
    if others:
        yield from ("", f"{NOT_HERE} for {', '.join(dict.fromkeys(others))}: without such times on their device.")


def _ratio_lines(report: BenchmarkReport) -> Iterator[str]:
    if not report.ratios:
        return
    yield from ("", f"## Times as fast as {report.ratios[0].baseline}", "")
    yield "| side | prompts | ratio of medians | quartiles of the rounds | range |"
    yield "|---|---:|---:|---:|---:|"
    for r in report.ratios:
        yield f"| {r.side} | {r.prompts} | {r.ratio:.2f} | {r.low:.2f} to {r.high:.2f} | {r.least:.2f} to {r.most:.2f} |"


def _profile_lines(report: BenchmarkReport) -> Iterator[str]:
    for profile in report.profiles:
        yield from ("", f"## Where ONNX Runtime's time goes, {profile['prompts']} prompts", "")
        yield f"{profile['node_ms']:.4g} ms in nodes (medians of {profile['calls']} profiled calls, one after the other)."
        yield from ("", "| kind | nodes | ms | share |", "|---|---:|---:|---:|")
        for row in profile["by_kind"]:
            if row["share"] >= 0.005:
                yield f"| {row['kind']} | {row['count']} | {row['ms']:.3g} | {100 * row['share']:.1f} % |"
        yield ""
        for row in profile["largest"]:
            yield f"- {row['ms']:.3g} ms, {100 * row['share']:.1f} %: {_cell(row['node'])}"


def _side_lines(report: BenchmarkReport) -> Iterator[str]:
    yield from ("", "## Sides", "")
    for side in report.sides:
        if side.not_measured:
            yield f"- **{side.name}**: {NOT_HERE}: {side.not_measured}"
            continue
        about = ", ".join(f"{key} {value}" for key, value in side.about.items() if key not in _INCLUDED)
        opened = f"; opened in {side.open_ms / 1000:.2g} s" if side.open_ms is not None else ""
        yield f"- **{side.name}**: {about}{opened}"
        yield from (f"  - {title}: {side.about[key]}" for key, title in _INCLUDED.items() if key in side.about)


def _machine_lines(report: BenchmarkReport) -> Iterator[str]:
    yield from ("", "## Machine", "")
    for key, value in report.machine.items():
        yield f"- {key}: {_plain(value)}"
    yield f"- clocks before, idle: {_plain(report.clocks_idle)}"
    for each in report.clocks_at_work:
        found = {key: value for key, value in each.items() if key not in ("round", "side", "prompts")}
        yield f"- clocks in round {each['round']}, while {each['side']} works (prompts: {each['prompts']}): {_plain(found)}"
    yield from (f"- note: {note}" for note in report.notes)


def _rows(report: BenchmarkReport) -> Iterator[tuple[SideReport, PromptsResult]]:
    for side in report.sides:
        for result in side.results:
            yield side, result


def _latency(latency: Latency) -> str:
    values = (latency.p50, latency.p90, latency.p99, latency.max)
    return " | ".join(_figure(value) for value in values)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "unknown"
    if isinstance(value, list) and len(value) > 4:  # MHz of each CPU
        return f"{min(value)} to {max(value)}"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def _figure(value: float | None) -> str:
    """Four digits, or a whole number; never an exponent, as a compilation of 20 s in milliseconds would be."""
    if value is None:
        return "-"
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"
