"""The page for all eyes and hands: on a phone, in the dark, by keyboard, read aloud."""

from __future__ import annotations

import shutil
import time

import pytest
from selenium.webdriver.common.keys import Keys

from plurum.run import Run
from tests.client.ui.browser import NEEDS_BROWSER, PHONE
from tests.client.ui.desk import Desk

pytestmark = [pytest.mark.triton, pytest.mark.slow, NEEDS_BROWSER]

# Ratio of luminances (WCAG 2.2, 1.4.3) of every text on the page before what is behind it, the least first.
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
};
const light = (colour) => {
  const linear = (c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const part = [...colour].slice(0, 3).map((one) => linear(one / 255));
  return .2126 * part[0] + .7152 * part[1] + .0722 * part[2];
};
const behind = (one) => {
  for (; one; one = one.parentElement) {
    const colour = rgba(getComputedStyle(one).backgroundColor);
    if (colour[3] > 200) return colour;
  }
  return [255, 255, 255];
};
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (walk.nextNode()) {
  const one = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !one.checkVisibility()) continue;
  if (one.closest(".unseen, [aria-disabled=true], noscript")) continue;
  const [a, b] = [light(rgba(getComputedStyle(one).color)), light(behind(one))];
  found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), walk.currentNode.data.trim()]);
}
return found.sort((one, other) => one[0] - other[0]);
"""


@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_on_a_phone(desk: Desk, run: Run, dark: bool) -> None:
    name = desk.folder / f"{'a-name-without-a-place-to-break-it' * 4}.png"
    shutil.copy(desk.images[0], name)
    tab = desk.start("--run", run.path)
    tab.size(*PHONE, dark=dark)
    tab.upload(*desk.images[1:], name)
    tab.answers(8)
    for details in tab.all("details")[:3]:
        tab.chrome.execute_script("arguments[0].open = true", details)
    tab.until(lambda: tab.all(".maps img"))
    assert tab.overflow() == 0
    if not dark:
        desk.picture(tab, "phone")
    for path in [f"/review/{item.sha256}" for item in desk.store.items()]:
        tab.open(path)
        assert tab.overflow() == 0, path
    if dark:
        tab.open(f"/review/{desk.store.items()[1].sha256}")
        desk.picture(tab, "phone-dark")
    # A thumb needs room: 24 pixels at the least (WCAG 2.2, 2.5.8).
    for one in tab.all(".choice, button, .button"):
        assert not one.is_displayed() or one.rect["height"] >= 24
    while tab.all("#decision"):
        tab.press_and_leave(Keys.ENTER)
        assert tab.overflow() == 0


@pytest.mark.parametrize("dark", [False, True])
def test_texts_have_contrast_and_controls_have_names(desk: Desk, dark: bool) -> None:
    tab = desk.classified()
    tab.size(1120, 900, dark=dark)
    for path in ("", "/review", f"/review/{desk.store.items()[-1].sha256}", "/absent"):
        if path:
            tab.open(path)
        least, text = tab.chrome.execute_script(CONTRAST)[0]
        assert least >= 4.5, f"{text!r} on {path} has a contrast of {least:.2f}"
        for control in tab.all("a, button, input:not([type=hidden]), summary, img[alt]:not([alt='']), progress"):
            if control.is_displayed():
                assert control.accessible_name, control.get_attribute("outerHTML")


def test_focus_is_visible(desk: Desk) -> None:
    tab = desk.reviewing()
    seen = []
    for _ in range(12):
        tab.press(Keys.TAB)
        focused = tab.chrome.switch_to.active_element
        ring = focused if focused.tag_name != "input" else focused.find_element("xpath", "following-sibling::span")
        seen.append(float(ring.value_of_css_property("outline-width").removesuffix("px")))
        time.sleep(0.02)
    assert min(seen) >= 2
