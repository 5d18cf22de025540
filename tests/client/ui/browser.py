"""Debian's Chromium without a window, the page as a process, and what tests do with both."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.cli.processes import plurum_command, started

__all__ = ["DESKTOP", "NEEDS_BROWSER", "PHONE", "Tab", "browser", "find_browser", "page_at"]

DESKTOP, PHONE = (1120, 900), (390, 844)
WAIT_S = 30.0
T = TypeVar("T")


def find_browser() -> tuple[str, str] | str:
    """Return the paths of Chromium and its driver, or why there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium and driver:
        return chromium, driver
    return "no chromium with its chromedriver on PATH; on Debian: apt-get install chromium chromium-driver"


_FOUND = find_browser()
# Before any server is started for nothing.
NEEDS_BROWSER = pytest.mark.skipif(isinstance(_FOUND, str), reason=str(_FOUND))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Chrome]:
    """A Chromium without a window, that keeps what it downloads in `folder`."""
    found = find_browser()
    assert not isinstance(found, str), found
    options = ChromeOptions()
    options.binary_location, driver = found
    for argument in ("--headless=new", "--no-first-run", "--disable-extensions", "--force-device-scale-factor=1"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        # Chromium's own walls need an ordinary user.
        options.add_argument("--no-sandbox")
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The driver's path is given: nothing is to be looked for, let alone downloaded.
    os.environ["SE_OFFLINE"] = "true"
    chrome = Chrome(options, ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


@contextlib.contextmanager
def page_at(*arguments: object) -> Iterator[str]:
    """The URL of a `plurum ui` with these arguments; it has to end well."""
    with started(plurum_command("ui", "--port", 0, *arguments), stderr=subprocess.PIPE) as (process, line):
        found = re.fullmatch(r"page     (http://\S+)\n", line)
        assert found, (line, process.communicate(timeout=10)[1])
        yield found[1]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, ""), err


@dataclass
class Tab:
    """One page in a browser, by what a person does with it."""

    chrome: Chrome
    url: str

    def open(self, path: str = "/") -> None:
        self.chrome.get(self.url + path)

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Be a screen of so many pixels, and still: nothing moves while a picture is taken."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        values = [{"name": name, "value": value} for name, value in features.items()]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": values})

    def all(self, css: str) -> list[WebElement]:
        return self.chrome.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        return self.until(lambda: next(iter(self.all(css)), None), css)

    def text(self, css: str) -> str:
        return self.one(css).text

    def until(self, found: Callable[[], T | None], what: object = "") -> T:
        """Wait for something that is neither None nor False nor empty."""
        deadline = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(Exception):
                if value := found():
                    return value
            assert time.monotonic() < deadline, f"{what or found} does not come:\n{self.body()}"
            time.sleep(0.05)

    def body(self) -> str:
        return self.chrome.find_element(By.TAG_NAME, "body").text

    def upload(self, *files: Path) -> None:
        """Choose files, as the dialog of the operating system would hand them over."""
        self.one("#files").send_keys("\n".join(map(str, files)))

    def answers(self, count: int) -> list[WebElement]:
        """The cards of so many images, once each has its answer."""
        self.until(lambda: len(self.all(".answer[data-label]")) == count, f"{count} answers")
        return self.all(".answer[data-label]")

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        for key in keys:
            ActionChains(self.chrome).send_keys(key).perform()

    def press_and_leave(self, key: str) -> None:
        """Press a key that leads to another page, and wait for that."""
        old = self.one("html")
        self.press(key)
        self.until(lambda: self.one("html") != old, f"the page after {key!r}")
        self.until(lambda: self.chrome.execute_script("return document.readyState") == "complete")

    def overflow(self) -> int:
        """By how many pixels the page is wider than the screen."""
        return int(
            self.chrome.execute_script(
                "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        )

    def complaints(self) -> Sequence[str]:
        """Return errors that the browser has logged since the last call."""
        return [entry["message"] for entry in self.chrome.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]
