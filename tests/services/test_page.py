"""The page in Chromium, with real clicks on MobileSAM."""

from __future__ import annotations

import base64
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.services.browser import Page, browser
from tests.services.process import Service

SUIT, FACE, FLAG = (220, 400), (220, 130), (40, 60)


@pytest.fixture(scope="module")
def page(service: Service) -> Iterator[Page]:
    with browser(service.url) as found:
        yield found


def painted(page: Page, at: tuple[float, float], before: tuple[int, int, int]) -> bool:
    """Whether a place has another colour than before, beyond what smoothing does."""
    return sum(abs(a - b) for a, b in zip(page.colour(*at), before, strict=True)) > 30


def areas(page: Page) -> list[str]:
    return [item.text for item in page.all("#objects li")]


def test_a_click_paints_the_suit_and_shows_three_candidates_and_its_time(page: Page) -> None:
    page.open()
    suit, flag = page.colour(180, 300), page.colour(*FLAG)
    page.click(*SUIT)
    assert painted(page, (180, 300), suit)
    assert not painted(page, FLAG, flag)
    assert len(page.all("#candidates button")) == 3
    assert page.text("#time").startswith("click ")
    assert " ms, model " in page.text("#time")


def test_without_its_script_the_page_takes_no_clicks_that_would_be_lost(page: Page) -> None:
    for blocked, inert in (["*/page/app.js"], True), ([], False):
        page.driver.execute_cdp_cmd("Network.enable", {})
        page.driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": bool(blocked)})
        page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": blocked})
        page.driver.get(page.url + "/")
        assert page.script("return document.body.inert") is inert
        assert (
            page.script("return document.elementFromPoint(...arguments[0]) === document.documentElement", [640, 430]) is inert
        )


def test_candidates_undo_and_removing_clicks(page: Page) -> None:
    page.open()
    page.click(*FACE)
    chosen = [button.get_attribute("aria-checked") for button in page.all("#candidates button")].index("true")
    other = (chosen + 2) % 3
    page.all("#candidates button")[other].click()
    assert page.all("#candidates button")[other].get_attribute("aria-checked") == "true"
    hair = page.colour(220, 60)
    page.press("#undo")
    assert page.all("#candidates button")[chosen].get_attribute("aria-checked") == "true"
    page.settle()
    assert painted(page, (220, 60), hair) or chosen == other
    asked = len(json.loads(page.script("return JSON.stringify(performance.getEntriesByType('resource').map(e => e.name))")))
    page.click(180, 300, right=True)
    page.click(320, 470, alt=True)
    names = json.loads(page.script("return JSON.stringify(performance.getEntriesByType('resource').map(e => e.name))"))
    assert sum("/masks" in name for name in names[asked:]) == 2
    for _ in range(3):
        page.press("#undo")
    page.settle()
    assert not page.all("#candidates button")
    assert not page.find("#undo").is_enabled()


def test_a_box_and_hovering(page: Page) -> None:
    page.open()
    face, suit = page.colour(*FACE), page.colour(180, 300)
    page.hover(180, 330)
    page.until(lambda: painted(page, (180, 300), suit))
    assert page.text("#time").startswith("preview ")
    page.drag(150, 60, 300, 215)
    assert painted(page, FACE, face)
    assert not painted(page, (180, 300), suit)


def test_objects_and_their_export(page: Page, tmp_path: Path) -> None:
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.open()
    page.click(*SUIT)
    page.press("#finish")
    page.click(*FACE)
    page.press("#finish")
    assert len(areas(page)) == 2
    for button in ("mask", "cut"):
        page.press(f"#export-{'png' if button == 'mask' else 'cut'}")
        page.until((tmp_path / f"astronaut.{button}.png").exists)
    page.press("#export-coco")
    page.until((tmp_path / "astronaut.json").exists)
    coco = json.loads((tmp_path / "astronaut.json").read_text())
    assert coco["images"] == [{"id": 1, "file_name": "astronaut.jpg", "width": 512, "height": 512}]
    found = [annotation["area"] for annotation in coco["annotations"]]
    assert all(f"{area:,} pixels" in text for area, text in zip(found, areas(page), strict=True))
    # The browser's own decoder of the PNG counts what COCO says.
    mask = base64.b64encode((tmp_path / "astronaut.mask.png").read_bytes()).decode()
    code = """const done = arguments[1], image = new Image();
    image.onload = () => { const c = new OffscreenCanvas(512, 512).getContext('2d'); c.drawImage(image, 0, 0);
      const d = c.getImageData(0, 0, 512, 512).data; let n = 0;
      for (let i = 0; i < d.length; i += 4) n += d[i] === 255;
      done(n) };
    image.src = 'data:image/png;base64,' + arguments[0];"""
    counted = page.driver.execute_async_script(code, mask)
    assert max(found) <= counted <= sum(found)
    page.all("#objects button")[0].click()
    assert len(areas(page)) == 1


