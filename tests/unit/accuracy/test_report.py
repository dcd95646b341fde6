"""The report of an accuracy measurement: page, JSON, Markdown and the pictures of a worst mask."""

from __future__ import annotations

import html.parser
import json
import re

import pytest

from tests.fixtures.told import SIDE, Told, example, flipped, four, three_prompts
from trt_sam.accuracy.measurement import Measurement, Variant, measure
from trt_sam.accuracy.report import make_report, markdown
from trt_sam.gate.report.accuracy_page import accuracy_page
from trt_sam.gate.report.pictures import panels


class Tags(html.parser.HTMLParser):
    """Whether every tag is closed, and what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.pictures += tag == "img"
        for name, value in attrs:
            if name in ("src", "href", "data") and not str(value).startswith("data:"):
                self.fetched.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def measured() -> Measurement:
    return three_prompts()


@pytest.fixture
def page(measured: Measurement) -> str:
    pytest.importorskip("PIL")
    pytest.importorskip("matplotlib")
    report = make_report(measured, title="A <b>title</b>", conditions={"a & b": "<script>"}, descriptions={"other": "x < y"})
    return accuracy_page(report, measured.worst)


def test_the_page_is_whole_and_fetches_nothing(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert (tags.open, tags.fetched, tags.pictures) == ([], [], 4 * 3)
    assert "<script" not in page
    page = re.sub('"data:image/jpeg;base64,[^"]*"', "", page)
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "x &lt; y" in page
    assert page.count("<svg") == 3
    assert "nan" not in page.lower().replace("nano", "")


def test_the_report_is_strict_json_and_a_table(measured: Measurement) -> None:
    report = make_report(measured, title="Accuracy", conditions={"checkpoint": "none"}, facts={"other": {"ranges": {"x": 1.0}}})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(json.dumps(report.to_dict()), parse_constant=refuse)
    same, other = data["variants"]
    assert same["overall"]["sqnr_db"] == "inf"
    assert other["overall"]["iou_min"] == pytest.approx(0.8)
    assert other["by_kind"]["box"]["prompts"] == 1
    assert other["facts"] == {"ranges": {"x": 1.0}}
    assert other["curve"][-1] == pytest.approx(0.8)
    assert len(other["curve"]) == len(data["curve_percentiles"])
    text = markdown(report)
    assert "| other | 0.9333 | 0.9000 to 1.0000 | 0.8200 | 0.804 | 0.800 | 33.3 % |" in text
    assert "selected 0.8333, oracle 1.0000" in text
    assert "\n- Truth: mean IoU with the exact mask" in text


def test_the_method_explains_no_column_that_is_not_there() -> None:
    masks = Told({0: (four(10, 100, 50, 20), flipped(2, 0.9))})
    known = measure(masks, [Variant("same", lambda: masks)], [example([0], ("click",))])
    text = markdown(make_report(known, title="Accuracy", conditions={}))
    assert "truth" not in text.lower()


def test_the_panels_show_what_was_lost(measured: Measurement) -> None:
    pytest.importorskip("PIL")
    *_, difference = panels(measured.worst["other"][0])
    # Of the frame the picture's part, three quarters as high as wide; twice as large.
    assert difference.shape == (2 * SIDE * 3 // 4, 2 * SIDE, 3)
    red = difference[..., 0].astype(int) - difference[..., 2] > 60
    assert int(red.sum()) == 2 * 20 * 2 * SIDE
    assert red[160:200].all()
