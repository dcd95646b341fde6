"""What is done on the page while something is under way, and what it says where something cannot be done."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.browser import Page, browser
from tests.services.process import ROOT, Service, start

SUIT, FACE = (220, 400), (220, 130)
SCENE = ROOT / "samples" / "scene.png"


@pytest.fixture(scope="module")
def browsing(service: Service) -> Iterator[Page]:
    with browser(service.url) as found:
        yield found


@pytest.fixture
def page(browsing: Page) -> Iterator[Page]:
    browsing.open()
    yield browsing
    browsing.delay(0)


def said(page: Page, words: str) -> None:
    """Wait until the page says that; it is hidden again after a while, and stays there."""
    page.until(lambda: words in page.script("return document.getElementById('toast').textContent"))


def points(page: Page) -> list[int]:
    """How many points each prompt had that the page has sent, previews left out."""
    return [len(each["points"]) for each in page.asked() if each.get("keep", True)]


def test_a_click_while_a_dropped_photo_is_being_opened_does_not_discard_it(page: Page) -> None:
    before = page.colour(180, 300)
    page.asked()
    page.delay(1.0)
    page.drop(SCENE)
    page.until(lambda: "busy" in page.script("return Object.keys(document.body.dataset)"))
    page.click(*SUIT, waits=False)
    page.script("dispatchEvent(new KeyboardEvent('keydown', { key: ' ', bubbles: true }))")
    page.settle()
    assert page.colour(180, 300) != before
    assert points(page) == []
    page.delay(0)
    page.click(*FACE)
    assert points(page) == [1]
    assert len(page.all("#candidates button")) == 3


def test_of_two_photos_the_later_one_is_opened(page: Page) -> None:
    page.delay(1.0)
    page.drop(SCENE)
    page.drop(ROOT / "samples" / "astronaut.jpg")
    page.settle()
    assert page.script("return document.querySelector('#view').inert") is False
    page.click(*SUIT)
    assert page.all("#candidates button")[0].get_attribute("aria-label").startswith("Candidate 1")
    assert page.script("const c = document.querySelector('#candidates canvas'); return c.width === c.height")


def test_a_click_before_the_answer_to_the_last_adds_to_it_and_undo_takes_both_back(page: Page) -> None:
    page.asked()
    page.delay(0.5)
    page.click(*SUIT, waits=False)
    page.click(*FACE)
    assert points(page) == [1, 2]
    assert len(page.all("#candidates button")) == 3
    page.press("#undo")
    assert not page.all("#candidates button")


def test_undo_takes_back_the_click_that_is_under_way(page: Page) -> None:
    page.click(*SUIT)
    page.delay(1.0)
    page.click(*FACE, waits=False)
    page.press("#undo")
    page.settle()
    assert len(page.all("#candidates button")) == 3
    page.delay(0)
    page.asked()
    page.click(*FACE)
    assert points(page) == [2]


def test_finding_all_objects_is_stopped_here_and_in_the_service(page: Page, service: Service) -> None:
    page.press("#everything")
    page.until(lambda: page.find("#stop").is_displayed())
    page.press("#stop")
    page.settle()
    assert not page.all("#objects li")
    page.until(lambda: any(e["route"].endswith("/everything") and e.get("code") == "client_gone" for e in service.lines))


def png(width: int, height: int) -> bytes:
    """A grey PNG of one bit for a pixel."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),)
    parts += ((b"IDAT", zlib.compress(bytes((width // 8 + 1) * height), 1)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_photo_that_cannot_be_taken_is_told_in_words_and_the_old_one_stays(page: Page, tmp_path: Path) -> None:
    photo, small, filler = (ROOT / "samples" / "astronaut.jpg").read_bytes(), png(64, 64), 33 << 20
    files = {
        "large.png": (png(6400, 6400), "the picture has more than 36,000,000 pixels; scale it down"),
        "half.jpg": (photo[: len(photo) // 2], "half.jpg is damaged, or not a picture that the browser can read."),
        "text.jpg": (b"no picture", "text.jpg is damaged, or not a picture that the browser can read."),
        "heavy.png": (
            small[:-12] + struct.pack(">I", filler) + b"teXt" + bytes(filler + 4) + small[-12:],
            "The photo's file is larger than the service takes; save it smaller.",
        ),
    }
    page.click(*SUIT)
    for name, (content, words) in files.items():
        (tmp_path / name).write_bytes(content)
        page.drop(tmp_path / name)
        said(page, words)
        page.settle()
    page.asked()
    page.click(*FACE)
    assert points(page) == [2]
    assert len(page.all("#candidates button")) == 3


def test_a_missing_token_and_a_service_that_is_gone_are_told(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("open-sesame")
    own = start("--token-file", str(tmp_path / "token"))
    with browser(own.url) as page:
        page.load(own.url + "/")
        said(page, "The service wants its token: open the whole address that trt-sam serve printed")
        page.driver.get("about:blank")
        page.load(own.url + "/#token=open-sesame")
        assert page.driver.current_url == own.url + "/"
        page.open()
        page.click(*SUIT)
        assert len(page.all("#candidates button")) == 3
        assert own.stop() == 0
        for act in (lambda: page.click(*FACE), lambda: page.press("#everything"), lambda: page.drop(SCENE)):
            page.script("document.getElementById('toast').textContent = ''")
            act()
            said(page, "The service does not answer; is it still running?")
            page.settle()
        assert len(page.all("#candidates button")) == 3
        assert page.script("return document.getElementById('view').inert") is False
