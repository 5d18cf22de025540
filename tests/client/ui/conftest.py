"""A Chromium for all browser tests, and for each a page of its own before the real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import Chrome

from plurum.run import Run
from plurum.serving import Server
from tests.client.relay import Relay
from tests.client.ui.browser import Tab, browser
from tests.client.ui.desk import Desk

# What Chromium says of answers that mean something.
EXPECTED = ("status of 404", "status of 409", "status of 422", "status of 503", "net::ERR_CONNECTION_REFUSED")


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
