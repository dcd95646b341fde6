"""Chromium from Debian, driven by its own chromedriver: real clicks at places of the picture."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.mouse_button import MouseButton
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Page:
    """The page in a window; places are in pixels of the picture."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self, sample: str = "astronaut.jpg") -> None:
        self.load(self.url + "/")
        self.find(f'[data-sample="{sample}"]').click()
        self.until(lambda: self.script("return document.body.dataset.state") == "ready", 60)
        self.settle()

    def load(self, address: str) -> None:
        """Open an address of the page, and wait until the service has told it about the model, or refused to."""
        self.driver.get(address)
        said = " || ".join(f"document.getElementById('{part}').textContent" for part in ("model", "toast"))
        told = f"return !document.body.inert && ({said})"
        self.until(lambda: self.script(told))

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def press(self, selector: str) -> None:
        self.find(selector).click()

    def text(self, selector: str) -> str:
        return str(self.find(selector).text)

    def script(self, code: str, *given: Any) -> Any:
        return self.driver.execute_script(code, *given)

    def until(self, is_so: Any, seconds: float = 20) -> None:
        try:
            WebDriverWait(self.driver, seconds, 0.05).until(lambda _: is_so())
        except TimeoutException:
            raise AssertionError(f"not so after {seconds} s; {self.state()}") from None

    def state(self) -> str:
        """What the page shows, and what it has asked for: of a failure that may not come again."""
        code = """const asked = performance.getEntriesByType('resource').slice(-8);
        return {
          ...document.body.dataset, address: location.href, toast: document.getElementById('toast')?.textContent,
          kept: Object.keys(sessionStorage), now: Math.round(performance.now()), loaded: document.readyState,
          asked: asked.map((e) => [e.name, e.responseStatus, Math.round(e.startTime), Math.round(e.duration)]),
        }"""
        return f"{self.script(code)}; console: {[line['message'] for line in self.driver.get_log('browser')]}"

    def settle(self) -> None:
        """Wait until nothing is under way and the picture is drawn."""
        self.until(lambda: self.script("return document.body.dataset.busy === undefined"), 60)
        self.driver.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))")

    def at(self, x: float, y: float, width: int = 512, height: int = 512) -> tuple[int, int]:
        """Where in the window a place of a fitted picture is."""
        frame = self.script(
            "const r = document.getElementById('view').getBoundingClientRect(); return [r.x, r.y, r.width, r.height]"
        )
        scale = min((frame[2] - 16) / width, (frame[3] - 16) / height)
        left, top = frame[0] + (frame[2] - width * scale) / 2, frame[1] + (frame[3] - height * scale) / 2
        return round(left + x * scale), round(top + y * scale)

    def click(self, x: float, y: float, *, right: bool = False, alt: bool = False, waits: bool = True) -> None:
        mouse = ActionBuilder(self.driver)
        mouse.pointer_action.move_to_location(*self.at(x, y))
        if alt:
            ActionChains(self.driver).key_down("\ue00a").perform()
        mouse.pointer_action.pointer_down(MouseButton.RIGHT if right else MouseButton.LEFT)
        mouse.pointer_action.pointer_up(MouseButton.RIGHT if right else MouseButton.LEFT)
        mouse.perform()
        if alt:
            ActionChains(self.driver).key_up("\ue00a").perform()
        if waits:
            self.settle()

    def hover(self, x: float, y: float) -> None:
        mouse = ActionBuilder(self.driver)
        mouse.pointer_action.move_to_location(*self.at(x, y))
        mouse.perform()

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        mouse = ActionBuilder(self.driver)
        mouse.pointer_action.move_to_location(*self.at(x0, y0))
        mouse.pointer_action.pointer_down()
        mouse.pointer_action.move_to_location(*self.at((x0 + x1) / 2, (y0 + y1) / 2))
        mouse.pointer_action.move_to_location(*self.at(x1, y1))
        mouse.pointer_action.pointer_up()
        mouse.perform()
        self.settle()

    def asked(self) -> list[dict[str, Any]]:
        """What the page has asked for masks since this was last called."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent" and message["params"]["request"]["url"].endswith("/masks"):
                found.append(json.loads(message["params"]["request"]["postData"]))
        return found

    def drag_file(self, path: Path, *kinds: str, outside: bool = False) -> None:
        """Drag a file over the picture, or outside of the window: "dragEnter", "dragOver", "drop"."""
        x, y = (5000, 5000) if outside else self.at(256, 256)
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in kinds:
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})

    def drop(self, path: Path) -> None:
        """Drop a file on the picture."""
        self.drag_file(path, "dragEnter", "dragOver", "drop")

    def delay(self, seconds: float) -> None:
        """Have each request take so much longer."""
        told = {"offline": False, "latency": seconds * 1e3, "downloadThroughput": -1, "uploadThroughput": -1}
        self.driver.execute_cdp_cmd("Network.enable", {})
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", told)

    def colour(self, x: float, y: float) -> tuple[int, int, int]:
        """What is drawn at a place, red, green, blue."""
        px, py = self.at(x, y)
        code = """const c = document.getElementById('view'), r = c.getBoundingClientRect(), k = devicePixelRatio;
        const [x, y] = [(arguments[0] - r.x) * k, (arguments[1] - r.y) * k];
        return [...c.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)"""
        red, green, blue = self.script(code, px, py)
        return int(red), int(green), int(blue)


@contextlib.contextmanager
def browser(url: str, width: int = 1280, height: int = 860, *, dark: bool = False, phone: bool = False) -> Iterator[Page]:
    """A fresh Chromium on the service at `url`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        if phone:
            metrics = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True, "mobile": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            if dark:
                features = [{"name": "prefers-color-scheme", "value": "dark"}]
                driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            driver.set_script_timeout(30)
            yield Page(driver, url)
        finally:
            driver.quit()
