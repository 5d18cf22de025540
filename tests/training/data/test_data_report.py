"""Data report, on data with known faults."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from plurum.errors import DataError, MetadataError
from plurum.run import Run
from plurum.training import LabelledImages, TrainSettings, load_data
from plurum.training.data.report import DataReport, data_report, read_data_report, report_lines, usable_rows
from plurum.training.data.report_plot import plot_from_data_report
from plurum.training.data.store import store_data
from tests.training.data_files import digit_arrays, save_npz, write_classes, write_image

SETTINGS = TrainSettings(archs=("a",), image_size=16)


def report_of(data: LabelledImages) -> DataReport:
    return data_report(data, data.decode())


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Archive whose first training image is also the second of validation, and the third of test with another label."""
    arrays = {name: array.copy() for name, array in digit_arrays().items()}
    leak = arrays["train_images"][0]
    arrays["val_images"][1], arrays["val_labels"][1] = leak, arrays["train_labels"][0]
    arrays["test_images"][2], arrays["test_labels"][2] = leak, (arrays["train_labels"][0] + 1) % 4
    arrays["test_images"][5] = arrays["test_images"][4]
    arrays["test_labels"][5] = arrays["test_labels"][4]
    path = tmp_path / "leaky.npz"
    save_npz(path, arrays)
    return path


def test_clean_data_causes_no_warning(archive: Path) -> None:
    data = load_data(str(archive))
    report = report_of(data)
    assert {split: count.images for split, count in report.splits.items()} == {
        "train": 160,
        "validation": 80,
        "test": 80,
    }
    for label, name in enumerate(data.classes):
        for split, count in report.counts[name].items():
            assert count.images == (data.table.labels[data.table.rows(split)] == label).sum()
    assert (report.width.lowest, report.width.median, report.width.highest) == (8, 8, 8)
    assert report_lines(report) == [
        "320 images of 4 classes: train 160, validation 80, test 80",
        "width 8, height 8 pixels",
        "no image is in two splits",
    ]


def test_a_planted_leak_is_named_with_both_splits(leaky: Path) -> None:
    report = report_of(load_data(str(leaky)))
    (group,) = report.across_splits
    assert [(item.source, item.split) for item in group] == [
        (f"{leaky}/train/0", "train"),
        (f"{leaky}/val/1", "validation"),
        (f"{leaky}/test/2", "test"),
    ]
    assert report.other_label == (group,)
    assert report.duplicates == {"train": 0, "validation": 0, "test": 1}
    *_, repeated, across, labels = report_lines(report)
    assert repeated == "repeated within test 1"
    assert across.startswith("1 image in more than one split, which inflates every score: ")
    assert f"{leaky}/train/0 (train) = {leaky}/val/1 (validation) = {leaky}/test/2 (test)" in across
    assert labels.startswith("1 image with more than one label: ")


def test_the_same_pixels_in_other_files_are_the_same_image(tmp_path: Path) -> None:
    write_classes(tmp_path, {"CE": 5, "LAA": 5})
    grey = Image.fromarray(np.random.default_rng(9).integers(0, 256, (10, 12), dtype=np.uint8))
    notes = PngImagePlugin.PngInfo()
    notes.add_text("by", "another scanner")
    grey.save(tmp_path / "CE" / "s1.png")
    grey.save(tmp_path / "CE" / "s2.png", pnginfo=notes, compress_level=0)
    grey.convert("RGB").save(tmp_path / "CE" / "s3.tif")
    deep = np.asarray(grey).astype(np.uint16) << 8
    Image.fromarray(deep).save(tmp_path / "CE" / "s4.png")
    # Rotated, with an orientation tag.
    turned = Image.Exif()
    turned[0x0112] = 6
    grey.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "CE" / "s5.png", exif=turned)
    # Different: other pixels, or the same bytes in another shape.
    grey.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "CE" / "t1.png")
    Image.fromarray(np.asarray(grey).reshape(12, 10)).save(tmp_path / "CE" / "t2.png")
    decoded = load_data(str(tmp_path)).decode()
    hashes = [one.sha256 for one in decoded[5:12]]
    assert len(set(hashes[:5])) == 1
    assert len(set(hashes)) == 3


def test_sizes_are_those_of_the_files_upright(tmp_path: Path) -> None:
    write_classes(tmp_path, {"CE": 3, "LAA": 3})
    write_image(tmp_path / "CE" / "wide.png", 50, (40, 10))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (90, 30)).save(tmp_path / "LAA" / "turned.jpg", exif=turned)
    report = report_of(load_data(str(tmp_path)))
    assert (report.width.lowest, report.width.median, report.width.highest) == (12, 12, 40)
    assert (report.height.lowest, report.height.median, report.height.highest) == (10, 10, 90)
    assert "width 12 to 40 (median 12), height 10 to 90 (median 10) pixels" in report_lines(report)


