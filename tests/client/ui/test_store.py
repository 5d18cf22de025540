"""Store of reviews: durable, safe for concurrent use, and complete deletion."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plurum.client.ui import ReviewStore, write_corrections
from plurum.client.ui.store import DecisionConflictError, ReviewItem
from plurum.errors import OutputError
from tests.client.samples import png, prediction
from tests.surroundings import NEEDS_MOUNTS, namespace

FORMATS = Path(__file__).parents[2] / "formats"
AUDITED = replace(prediction(review=False), audit=True)
WRITER = """
import sys
from pathlib import Path
from plurum.client.ui import ReviewStore
from tests.client.samples import png, prediction
store = ReviewStore(Path(sys.argv[1]))
for number in range(256):
    sha256 = store.add(png(number), f"{number}.png", prediction())
    store.decide(sha256, "LAA", 0)
    print(sha256, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> ReviewStore:
    return ReviewStore(tmp_path / "reviews", "Ada")


def test_prediction_and_image_are_stored_unchanged(store: ReviewStore) -> None:
    sha256 = store.add(png(1), "scan <1>.png", prediction())
    item = store.item(sha256)
    assert item is not None
    assert (item.name, item.prediction, item.by_person, item.label) == ("scan <1>.png", prediction(), False, None)
    assert item.file.read_bytes() == png(1)
    assert item.file.name == f"{sha256}.png"
    assert store.items() == [item]
    assert store.item("0" * 64) is None


def test_prediction_of_another_version_opens(store: ReviewStore) -> None:
    answer = prediction().to_dict()
    # Written before the newest field existed, and by a version with a field that this one does not know.
    del answer["release"]
    sha256 = store.add(png(1), "scan.png", prediction("LAA"))
    with closing(sqlite3.connect(store.folder / "reviews.sqlite")) as database, database:
        database.execute("UPDATE answers SET answer = ?", (json.dumps(answer | {"invented_later": 1}),))
    item = store.item(sha256)
    assert item is not None
    assert item.prediction == prediction()


def test_store_of_the_last_version_opens(tmp_path: Path) -> None:
    """Open a store that Plurum 0.1.0 wrote: two flagged images, one of them decided, and one that a person sent."""
    (tmp_path / "images").mkdir()
    with closing(sqlite3.connect(tmp_path / "reviews.sqlite")) as database:
        database.executescript((FORMATS / "reviews_0.1.0.sql").read_text())
    for _ in range(2):
        items = ReviewStore(tmp_path).items()
        assert [(one.name, one.label) for one in items] == [
            ("flagged.png", "LAA"),
            ("waiting.png", None),
            ("sent.png", "CE"),
        ]
        assert [one.by_person for one in items] == [False, False, True]
        # All that needed review was chosen.
        assert [one.sampling_probability for one in items] == [1, 1, None]
    store = ReviewStore(tmp_path)
    assert [one.label for one in store.history(items[2].sha256)] == ["LAA", "CE"]
    store.decide(store.add(png(9), "new.png", AUDITED, audit_rate=0.02), "CE", 0)
    assert store.items()[-1].sampling_probability == 0.02


def test_an_image_keeps_the_probability_with_which_it_was_chosen(store: ReviewStore) -> None:
    def item_after(*arguments: Any, **named: Any) -> ReviewItem:
        item = store.item(store.add(png(1), "scan.png", *arguments, **named))
        assert item is not None
        return item

    sure = prediction(review=False)
    sent = item_after(sure, by_person=True, audit_rate=0.02)
    assert (sent.sampling_probability, sent.is_audit) == (None, False)
    assert item_after(AUDITED, audit_rate=0.02).sampling_probability == 0.02
    # Nothing lowers it: the image stays in review.
    assert item_after(sure, audit_rate=0.02).sampling_probability == 0.02
    assert item_after(AUDITED, audit_rate=0.01).sampling_probability == 0.02
    assert item_after(prediction(), audit_rate=0.02).sampling_probability == 1
    assert item_after(AUDITED, audit_rate=0.02).sampling_probability == 1
    other = store.item(store.add(png(2), "scan.png", AUDITED, audit_rate=0.02))
    assert other is not None
    assert (other.is_audit, other.by_person) == (True, False)


def test_latest_decision_counts_and_none_is_lost(store: ReviewStore) -> None:
    sha256 = store.add(png(1), "scan.png", prediction())
    first = store.decide(sha256, "CE", 0)
    second = store.decide(sha256, "LAA", first.number)
    taken_back = store.decide(sha256, None, second.number)
    assert [one.label for one in store.history(sha256)] == ["CE", "LAA", None]
    assert store.history(sha256)[-1] == taken_back
    assert {one.reviewer for one in store.history(sha256)} == {"Ada"}
    item = store.item(sha256)
    assert item is not None
    assert (item.label, item.seen) == (None, taken_back.number)


def test_second_decision_is_a_conflict(store: ReviewStore) -> None:
    sha256 = store.add(png(1), "scan.png", prediction())
    store.decide(sha256, "LAA", 0)
    with pytest.raises(DecisionConflictError) as caught:
        store.decide(sha256, "CE", 0)
    assert caught.value.item.label == "LAA"
    assert [one.label for one in store.history(sha256)] == ["LAA"]
    store.decide(sha256, "CE", caught.value.item.seen)
    assert [one.label for one in store.history(sha256)] == ["LAA", "CE"]


def test_one_of_many_concurrent_decisions_succeeds(store: ReviewStore) -> None:
    sha256 = store.add(png(1), "scan.png", prediction())
    written, refused = [], []

    def decide(label: str) -> None:
        try:
            written.append(ReviewStore(store.folder).decide(sha256, label, 0))
        except DecisionConflictError:
            refused.append(label)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decide, ["LAA", "CE"] * 4))
    assert (len(written), len(refused)) == (1, 7)
    assert store.history(sha256) == written


