"""The benchmark's report: what it leads with, its tables and its plot."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from tests.fixtures.benchmark_runs import fake, run
from trt_sam.bench.benchmark import SideSpec
from trt_sam.bench.report import markdown, plot_svg
from trt_sam.bench.stats import ratio_of_medians, summarize
from trt_sam.errors import MissingDependencyError


def test_markdown_says_how_it_was_measured() -> None:
    text = markdown(run(fake("a"), fake("b")))
    assert "## Between CUDA events, milliseconds\n\nnot measured here: no side" in text
    for part in ("3 rounds", "warm-up", "clocks before, idle", "load_average", "numpy", "Times as fast as a"):
        assert part in text
    assert "- **a**: runtime fake, device none, precision fp32; opened in" in text
    assert "  - a call: nothing but a nap\n" in text
    header = next(line for line in text.splitlines() if line.startswith("| side"))
    rows = [line for line in text.splitlines() if line.startswith("| a ")]
    assert rows
    assert all(row.count("|") == header.count("|") for row in rows[:2])


def test_calls_for_the_best_mask_are_apart() -> None:
    report = run(fake("a"), fake("b", "BestSide"))
    without, has = report.sides
    assert all(result.best_mask is None for result in without.results)
    for result in has.results:
        assert result.best_mask is not None
        assert result.host_to_host is not None
        assert result.best_mask.samples == result.host_to_host.samples
        assert result.best_mask.p50 >= 20  # it sleeps so long
    part = markdown(report).partition("## Best mask only")[2].partition("\n## ")[0]
    assert [line.split("|")[1:3] for line in part.splitlines() if line.startswith("| b")] == [[" b ", " 1 "], [" b ", " 3 "]]
    assert "not measured here for a: " in part


def test_the_report_leads_with_the_best_mask_as_bits_of_the_most_prompts() -> None:
    report = run(fake("a", "BitsSide"), fake("b", "BitsSide"), fake("c", "BestSide"))
    assert {(ratio.side, ratio.prompts) for ratio in report.bits_ratios} == {("b", 1), ("b", 3)}
    for side in report.sides[:2]:
        for result in side.results:
            assert result.best_bits is not None
            assert result.host_to_host is not None
            assert result.best_bits.samples == result.host_to_host.samples
            assert result.best_bits.p50 >= 40  # it sleeps so long
    text = markdown(report)
    first = text.partition("\n## ")[2].partition("\n## ")[0]
    assert first.startswith("The best mask of 3 prompts as bits, host to host, milliseconds\n\n| side | p50 |")
    assert "times as fast as a |" in first
    assert [line.split("|")[1].strip() for line in first.splitlines() if line.startswith(("| a", "| b", "| c"))] == ["a", "b"]
    later = text.partition("## Best mask as bits")[2].partition("\n## ")[0]
    assert [line.split("|")[1:3] for line in later.splitlines() if line.startswith("| b")] == [[" b ", " 1 "], [" b ", " 3 "]]
    assert "not measured here for c: " in later


def test_what_it_leads_with_is_by_the_rounds_own_ratios() -> None:
    report = run(fake("a", "BitsSide"), fake("b", "BitsSide"))
    ratio = ratio_of_medians("b", [[1.0], [2.0], [2.0]], "a", [[4.0], [4.0], [6.0]], prompts=3)
    side = report.sides[1]
    result = dataclasses.replace(side.results[1], best_bits=summarize([2.0, 2.0, 2.0]))
    side = dataclasses.replace(side, results=(side.results[0], result))
    text = markdown(dataclasses.replace(report, sides=(report.sides[0], side), bits_ratios=(ratio,)))
    row = next(line for line in text.splitlines() if line.startswith("| b "))
    assert row == "| b | 2 | - | - | 2 | 3 | 1,500 | 3.00 (2.50 to 3.50) |"


def test_the_plot_is_an_svg_with_every_side() -> None:
    pytest.importorskip("matplotlib")
    report = run(fake("first side"), fake("second side"), SideSpec("absent", "", not_here="no GPU"))
    svg = plot_svg(report)
    assert svg.startswith(b"<?xml")
    assert b"first side" in svg
    assert b"second side" in svg
    assert b"absent" not in svg
    assert plot_svg(report) == svg


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(fake("a"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"matplotlib .* pip install -e '\S+\[bench\]'"):
        plot_svg(report)
