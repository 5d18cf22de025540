"""The page as a person has it: a real Chromium, a real page, a real Triton behind it."""

from __future__ import annotations

import base64
import csv
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

from plurum.client import EnsembleClient, Prediction
from plurum.client.ui import ReviewStore
from plurum.client.ui.pages import percentage
from plurum.run import Run
from plurum.serving import Server
from plurum.training.data.manifests import files_from_manifest
from tests.client.samples import png, prediction
from tests.client.ui.browser import NEEDS_BROWSER, Tab, page_at
from tests.client.ui.desk import Desk

pytestmark = [pytest.mark.triton, pytest.mark.slow, NEEDS_BROWSER]

# A file that comes by dropping or pasting rather than from the dialog.
GIVEN = """
const [kind, name, base64] = arguments;
const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], name, { type: "image/png" }));
const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
  : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
document.body.dispatchEvent(event);
"""


@pytest.fixture
def truth(served: Server, images: list[Path]) -> dict[str, Prediction]:
    """Predictions of the server for the images, by file name."""
    with EnsembleClient(served.urls.grpc) as client:
        return dict(zip((image.name for image in images), client.predict(images, batch_size=1), strict=True))


def test_page_shows_the_predictions_of_the_server(desk: Desk, truth: dict[str, Prediction]) -> None:
    tab = desk.start()
    assert tab.until(lambda: "classes" in tab.text("#served-line"))
    assert tab.text("#served-line") == "10 classes, 2 members"
    assert tab.one("#decisions").get_property("hidden")
    tab.upload(*desk.images)
    for card in tab.answers(8):
        text = card.text
        expected = truth[card.find_element("css selector", ".file").text]
        heading = card.find_element("css selector", "h2").text
        assert heading == f"{expected.label} {percentage(expected.confidence)}"
        assert ("Needs review" in text) == expected.review
        chips = [chip.text for chip in card.find_elements("css selector", ".chip")]
        assert tuple(chips) == expected.prediction_set
        assert f"{expected.entropy:.2f} of at most 2.30 nats" in text
        assert f"{expected.disagreement:.2f} nats" in text
        votes = [row.text.split() for row in card.find_elements("css selector", ".members tr")]
        assert [vote[0] for vote in votes] == list(expected.member_probabilities)
        for vote, probabilities in zip(votes, expected.member_probabilities.values(), strict=True):
            assert probabilities is not None
            assert vote[1] == max(probabilities, key=probabilities.__getitem__)
            assert ("differs" in vote) == (vote[1] != expected.label)
        picture = card.find_element("css selector", ".picture")
        assert tab.until(partial(picture.get_property, "naturalWidth")) == 320
    waiting = sum(one.review for one in truth.values())
    assert 0 < waiting < 8
    assert tab.text("#waiting").split()[0] == str(waiting)
    # Only what goes to review is written to the disk.
    assert {item.name for item in desk.store.items()} == {name for name, one in truth.items() if one.review}
    tab.until(lambda: tab.one("#said").get_property("textContent"), "what a screen reader is told")


def test_overtaken_count_is_ignored(desk: Desk) -> None:
    tab = desk.start()
    for waiting, moment in (("4", 1), ("6", 3), ("5", 2)):
        tab.chrome.execute_script("count(arguments[0], arguments[1])", waiting, moment)
    assert tab.text("#waiting").split()[0] == "6"


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_images_can_be_dropped_or_pasted(desk: Desk, truth: dict[str, Prediction], kind: str) -> None:
    tab = desk.start()
    image = desk.images[0]
    tab.chrome.execute_script(GIVEN, kind, image.name, base64.b64encode(image.read_bytes()).decode())
    (card,) = tab.answers(1)
    assert card.get_attribute("data-label") == truth[image.name].label


def test_invalid_file_does_not_affect_others(desk: Desk) -> None:
    (desk.folder / "notes <b>.png").write_text("no image at all")
    tab = desk.start()
    tab.upload(desk.images[0], desk.folder / "notes <b>.png", desk.images[1])
    tab.answers(2)
    failed = tab.until(lambda: tab.one(".answer.broken"))
    assert "notes <b>.png" in failed.text
    assert "No prediction: 15 bytes that are not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM image" in failed.text
    assert not tab.one("#away").is_displayed()
    tab.size(1120, 1240)
    desk.picture(tab, "classify")