def test_a_store_opens_while_others_close_it(store: ReviewStore) -> None:
    """SQLite removes its own files with the last connection, which may be between another's listing and its look."""

    def open_and_close(_: int) -> None:
        for _ in range(300):
            ReviewStore(store.folder)

    with ThreadPoolExecutor(3) as pool:
        # A failure is raised here.
        list(pool.map(open_and_close, range(3)))


def test_repeated_image_keeps_its_decision_and_gets_the_new_prediction(store: ReviewStore) -> None:
    sha256 = store.add(png(1), "scan.png", prediction())
    store.decide(sha256, "LAA", 0)
    assert store.add(png(1), "renamed.png", prediction("LAA", 0.9, review=False)) == sha256
    (item,) = store.items()
    assert (item.name, item.label, item.prediction.label) == ("renamed.png", "LAA", "LAA")


def test_progress_counts_current_decisions(store: ReviewStore) -> None:
    hashes = [store.add(png(number), f"{number}.png", prediction()) for number in range(3)]
    decision = store.decide(hashes[0], "CE", 0)
    store.decide(hashes[1], "CE", 0)
    store.decide(hashes[0], None, decision.number)
    assert (store.progress().decided, store.progress().all, store.progress().waiting) == (1, 3, 2)


def test_deleted_data_are_nowhere_on_disk(store: ReviewStore) -> None:
    sha256 = store.add(png(1), "very-secret-name.png", prediction())
    kept = store.add(png(2), "kept.png", prediction())
    store.decide(sha256, "LAA", 0)
    store.delete(sha256)
    assert [item.sha256 for item in store.items()] == [kept]
    assert store.history(sha256) == []
    assert [file.stem for file in (store.folder / "images").iterdir()] == [kept]
    for file in store.folder.glob("reviews.sqlite*"):
        assert b"very-secret-name" not in file.read_bytes()


def test_confirmed_decisions_survive_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline().strip() for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.read().split()
    assert process.returncode == -signal.SIGKILL
    store = ReviewStore(folder)
    decided = {item.sha256 for item in store.items() if item.label == "LAA"}
    assert set(told) <= decided
    assert all(item.file.is_file() for item in store.items())
    store.decide(store.add(png(255), "after.png", prediction()), "CE", 0)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


def test_store_is_private_whatever_the_umask(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        store = ReviewStore(tmp_path / "reviews", "Ada")
        sha256 = store.add(png(1), "scan.png", prediction())
        store.decide(sha256, "CE", 0)
        with store._transaction():
            # SQLite's own files are there while it is open.
            found = modes(store.folder)
        write_corrections(store, tmp_path / "corrections.csv")
    finally:
        os.umask(former)
    assert {"reviews.sqlite", "reviews.sqlite-wal", "reviews.sqlite-shm", f"images/{sha256}.png"} < found.keys()
    assert {mode for name, mode in found.items() if name in {".", "images"}} == {0o700}
    assert {mode for name, mode in found.items() if name not in {".", "images"}} == {0o600}
    assert (tmp_path / "corrections.csv").stat().st_mode & 0o777 == 0o600


def test_store_of_an_earlier_version_becomes_private(store: ReviewStore) -> None:
    sha256 = store.add(png(1), "scan.png", prediction())
    for path in (store.folder, *store.folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    again = ReviewStore(store.folder)
    item = again.item(sha256)
    assert item is not None
    assert item.file.read_bytes() == png(1)
    assert set(modes(store.folder).values()) == {0o700, 0o600}


FULL = """
import os, sys
from pathlib import Path
from plurum.client.ui import ReviewStore
from plurum.errors import OutputError
from tests.client.samples import png, prediction

place = Path(sys.argv[1])
store = ReviewStore(place / "reviews")
first = store.add(png(1), "first.png", prediction())
store.decide(first, "CE", 0)
filler = os.open(place / "filler", os.O_CREAT | os.O_WRONLY)
try:
    while True:
        os.write(filler, bytes(512))
except OSError:
    pass
for act in (lambda: store.add(png(2), "second.png", prediction()), lambda: store.decide(first, "LAA", 1)):
    for _ in range(200):
        try:
            act()
        except OutputError as error:
            print(str(error).rpartition(": ")[2])
            break
        # The journal had room for a little more.
        except Exception as error:
            print(repr(error))
            break
os.close(filler)
os.unlink(place / "filler")
print([item.name for item in store.items()], len(list((store.folder / "images").iterdir())))
second = store.add(png(3), "third.png", prediction())
print(store.decide(second, "CE", 0).label)
"""


@NEEDS_MOUNTS
def test_full_disk_loses_nothing_and_gives_one_line(tmp_path: Path) -> None:
    command = namespace({tmp_path: "size=256k"}, [sys.executable, "-c", FULL, tmp_path])
    # -c looks for modules where it is started.
    ended = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    added, decided, left, label = ended.stdout.splitlines()
    assert added == "No space left on device"
    assert decided in {"database or disk is full", "disk I/O error"} or decided.startswith("DecisionConflictError")
    assert (left, label) == ("['first.png'] 1", "CE")


def test_unusable_folders_give_one_line(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="expected a review store or an empty folder"):
        ReviewStore(tmp_path / "other")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be used: File exists"):
        ReviewStore(tmp_path / "file")
    ReviewStore(tmp_path / "torn")
    (tmp_path / "torn" / "reviews.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(OutputError, match="file is not a database"):
        ReviewStore(tmp_path / "torn")
    with pytest.raises(OutputError, match="printable characters"):
        ReviewStore(tmp_path / "a\nb")
