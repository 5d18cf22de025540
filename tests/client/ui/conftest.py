"""A Chromium for all browser tests, and for each a page of its own before the real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import Chrome

from plurum.client.ui import ReviewStore
from plurum.run import Run
from plurum.serving import Server
from tests.client.relay import Relay
from tests.client.ui.browser import DESKTOP, Tab, browser, page_at

# Where pictures for docs/reviewing.md go, if they are requested.
PICTURES = "PLURUM_PICTURES"
# What Chromium says of answers that mean something.
EXPECTED = ("status of 404", "status of 409", "status of 422", "status of 503", "net::ERR_CONNECTION_REFUSED")


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


@pytest.fixture(scope="package")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("chromium")) as chrome:
        yield chrome


@pytest.fixture(scope="package")
def images(run: Run, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight digits, as large as people can see; of some the ensemble is sure, of others not."""
    folder = tmp_path_factory.mktemp("digits")
    files = []
    for index in range(40, 48):
        files.append(folder / f"digit-{index:03d}.png")
        Image.fromarray(np.array(run.pixels()[index])).resize((320, 320), Image.Resampling.BICUBIC).save(files[-1])
    return files


@pytest.fixture
def desk(chrome: Chrome, served: Server, images: list[Path], tmp_path: Path) -> Iterator[Desk]:
    with Relay(served.urls.grpc) as relay:
        desk = Desk(chrome, relay, tmp_path, images)
        tab = Tab(chrome, "")
        tab.complaints()
        try:
            yield desk
            said = [one for one in tab.complaints() if not any(expected in one for expected in EXPECTED)]
            assert said == []
        finally:
            chrome.get("about:blank")
            desk.stack.close()