def test_people_can_send_unflagged_images_to_review(desk: Desk, truth: dict[str, Prediction]) -> None:
    tab = desk.start()
    sure = next(image for image in desk.images if not truth[image.name].review)
    tab.upload(sure)
    tab.answers(1)
    assert desk.store.items() == []
    tab.one(".answer form button").click()
    tab.until(lambda: "Sent to review" in tab.text(".answer .why"))
    (item,) = desk.store.items()
    assert (item.name, item.by_person) == (sure.name, True)
    assert tab.text("#waiting").split()[0] == "1"
    tab.one(".answer .why a").click()
    assert "Sent to review by a person" in tab.text(".verdict")


def test_reviewing_works_with_the_keyboard_alone(desk: Desk, chrome: Chrome) -> None:
    tab = desk.reviewing()
    items = desk.store.items()
    classes = list(items[0].prediction.probabilities)
    wrong = next(name for name in classes if name != items[0].prediction.label)
    assert f"0 of {len(items)} decided" in tab.body()
    # Another class than the answer: a number chooses, Enter saves.
    tab.press(str((classes.index(wrong) + 1) % 10))
    assert tab.text("#save-line") == f"Correct to “{wrong}”"
    tab.press_and_leave(Keys.ENTER)
    assert f"{items[0].name}: corrected to {wrong}" in tab.body()
    assert f"1 of {len(items)} decided" in tab.body()
    # The answer itself: Enter alone.
    assert tab.text("#save-line") == f"Confirm “{items[1].prediction.label}”"
    desk.picture(tab, "review")
    tab.press_and_leave(Keys.ENTER)
    assert f"{items[1].name}: confirmed as {items[1].prediction.label}" in tab.body()
    # A withdrawn decision must be made again.
    tab.press_and_leave("u")
    assert items[1].name in tab.text("figcaption")
    assert f"1 of {len(items)} decided" in tab.body()
    for key, place in (("k", 0), ("j", 1), (Keys.ARROW_LEFT, 0), (Keys.ARROW_RIGHT, 1)):
        tab.press_and_leave(key)
        assert items[place].name in tab.text("figcaption")
    while tab.all("#decision"):
        tab.press_and_leave(Keys.ENTER)
    assert f"All {len(items)} decided" in tab.text("h1")
    assert [item.label for item in desk.store.items()] == [wrong, *(item.prediction.label for item in items[1:])]
    rows = exported(tab, chrome)
    assert [row["label"] for row in rows] == [item.label for item in desk.store.items()]
    assert [row["name"] for row in rows] == [item.name for item in items]


def exported(tab: Tab, chrome: Chrome) -> list[dict[str, str]]:
    """Press E, and read the file as training and as a spreadsheet do."""
    folder = Path(chrome.capabilities["chrome"]["userDataDir"]).parent
    file = folder / "corrections.csv"
    file.unlink(missing_ok=True)
    tab.press("e")
    tab.until(file.is_file, "the export")
    read = files_from_manifest(file)
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert [str(path) for path in read.paths] == [row["path"] for row in rows]
    assert [read.classes[label] for label in read.labels] == [row["label"] for row in rows]
    return rows


def test_class_is_found_by_name_among_many(chrome: Chrome, tmp_path: Path) -> None:
    classes = [f"class {letter}" for letter in "abcdefghijkl"]
    many = replace(prediction(), label="class a", probabilities=dict.fromkeys(classes, 1 / 12))
    store = ReviewStore(tmp_path / "reviews")
    sha256 = store.add(png(1), "scan.png", many)
    with page_at("--url", "127.0.0.1:1", "--store", store.folder) as url:
        tab = Tab(chrome, url)
        tab.open(f"/review/{sha256}")
        tab.press("/", "s", "s", " ", "L")
        shown = [one for one in tab.all(".classes label") if one.is_displayed()]
        assert [one.text.split("\n")[0] for one in shown] == ["class l"]
        tab.press(Keys.ENTER)
        assert tab.text("#save-line") == "Correct to “class l”"
        tab.press_and_leave(Keys.ENTER)
    item = store.item(sha256)
    assert item is not None
    assert item.label == "class l"


