from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from plurum.errors import DataError, OutputError, PlurumError, SettingsError
from plurum.score.destination import Destination
from plurum.score.plan import Plan, open_plan
from plurum.score.sources import list_images, parquet_files

NAMES = ["a.png", "b/c.png", "b/d.png"]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three images, two of them in a folder below."""
    for name in NAMES:
        file = tmp_path / "scans" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    return tmp_path / "scans"


def make_plan(source: object, out: Path, part_rows: int = 2) -> Plan:
    return open_plan(Destination(str(out)), str(source), "ensemble", part_rows)


def listed(out: Path) -> dict[str, list[str]]:
    """Return the list of images in a destination."""
    return dict(parquet.read_table(out / "_plan" / "images.parquet").to_pydict())


def write_images(file: Path, rows: int, group: int, column: str = "bytes") -> None:
    table = pa.table({column: [b"image"] * rows, "label": ["LAA"] * rows})
    parquet.write_table(table, file, row_group_size=group)


def test_a_folder_is_listed_once_in_parts(scans: Path, tmp_path: Path) -> None:
    plan = make_plan(scans, tmp_path / "out")
    assert listed(tmp_path / "out")["path"] == [str(scans / name) for name in NAMES]
    assert (plan.parts, plan.images, plan.columns) == ([[0, 0, 2], [0, 2, 3]], 3, {"path": "path"})
    # The list of the first run counts, whatever has come since.
    Image.new("RGB", (8, 8)).save(scans / "e.png")
    assert make_plan(scans, tmp_path / "out") == plan


def test_a_folder_behind_an_address_has_the_same_images(scans: Path, tmp_path: Path) -> None:
    make_plan(f"file://{scans}", tmp_path / "out")
    assert listed(tmp_path / "out")["path"] == [f"file://{scans / name}" for name in NAMES]


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_manifest_states_patients_and_labels(prefix: str, scans: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "scans.csv"
    manifest.write_text("path,patient,label\nscans/a.png,1,CE\nscans/none.png,2,\n")
    plan = make_plan(f"{prefix}{manifest}", tmp_path / "out")
    assert listed(tmp_path / "out") == {
        "path": [f"{prefix}{tmp_path}/scans/{name}" for name in ("a.png", "none.png")],
        "patient": ["1", "2"],
        "label": ["CE", ""],
    }
    assert set(plan.columns) == {"path", "patient", "label"}
    assert scans.is_dir()


def test_parquet_files_of_paths_are_listed(tmp_path: Path) -> None:
    table = pa.table({"Image_Path": ["a.png", "/b.png", "s3://c/d.png"], "subject": ["1", None, "2"]})
    parquet.write_table(table, tmp_path / "scans.parquet")
    make_plan(tmp_path / "scans.parquet", tmp_path / "out")
    assert listed(tmp_path / "out")["path"] == [f"{tmp_path}/a.png", "/b.png", "s3://c/d.png"]
    assert listed(tmp_path / "out")["patient"] == ["1", "", "2"]


@pytest.mark.parametrize("column", ["bytes", "content"])
def test_parquet_files_of_images_stay_where_they_are(column: str, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    write_images(tmp_path / "scans" / "1.parquet", 7, 2, column)
    write_images(tmp_path / "scans" / "2.parquet", 3, 9, column)
    plan = make_plan(tmp_path / "scans", tmp_path / "out", part_rows=4)
    assert plan.files == [f"{tmp_path}/scans/{number}.parquet" for number in (1, 2)]
    assert plan.columns == {"bytes": column, "label": "label"}
    assert plan.parts == [[0, 0, 4], [0, 4, 7], [1, 0, 3]]
    assert not (tmp_path / "out" / "_plan" / "images.parquet").exists()


@pytest.mark.parametrize(
    ("rows", "group", "part"), [(100, 100, 10), (100, 7, 10), (5, 100, 10), (64, 64, 1), (9, 3, 1)]
)
def test_parts_of_images_cover_each_row_once(rows: int, group: int, part: int, tmp_path: Path) -> None:
    write_images(tmp_path / "scans.parquet", rows, group)
    plan = make_plan(tmp_path / "scans.parquet", tmp_path / "out", part_rows=part)
    assert [row for _, start, stop in plan.parts for row in range(start, stop)] == list(range(rows))
    # A large row group is not read from its start more often.
    assert len(plan.parts) <= max(8 * -(-rows // group), -(-rows // part))


@pytest.mark.parametrize(
    ("source", "error", "reason"),
    [
        ("none", DataError, "none: expected an image or a folder of images, got neither"),
        ("empty", DataError, "expected images"),
        ("file://{}/empty", DataError, "expected images"),
        ("other.parquet", DataError, "expected a column path or bytes, got name. Rename"),
        ("broken.parquet", DataError, "broken.parquet is not a Parquet file"),
        ("nowhere://scans", SettingsError, "expected an address that fsspec can open: Protocol not known: nowhere"),
    ],
)
def test_bad_sources_are_named(source: str, error: type[PlurumError], reason: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    parquet.write_table(pa.table({"name": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    stated = source.format(tmp_path) if "://" in source else str(tmp_path / source)
    with pytest.raises(error, match=reason):
        make_plan(stated, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.json"))


def test_results_of_another_job_are_refused(scans: Path, tmp_path: Path) -> None:
    make_plan(scans, tmp_path / "out")
    out = Destination(str(tmp_path / "out"))
    with pytest.raises(OutputError, match="--out: expected results of ensemble other, got those of ensemble"):
        open_plan(out, str(scans), "other", 2)
    with pytest.raises(OutputError, match="--out: expected results of source"):
        open_plan(out, str(scans / "b"), "ensemble", 2)
    out.clear()
    assert open_plan(out, str(scans / "b"), "other", 2).images == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "part-000000.parquet").write_bytes(b"")
    with pytest.raises(OutputError, match="expected an empty folder, got one with other Parquet files"):
        make_plan(scans, tmp_path / "full")


def test_only_one_job_writes_to_a_folder_and_leftovers_go(tmp_path: Path) -> None:
    out = Destination(str(tmp_path / "out"))
    with out.locked():
        (tmp_path / "out" / ".part-000001.parquet.1f2e").write_bytes(b"half")
        (tmp_path / "out" / ".other").write_bytes(b"")
        with pytest.raises(OutputError, match="another job writes to it"), out.locked():
            pass
    with out.locked():
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".other", "_plan"]


def test_an_empty_list_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    assert parquet_files(str(tmp_path / "scans")) is None
    with pytest.raises(DataError):
        list_images(f"file://{tmp_path}/scans", None, Destination(str(tmp_path / "out")), 2)
    assert not list((tmp_path / "out").rglob("*.parquet"))
