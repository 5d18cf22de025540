"""Resuming from a journal: complete lines count, and results of changed files do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plurum.client.bulk.journal import Entry, Journal, Stamp, stamp_of
from plurum.client.bulk.listing import Listing
from plurum.errors import OutputError
from tests.surroundings import NEEDS_MOUNTS, namespace

ABOUT = {"classes": ("CE", "LAA"), "ensemble": "abc", "format": ".csv"}
ANSWER = Entry("CE", review=True, body='CE, "so to say"\n')


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    """Three images, one of them with a name that is no UTF-8."""
    listing = Listing()
    for name in ("a.png", "b \udce9.png", "c.png"):
        (tmp_path / name).write_bytes(b"image")
        listing.add(str(tmp_path / name))
    return listing


def noted(out: Path, listing: Listing, *places: int, entry: Entry = ANSWER) -> None:
    with Journal(out, listing, ABOUT) as journal:
        for path, place in listing.places.items():
            if place in places:
                journal.add(place, path, stamp_of(path), entry)


def left(out: Path, listing: Listing) -> list[int]:
    with Journal(out, listing, ABOUT) as journal:
        return [place for place, _ in journal.remaining()]


def test_results_are_read_back_in_the_order_of_the_listing(tmp_path: Path, listing: Listing) -> None:
    out = tmp_path / "deep" / "out.csv"
    noted(out, listing, 2)
    assert left(out, listing) == [0, 1]
    noted(out, listing, 1)
    with Journal(out, listing, ABOUT) as journal:
        assert (journal.found.answered, journal.found.changed, journal.found.unlisted) == (2, 0, 0)
        paths = list(listing)
        journal.add(0, paths[0], stamp_of(paths[0]), Entry(None, review=False, body="no image"))
        assert [(place, path) for place, path, _ in journal.entries()] == list(enumerate(paths))
        assert [entry for *_, entry in journal.entries()] == [
            Entry(None, review=False, body="no image"),
            ANSWER,
            ANSWER,
        ]
    # Images without a prediction are classified again.
    assert left(out, listing) == [0]


def test_incomplete_last_line_is_dropped(tmp_path: Path, listing: Listing) -> None:
    out = tmp_path / "out.csv"
    noted(out, listing, 0, 1)
    journal = tmp_path / ".out.csv.partial"
    whole = journal.read_bytes()
    for length in range(len(whole) - 1, len(whole) - 20, -1):
        journal.write_bytes(whole[:length])
        assert left(out, listing) == [1, 2]
    # The next line begins where the torn one did.
    noted(out, listing, 1)
    assert left(out, listing) == [2]
    # A head that is torn is none.
    journal.write_bytes(whole[:10])
    assert left(out, listing) == [0, 1, 2]


def test_changed_file_is_classified_again(tmp_path: Path, listing: Listing) -> None:
    out, (first, second, third) = tmp_path / "out.csv", listing
    noted(out, listing, 0, 1, 2)
    Path(first).write_bytes(b"other image")
    os.utime(second, (1, 1))
    Path(third).unlink()
    with Journal(out, listing, ABOUT) as journal:
        assert [place for place, _ in journal.remaining()] == [0, 1, 2]
        assert (journal.found.answered, journal.found.changed) == (0, 3)
    assert stamp_of(third) == Stamp(0, 0)


def test_unlisted_images_are_skipped_and_new_ones_classified(tmp_path: Path, listing: Listing) -> None:
    out = tmp_path / "out.csv"
    noted(out, listing, 0, 1, 2)
    _, second, _ = listing
    changed = Listing()
    changed.add("new.png")
    changed.add(second)
    with Journal(out, changed, ABOUT) as journal:
        assert journal.found.unlisted == 2
        assert list(journal.remaining()) == [(0, "new.png")]
        assert [path for _, path, _ in journal.entries()] == [second]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (ABOUT | {"ensemble": "def"}, r"of the same ensemble, got those of another\. .* or start over with --fresh"),
        (ABOUT | {"ensemble": "def", "classes": ("a", "b")}, r"of the same classes and ensemble"),
    ],
)
def test_predictions_of_different_ensembles_are_not_mixed(
    tmp_path: Path, listing: Listing, about: dict[str, object], message: str
) -> None:
    out = tmp_path / "out.csv"
    noted(out, listing, 0)
    with pytest.raises(OutputError, match=message):
        Journal(out, listing, about)
    # Nothing is lost by that.
    assert left(out, listing) == [1, 2]
    with Journal(out, listing, about, fresh=True) as journal:
        assert len(list(journal.remaining())) == 3


def test_other_file_of_the_same_name_is_kept(tmp_path: Path, listing: Listing) -> None:
    (tmp_path / ".out.csv.partial").write_text("my notes\n")
    with pytest.raises(OutputError, match="is not a journal of plurum predict"):
        Journal(tmp_path / "out.csv", listing, ABOUT)
    assert (tmp_path / ".out.csv.partial").read_text() == "my notes\n"


def test_two_processes_do_not_write_one_file(tmp_path: Path, listing: Listing) -> None:
    with (
        Journal(tmp_path / "out.csv", listing, ABOUT),
        pytest.raises(OutputError, match="another plurum predict writes"),
    ):
        Journal(tmp_path / "out.csv", listing, ABOUT)
    with Journal(tmp_path / "out.csv", listing, ABOUT) as journal:
        journal.remove()
    assert not (tmp_path / ".out.csv.partial").exists()


def test_folder_that_can_not_be_created_is_refused(tmp_path: Path, listing: Listing) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/out\.csv can't be written"):
        Journal(tmp_path / "file" / "out.csv", listing, ABOUT)


FULL = """
import sys
from pathlib import Path
from plurum.client.bulk.journal import Entry, Journal, Stamp
from plurum.client.bulk.listing import listing_from_names
from plurum.errors import OutputError

place, images = Path(sys.argv[1]), Path(sys.argv[2])
listing = listing_from_names([images], sys.stdin.buffer)
try:
    with Journal(place / "out.csv", listing, {}) as journal:
        for at, path in journal.remaining():
            journal.add(at, path, Stamp(0, 0), Entry("CE", False, "x" * 1000))
            journal.flush()
except OutputError as error:
    print(error)
with Journal(place / "out.csv", listing, {}) as journal:
    print(journal.found.answered + journal.found.changed, len(list(journal.entries())))
"""


@NEEDS_MOUNTS
def test_full_disk_gives_one_line_and_keeps_results(tmp_path: Path) -> None:
    images, place = tmp_path / "images", tmp_path / "place"
    images.mkdir()
    place.mkdir()
    for number in range(40):
        (images / f"{number:02}.png").write_bytes(b"")
    command = namespace({place: "size=24k"}, [sys.executable, "-c", FULL, place, images])
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert ended.returncode == 0, ended.stderr
    reason, left = ended.stdout.splitlines()
    assert reason == f"{place / '.out.csv.partial'} can't be written: No space left on device"
    answered, entries = map(int, left.split())
    assert 10 < answered == entries < 24