def test_reviewing_works_with_the_mouse(desk: Desk) -> None:
    tab = desk.reviewing()
    item = desk.store.items()[0]
    other = next(name for name in item.prediction.probabilities if name != item.prediction.label)
    tab.one(f"input[value={other}]").find_element("xpath", "..").click()
    tab.one("#save").click()
    tab.until(lambda: f"corrected to {other}" in tab.body())
    tab.one(".flash button").click()
    tab.until(lambda: "0 of" in tab.body())
    assert [one.label for one in desk.store.history(item.sha256)] == [other, None]


def test_second_tab_overwrites_no_decision(desk: Desk, chrome: Chrome) -> None:
    tab = desk.reviewing()
    item = desk.store.items()[0]
    first = chrome.current_window_handle
    chrome.switch_to.new_window("tab")
    try:
        tab.open(f"/review/{item.sha256}")
        tab.press_and_leave(Keys.ENTER)
        chrome.close()
    finally:
        chrome.switch_to.window(first)
    tab.press("1" if item.prediction.label != "zero" else "2")
    tab.press_and_leave(Keys.ENTER)
    assert f"Your decision was not saved: Ada has chosen {item.prediction.label} in the meantime" in tab.body()
    assert [one.label for one in desk.store.history(item.sha256)] == [item.prediction.label]


def test_page_waits_for_an_unavailable_server(desk: Desk) -> None:
    desk.relay.cut()
    tab = desk.start()
    tab.until(lambda: "plurum serve REPO" in tab.text("#away"))
    tab.upload(desk.images[0])
    tab.until(lambda: "Classifying" in tab.text(".answer") or "Waiting" in tab.text(".answer"))
    desk.relay.mend()
    tab.answers(1)
    tab.until(lambda: not tab.one("#away").is_displayed())
    assert "10 classes" in tab.text("#served-line")


def test_restarted_server_gets_the_waiting_images(desk: Desk) -> None:
    tab = desk.start("--timeout-s", "1")
    tab.upload(desk.images[0])
    tab.answers(1)
    desk.relay.cut()
    tab.upload(*desk.images[1:4])
    tab.until(lambda: "No server is available" in tab.text("#away"))
    tab.until(lambda: len(tab.all(".state.waits")) >= 1)
    desk.relay.mend()
    tab.answers(4)
    tab.until(lambda: not tab.one("#away").is_displayed())


def test_page_reports_that_its_process_has_exited(desk: Desk) -> None:
    tab = desk.start()
    tab.until(lambda: "classes" in tab.text("#served-line"))
    desk.stack.close()
    tab.upload(desk.images[0])
    tab.until(lambda: "The process of this page has exited. Start it again with: plurum ui" in tab.text("#away"))


def test_page_shows_gradcam_maps(desk: Desk, run: Run) -> None:
    tab = desk.start("--run", run.path)
    tab.upload(desk.images[0])
    (card,) = tab.answers(1)
    card.find_element("css selector", ".evidence summary").click()
    maps = tab.until(lambda: tab.all(".maps img"))
    names = [member.name for member in run.ensemble().members]
    assert [one.text.split("\n")[0] for one in tab.all(".maps figcaption")] == ["the ensemble", *names]
    for one in maps:
        assert tab.until(partial(one.get_property, "naturalWidth")) == 384
    tab.chrome.execute_script("document.querySelector('.answers').scrollIntoView()")
    desk.picture(tab, "evidence")


def test_run_that_is_not_served_is_refused(desk: Desk, run: Run) -> None:
    other = desk.folder / "other"
    shutil.copytree(run.path, other)
    metadata = json.loads((other / "ensemble.json").read_text())
    metadata["members"][0]["sha256"] = "0" * 64
    (other / "ensemble.json").write_text(json.dumps(metadata))
    tab = desk.start("--run", other)
    tab.upload(desk.images[0])
    tab.answers(1)
    tab.one(".evidence summary").click()
    assert tab.until(lambda: "its members' weights differ" in tab.text(".maps"))
