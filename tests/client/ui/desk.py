"""The review page before the real server, in a browser's tab."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from PIL import Image
from selenium.webdriver import Chrome

from plurum.client.ui import ReviewStore
from tests.client.relay import Relay
from tests.client.ui.browser import DESKTOP, Tab, page_at

__all__ = ["Desk"]

# Where pictures for docs/reviewing.md go, if they are requested.
PICTURES = "PLURUM_PICTURES"


class Desk:
    """A page, the way to its server, its store and the images to drop on it."""

    def __init__(self, chrome: Chrome, relay: Relay, folder: Path, images: list[Path]) -> None:
        self.chrome, self.relay, self.folder, self.images = chrome, relay, folder, images
        self.stack = ExitStack()

    @property
    def store(self) -> ReviewStore:
        return ReviewStore(self.folder / "reviews")

    def start(self, *arguments: object) -> Tab:
        """Start the page with more arguments, and open it."""
        own = ("--url", self.relay.address, "--store", self.folder / "reviews", "--reviewer", "Ada")
        tab = Tab(self.chrome, self.stack.enter_context(page_at(*own, *arguments)))
        tab.size(*DESKTOP)
        tab.open()
        return tab

    def classified(self) -> Tab:
        """Start a page that has classified all images."""
        tab = self.start()
        tab.upload(*self.images)
        tab.answers(len(self.images))
        return tab

    def reviewing(self) -> Tab:
        """Start a page at the first image to review."""
        tab = self.classified()
        tab.open("/review")
        tab.one("#decision")
        return tab

    def picture(self, tab: Tab, name: str) -> None:
        """Take a picture for the docs, in few colours and bytes, if pictures are requested."""
        if not (folder := os.environ.get(PICTURES)):
            return
        tab.until(lambda: tab.chrome.execute_script("return [...document.images].every(one => one.complete)"))
        file = Path(folder) / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        tab.chrome.save_screenshot(str(file))
        with Image.open(file) as image:
            # The method that keeps a small green dot green.
            few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(file, optimize=True)