def test_all_objects_are_found(page: Page) -> None:
    page.open()
    page.press("#everything")
    page.until(lambda: len(areas(page)) > 5, 120)
    page.settle()
    assert page.text("#time").startswith("all objects ")


def test_keys_zoom_and_moving(page: Page) -> None:
    page.open()
    before = page.colour(180, 300)
    # The cross begins in the middle; two steps up, and space adds there.
    page.script("document.getElementById('view').focus()")
    view = page.find("#view")
    view.send_keys("\ue013", "\ue013")
    page.until(lambda: page.text("#time").startswith("preview "))
    view.send_keys(" ")
    page.until(lambda: page.all("#candidates button"))
    view.send_keys("2")
    assert page.all("#candidates button")[1].get_attribute("aria-checked") == "true"
    view.send_keys("\ue007")
    assert len(areas(page)) == 1
    page.script("document.getElementById('view').focus()")
    view.send_keys("+")
    page.settle()
    assert page.colour(180, 300) != before or page.colour(40, 60) != before
    view.send_keys("0")
    page.press("[data-tool=move]")
    page.drag(200, 200, 100, 100)
    assert not page.all("#candidates button")


def test_an_image_that_the_server_forgot_is_sent_again(page: Page, service: Service) -> None:
    page.open()
    page.click(*SUIT)
    names = page.script("return performance.getEntriesByType('resource').map(e => e.name)")
    (image,) = {urlsplit(name).path.split("/")[2] for name in names if name.endswith("/masks")}
    request = urllib.request.Request(f"{service.url}/images/{image}", method="DELETE")
    assert urllib.request.urlopen(request, timeout=30).status == 204
    page.press("#clear")
    page.click(*FACE)
    assert len(page.all("#candidates button")) == 3


def test_nothing_leaves_the_machine_and_the_console_is_empty(page: Page, service: Service) -> None:
    page.driver.get_log("performance")
    page.driver.get_log("browser")
    page.open("scene.png")
    page.click(400, 300)
    hosts = set()
    for entry in page.driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urlsplit(message["params"]["request"]["url"])
            if url.scheme not in ("blob", "data"):
                hosts.add(url.netloc)
    assert hosts == {urlsplit(service.url).netloc}
    assert page.driver.get_log("browser") == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)], ids=["desktop", "phone"])
def test_it_fits_its_window(service: Service, width: int, phone: bool, dark: bool) -> None:
    """Also writes screenshots for people, where TRT_SAM_SCREENSHOTS names a folder."""
    with browser(service.url, width, 844, dark=dark, phone=phone) as page:
        page.open()
        page.click(*SUIT)
        page.press("#finish")
        page.click(*FACE)
        assert len(page.all("#candidates button")) == 3
        assert page.script("return document.documentElement.scrollWidth <= innerWidth")
        back = page.script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, back[4:-1].split(","))) < 380) == dark
        for button in page.all("button"):
            if button.is_displayed():
                assert page.script("const b = arguments[0]; return b.scrollWidth <= b.clientWidth + 1", button), button.text
        if folder := os.environ.get("TRT_SAM_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.driver.save_screenshot(str(Path(folder) / f"{width}-{'dark' if dark else 'light'}.png"))
        if phone:
            tapped = """const v = document.getElementById('view'), [clientX, clientY] = arguments;
              const o = { bubbles: true, pointerId: 7, pointerType: 'touch', button: 0, clientX, clientY };
              v.setPointerCapture = () => {};
              for (const kind of ['pointerdown', 'pointerup']) v.dispatchEvent(new PointerEvent(kind, o));"""
            page.press("[data-tool=remove]")
            page.script("scrollTo(0, 0)")
            page.script(tapped, *page.at(180, 300))
            page.settle()
            assert len(page.all("#candidates button")) == 3
