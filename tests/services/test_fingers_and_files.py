"""Fingers on the page and files dropped on it, as Chromium itself makes these events of touches and drags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.services.browser import Page, browser
from tests.services.process import ROOT, Service

Place = tuple[float, float]


@pytest.fixture(scope="module")
def phone(service: Service) -> Iterator[Page]:
    with browser(service.url, 390, 844, phone=True) as found:
        yield found


@pytest.fixture(scope="module")
def desktop(service: Service) -> Iterator[Page]:
    with browser(service.url) as found:
        yield found


def touch(page: Page, kind: str, fingers: Sequence[Place]) -> None:
    """`kind` is "touchStart", "touchMove" or "touchEnd"; `fingers` are those that are down then, in pixels of the window."""
    points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(fingers)]
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def gesture(page: Page, *steps: Sequence[Place]) -> None:
    """Fingers come down at the first step, move through the others and leave."""
    for number in range(len(steps[0])):
        touch(page, "touchStart", steps[0][: number + 1])
    for step in steps[1:]:
        touch(page, "touchMove", step)
    for number in reversed(range(len(steps[0]))):
        touch(page, "touchEnd", steps[-1][:number])
    page.settle()


def opened(page: Page) -> None:
    page.open()
    page.script("scrollTo(0, 0)")
    page.asked()


def tapped(page: Page, at: Place) -> Place:
    """The place of the picture that a tap there asks about."""
    gesture(page, [at])
    (question,) = page.asked()
    ((x, y),) = question["points"]
    page.press("#undo")
    page.settle()
    page.script("scrollTo(0, 0)")
    return x, y


def test_two_fingers_zoom_about_their_middle(phone: Page) -> None:
    opened(phone)
    x, y = phone.at(256, 256)
    middle, beside = tapped(phone, (x, y)), tapped(phone, (x + 60, y + 30))
    gesture(phone, *([(x - r, y), (x + r, y)] for r in (30, 45, 60, 75, 90)))
    assert phone.asked() == []
    assert not phone.all("#candidates button")
    assert tapped(phone, (x, y)) == pytest.approx(middle, abs=1.0)
    # Three times as far apart: what lay 60 pixels beside the middle lies 180 beside it.
    third = (middle[0] + (beside[0] - middle[0]) / 3, middle[1] + (beside[1] - middle[1]) / 3)
    assert tapped(phone, (x + 60, y + 30)) == pytest.approx(third, abs=1.0)
    gesture(phone, *([(x - r, y), (x + r, y)] for r in (90, 60, 30, 20)))
    assert tapped(phone, (x + 60, y + 30)) == pytest.approx(beside, abs=1.0)


def test_two_fingers_move_a_picture_that_is_zoomed(phone: Page) -> None:
    opened(phone)
    x, y = phone.at(256, 256)
    gesture(phone, *([(x - r, y), (x + r, y)] for r in (30, 60, 90)))
    before = tapped(phone, (x, y))
    gesture(phone, *([(x - 40 + d, y + d), (x + 40 + d, y + d)] for d in (0, 15, 30)))
    assert phone.asked() == []
    assert tapped(phone, (x + 30, y + 30)) == pytest.approx(before, abs=1.0)


def test_a_finger_that_stays_or_a_third_one_asks_nothing(phone: Page) -> None:
    opened(phone)
    x, y = phone.at(256, 256)
    touch(phone, "touchStart", [(x - 30, y)])
    touch(phone, "touchStart", [(x - 30, y), (x + 30, y)])
    touch(phone, "touchMove", [(x - 60, y), (x + 60, y)])
    touch(phone, "touchEnd", [(x - 60, y)])
    touch(phone, "touchMove", [(x - 10, y + 40)])
    touch(phone, "touchEnd", [])
    gesture(phone, *([(x - 40, y), (x + 40, y), (x + d, y + 60 + d)] for d in (0, 20, 40)))
    phone.settle()
    assert phone.asked() == []
    assert not phone.all("#candidates button")
    assert not phone.find("#undo").is_enabled()


def test_one_finger_drags_a_box(phone: Page) -> None:
    opened(phone)
    (x0, y0), (x1, y1) = phone.at(150, 60), phone.at(300, 215)
    gesture(phone, [(x0, y0)], [((x0 + x1) / 2, (y0 + y1) / 2)], [(x1, y1)])
    (question,) = phone.asked()
    assert question["boxes"][0] == pytest.approx([150, 60, 300, 215], abs=2.0)
    assert len(phone.all("#candidates button")) == 3


def is_dropping(page: Page) -> bool:
    return bool(page.script("return document.body.classList.contains('dropping')"))


def test_a_photo_that_is_dropped_is_opened(desktop: Page) -> None:
    desktop.driver.get(desktop.url + "/")
    desktop.drag_file(ROOT / "samples" / "astronaut.jpg", "dragEnter", "dragOver")
    desktop.until(lambda: is_dropping(desktop))
    desktop.drag_file(ROOT / "samples" / "astronaut.jpg", "drop")
    desktop.until(lambda: desktop.script("return document.body.dataset.state") == "ready", 60)
    desktop.settle()
    assert not is_dropping(desktop)
    desktop.asked()
    desktop.click(220, 400)
    assert desktop.asked()[0]["points"][0] == pytest.approx([220, 400], abs=1.0)
    assert len(desktop.all("#candidates button")) == 3


def test_a_file_that_is_dragged_out_again_changes_nothing(desktop: Page) -> None:
    desktop.open()
    before = desktop.colour(180, 300)
    desktop.drag_file(ROOT / "samples" / "scene.png", "dragEnter", "dragOver")
    desktop.until(lambda: is_dropping(desktop))
    desktop.drag_file(ROOT / "samples" / "scene.png", "dragOver", outside=True)
    desktop.until(lambda: not is_dropping(desktop))
    desktop.settle()
    assert desktop.colour(180, 300) == before


def test_a_dropped_file_that_is_no_picture_is_told_and_the_old_one_stays(desktop: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    desktop.open()
    desktop.click(220, 400)
    desktop.drag_file(tmp_path / "notes.txt", "dragEnter", "dragOver", "drop")
    desktop.until(lambda: "notes.txt is damaged, or not a picture" in desktop.text("#toast"))
    desktop.settle()
    assert len(desktop.all("#candidates button")) == 3
    desktop.click(220, 130)
    assert len(desktop.all("#candidates button")) == 3
