from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from plurum.errors import MetadataError, OutputError
from plurum.run import DataMetadata, Run
from plurum.spec import ImageSpec, Member, write_metadata
from tests.sample_runs.member_samples import member

IMAGE = ImageSpec(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
CLASSES = ("CE", "LAA")
ITEMS = "index,source,label,patient,split\n0,a.png,CE,p1,train\n1,b.png,LAA,,validation\n2,c.png,CE,p2,train\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run with data and one member."""
    run = Run(tmp_path / "run")
    run.data_folder.mkdir(parents=True)
    run.settings_file.write_text(json.dumps({}))
    metadata = DataMetadata(source="scans", fingerprint="ab" * 32, classes=CLASSES, image=IMAGE)
    write_metadata(run.data_folder / "contract.json", metadata)
    (run.data_folder / "items.csv").write_text(ITEMS)
    np.save(run.data_folder / "pixels.npy", np.arange(3 * 32 * 32 * 3, dtype=np.uint8).reshape(3, 32, 32, 3))
    add_member(run, "one")
    return run


def add_member(run: Run, name: str) -> None:
    run.member_folder(name).mkdir(parents=True)
    metadata = Member.model_validate(member(name, classes=CLASSES, image=IMAGE))
    write_metadata(run.member_folder(name) / "member.json", metadata)


def test_a_new_an_empty_and_a_known_folder_can_be_claimed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new", tmp_path / "empty", run.path):
        Run(folder).claim()


def test_a_file_can_not_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is a file; name a folder for the run"):
        Run(tmp_path / "file").claim()


def test_partial_files_of_a_killed_start_count_as_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / ".run.json.x7f").write_text("")
    Run(tmp_path).claim()
    (tmp_path / ".git").mkdir()
    with pytest.raises(OutputError, match="is not a run and not empty"):
        Run(tmp_path).claim()


def test_members_are_sorted_and_hidden_ones_are_none(run: Run) -> None:
    add_member(run, "a-first")
    add_member(run, "half-written")
    run.member_folder("half-written").rename(run.member_folder(".half-written"))
    assert [member.name for member in run.members()] == ["a-first", "one"]
    assert run.checkpoint(run.members()[1]) == run.path / "members" / "one" / "checkpoint.safetensors"


def test_a_folder_that_is_not_a_run_names_the_command_to_train_one(tmp_path: Path) -> None:
    for read in (Run(tmp_path).members, Run(tmp_path).ensemble):
        with pytest.raises(MetadataError, match=r"is not a run: .* plurum train DATA --out"):
            read()


def test_a_run_without_members_says_how_to_finish_it(run: Run) -> None:
    (run.member_folder("one") / "member.json").unlink()
    with pytest.raises(MetadataError, match=r"no finished member\. .* plurum train"):
        run.members()


def test_a_run_that_is_not_fitted_says_how_to_fit_it(run: Run) -> None:
    with pytest.raises(MetadataError, match=r"has no ensemble\.json. Fit the run: plurum fit"):
        run.ensemble()


def test_the_table_has_one_row_per_image(run: Run) -> None:
    table = run.table()
    assert table.sources == ("a.png", "b.png", "c.png")
    assert table.labels.tolist() == [0, 1, 0]
    assert table.labels.dtype == np.int64
    assert table.patients == ("p1", "", "p2")
    assert table.rows("train").tolist() == [0, 2]
    assert table.rows("test").tolist() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("CE,p1", "XX,p1"),
        ("validation", "holdout"),
        ("label", "class"),
        ("p1,train", "p1"),
        ("a.png", "\xff" * 200_000),
    ],
)
def test_a_broken_table_is_named(run: Run, old: str, new: str) -> None:
    path = run.data_folder / "items.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(MetadataError, match=r"items\.csv can't be read"):
        run.table()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            ITEMS.replace("1,b", "9,b"),
            r"items\.csv: expected index 1 in row 1, counted from 0, got '9'\. Sort the rows",
        ),
        ("\n".join(sorted(ITEMS.split("\n")[:4], reverse=True)), r"expected index 0 in row 0, counted from 0, got '2'"),
        (ITEMS + "3,d.png,CE,p2,test\n", r"items\.csv: expected a row for each of the 3 images in pixels\.npy, got 4"),
        (ITEMS[: ITEMS.index("2,c")], r"items\.csv: expected a row for each of the 3 images in pixels\.npy, got 2"),
    ],
)
def test_a_table_that_is_not_of_the_pixels_is_refused(run: Run, items: str, message: str) -> None:
    (run.data_folder / "items.csv").write_text(items)
    with pytest.raises(MetadataError, match=message) as caught:
        run.table()
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(run: Run) -> None:
    (run.data_folder / "items.csv").unlink()
    with pytest.raises(MetadataError, match=r"items\.csv can't be read"):
        run.table()


def test_pixels_are_mapped_and_can_not_be_written_to(run: Run) -> None:
    pixels = run.pixels()
    assert pixels.shape == (3, 32, 32, 3)
    assert isinstance(pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00v\x00", b"PK\x03\x04"])
def test_broken_pixels_are_named(run: Run, content: bytes) -> None:
    (run.data_folder / "pixels.npy").write_bytes(content)
    with pytest.raises(MetadataError, match=r"pixels\.npy can't be read"):
        run.pixels()


def test_pickled_pixels_are_refused(run: Run) -> None:
    np.save(run.data_folder / "pixels.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(MetadataError, match=r"pixels\.npy can't be read"):
        run.pixels()


@pytest.mark.parametrize("content", ["", "{}", '{"version": 2}'])
def test_a_broken_data_metadata_is_named(run: Run, content: str) -> None:
    (run.data_folder / "contract.json").write_text(content)
    with pytest.raises(MetadataError, match=r"contract\.json is not valid data metadata of version 1"):
        run.data()
    (run.data_folder / "contract.json").unlink()
    with pytest.raises(MetadataError, match=r"contract\.json can't be read"):
        run.data()