def test_patients_are_counted_and_divided_ones_named(tmp_path: Path) -> None:
    for label, name in enumerate(("CE", "LAA")):
        for patient in range(5):
            for number in range(2):
                write_image(
                    tmp_path / name / f"p{label}{patient}" / f"{number}.png", 100 * label + 10 * patient + number
                )
    data = load_data(str(tmp_path))
    report = report_of(data)
    assert {split: count.patients for split, count in report.splits.items()} == {"train": 6, "validation": 2, "test": 2}
    assert "no image is in two splits, and no patient" in report_lines(report)
    assert report.divided_patients == {}
    # No loader returns this, but a table from elsewhere can.
    flipped = ("test" if data.table.splits[0] != "test" else "train", *data.table.splits[1:])
    object.__setattr__(data.table, "splits", flipped)
    report = report_of(data)
    assert list(report.divided_patients) == ["p00"]
    assert any("1 patient in more than one split" in line and "p00" in line for line in report_lines(report))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Write 10 images of each of two classes, three of them unreadable."""
    folder = write_classes(tmp_path / "broken", {"CE": 10, "LAA": 10})
    for number in (1, 3):
        (folder / "CE" / f"{number}.png").write_bytes(b"no image")
    Image.fromarray(np.full((20, 20), np.nan, np.float32)).save(folder / "LAA" / "nan.tif")
    return folder


def test_unreadable_images_are_left_out_where_that_is_wished(broken: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(DataError, match=r"3 of 21 images can't be read; .*--skip-unreadable: .*CE/1.png"):
        store_data(run, load_data(str(broken)), SETTINGS)
    assert not run.data_folder.exists()
    data = load_data(str(broken), skip_unreadable=True)
    metadata = store_data(run, data, SETTINGS)
    table = run.table()
    kept = [
        row for row, source in enumerate(data.table.sources) if not source.endswith(("CE/1.png", "3.png", "nan.tif"))
    ]
    kept += [data.table.sources.index(str(broken / "LAA" / "3.png"))]
    kept.sort()
    assert table.sources == tuple(data.table.sources[row] for row in kept)
    assert table.splits == tuple(data.table.splits[row] for row in kept)
    assert len(run.pixels()) == len(table.sources) == 18
    expected = data.select(np.array(kept)).pixels(metadata.image)
    np.testing.assert_array_equal(run.pixels(), expected)
    report = read_data_report(run)
    assert [Path(one.source).name for one in report.unreadable] == ["1.png", "3.png", "nan.tif"]
    assert "8- or 16-bit" in report.unreadable[2].reason
    assert sum(count.images for count in report.splits.values()) == 18
    # A repeated call returns the same.
    assert store_data(run, load_data(str(broken), skip_unreadable=True), SETTINGS) == metadata
    assert not list(run.data_folder.glob("usable*"))


def test_a_class_emptied_by_leaving_out_is_refused(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data", {"CE": 3, "LAA": 6})
    (folder / "CE" / "1.png").write_bytes(b"no image")
    data = load_data(str(folder), skip_unreadable=True)
    with pytest.raises(DataError, match="without 1 image that can't be read, class 'CE' has 2 images, and none for"):
        usable_rows(data, data.decode())
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    data = load_data(str(folder), skip_unreadable=True)
    with pytest.raises(DataError, match="9 of 9 images can't be read"):
        report_of(data)


def test_the_report_lies_with_the_runs_data_and_its_warnings_in_the_log(
    leaky: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, data = Run(tmp_path / "run"), load_data(str(leaky))
    with caplog.at_level(logging.WARNING):
        store_data(run, data, SETTINGS)
    assert read_data_report(run) == report_of(data)
    assert [record.message.split(": ")[1] for record in caplog.records] == [
        "1 image in more than one split, which inflates every score",
        "1 image with more than one label",
    ]
    (run.data_folder / "report.json").write_text("{}")
    with pytest.raises(MetadataError, match=r"report\.json is not a data report of version 1"):
        read_data_report(run)
    (run.data_folder / "report.json").unlink()
    with pytest.raises(MetadataError, match=r"report\.json can't be read: No such file"):
        read_data_report(run)


def test_long_lists_are_cut_in_the_lines_and_whole_in_the_report(tmp_path: Path) -> None:
    write_classes(tmp_path, {"CE": 9, "LAA": 3})
    for number in range(5):
        (tmp_path / "CE" / f"{number}.png").write_bytes(b"")
    report = report_of(load_data(str(tmp_path)))
    assert len(report.unreadable) == 5
    assert report_lines(report)[-1].startswith("5 images that can't be read: ")
    assert report_lines(report)[-1].endswith("; and 2 more")


def test_the_picture_has_a_bar_for_each_class_as_long_as_it_has_images(archive: Path) -> None:
    report = report_of(load_data(str(archive)))
    picture = plot_from_data_report(report)
    assert plot_from_data_report(report) == picture
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    drawn = {
        colour: (pixels == tuple(bytes.fromhex(colour))).all(axis=-1).sum() for colour in ("0072b2", "e69f00", "009e73")
    }
    # Patches of the legend are small and equal.
    assert drawn["0072b2"] / drawn["e69f00"] == pytest.approx(2, rel=0.1)
    assert drawn["e69f00"] == pytest.approx(drawn["009e73"], rel=0.1)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_12_bits_in_16_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str) -> None:
    """Only the high byte of 16 bits is used: unscaled 12-bit images are nearly black, and the file does not say so."""
    random = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "data" / ("CE", "LAA")[number % 2] / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        most = 65_535 if number < 6 else 4095
        Image.fromarray(random.integers(0, most + 1, (20, 20)).astype(np.uint16)).save(path)
    data = load_data(str(tmp_path / "data"))
    report = report_of(data)
    assert len(report.nearly_black) == 18
    line = report_lines(report)[-1]
    assert line.startswith("18 images nearly black, with no value above 15 of 255, as with 12 bits in a 16-bit file")
    assert line.endswith("; and 15 more")
    with caplog.at_level(logging.WARNING):
        store_data(Run(tmp_path / "run"), data, SETTINGS)
    assert "18 images nearly black" in caplog.text
