"""Windows from percentiles of the training images, over formats, and what a training learns through them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from plurum.benchmarks.claims.images.dicom import pydicom_files
from plurum.dicom_files import PatientNames
from plurum.errors import DataError
from plurum.images.windows import WindowRule, window_from_range
from plurum.run import Run
from plurum.settings.options import settings_from
from plurum.settings.training import Percentiles
from plurum.training import TrainSettings, load_data
from plurum.training.data.labelled_images import LabelledImages
from plurum.training.data.store import store_data
from plurum.training.data.window_fit import fit_window
from tests.cli.command_line import CommandLine
from tests.images.dicom_files import dicom, pydicom
from tests.images.image_files import encoded

Values = npt.NDArray[Any]

CLASSES = ("CE", "LAA")


def write(root: Path, images: dict[str, Values], suffix: str = ".png") -> Path:
    """Write images by `CLASS/NAME`, as PNG, TIFF or DICOM."""
    for name, values in images.items():
        path = root / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".tif":
            tifffile.imwrite(path, values)
        else:
            path.write_bytes(dicom(values, patient="") if suffix == ".dcm" else encoded(Image.fromarray(values)))
    return root


def drawn(lowest: float = 1000, highest: float = 1400, dtype: str = "u2", each: int = 6) -> dict[str, Values]:
    random = np.random.default_rng(0)
    return {
        f"{name}/{number}": random.uniform(lowest, highest, (20 + number, 20)).astype(dtype)
        for name in CLASSES
        for number in range(each)
    }


def fitted(source: Path, lowest: float, highest: float) -> LabelledImages:
    return fit_window(load_data(str(source)), Percentiles(lowest=lowest, highest=highest))


def training_values(data: LabelledImages, images: dict[str, Values]) -> list[Values]:
    sources = [data.table.sources[row] for row in data.table.rows("train")]
    return [images["/".join(Path(source).with_suffix("").parts[-2:])] for source in sources]


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", "u2"), (".tif", "i2"), (".tif", "f4"), (".dcm", "u2")])
def test_the_window_is_that_of_the_training_images(tmp_path: Path, suffix: str, dtype: str) -> None:
    images = drawn(dtype=dtype)
    data = fitted(write(tmp_path, images, suffix), 5, 95)
    values = np.concatenate([one.ravel() for one in training_values(data, images)])
    assert len(training_values(data, images)) < len(images)
    exact = window_from_range(*np.percentile(values, [5, 95]))
    assert data.window == pytest.approx(exact, rel=0.01)
    assert "--window 5%,95% is" in data.notes[-1]


def test_the_ends_are_exact(tmp_path: Path) -> None:
    images = drawn()
    data = fitted(write(tmp_path, images), 0, 100)
    values = np.concatenate([one.ravel() for one in training_values(data, images)])
    assert data.window == window_from_range(int(values.min()), int(values.max()))


def test_images_have_the_same_weight_whatever_their_size(tmp_path: Path) -> None:
    images = {
        f"{name}/{number}": np.full((8, 8), 1000 + 100 * number, np.uint16) for name in CLASSES for number in (0, 1)
    }
    images |= {f"{name}/{number}": np.full((99, 99), 2000, np.uint16) for name in CLASSES for number in (2, 3, 4, 5)}
    data = fitted(write(tmp_path, images), 0, 50)
    values = training_values(data, images)
    assert np.mean([one.size > 64 for one in values]) > 0.5
    assert data.window == window_from_range(min(int(one.min()) for one in values), 2000)


def test_values_that_are_not_finite_do_not_count(tmp_path: Path) -> None:
    images = drawn(0, 1, "f4")
    for values in images.values():
        values[0, :3] = (np.nan, np.inf, -np.inf)
    data = fitted(write(tmp_path, images, ".tif"), 0, 100)
    assert isinstance(data.window, tuple)
    assert data.window == pytest.approx((1, 2), abs=0.05)


def test_eight_bits_do_not_count_and_alone_are_refused(tmp_path: Path) -> None:
    images = drawn(0, 255, "u1")
    with pytest.raises(DataError, match="--window: expected grey training images of more than 8 bits"):
        fitted(write(tmp_path / "eight", images), 1, 99)
    mixed = write(write(tmp_path / "mixed", drawn()), {"CE/x": images["CE/0"], "LAA/x": images["LAA/1"]})
    assert fitted(mixed, 0, 100).window == pytest.approx(window_from_range(1000, 1400), abs=5)


def test_equal_percentiles_are_refused(tmp_path: Path) -> None:
    images = {name: np.full_like(values, 700) for name, values in drawn().items()}
    with pytest.raises(DataError, match=r"--window: the values at 1 % and 99 % .* are 700 and 700"):
        fitted(write(tmp_path, images), 1, 99)


def test_an_unreadable_image_is_left_to_the_reader(tmp_path: Path) -> None:
    source = write(tmp_path, drawn())
    (source / "CE" / "cut.png").write_bytes((source / "CE" / "0.png").read_bytes()[:90])
    data = fitted(source, 0, 100)
    assert data.window is not None
    assert sum(bool(one.fault) for one in data.decode()) == 1


def test_the_fitted_window_is_in_the_metadata_and_the_rule_in_the_settings(tmp_path: Path) -> None:
    settings = settings_from(TrainSettings, archs=("a",), image_size=16, window="0.5%,99.5%")
    assert settings.window == Percentiles(lowest=0.5, highest=99.5)
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings
    run = Run(tmp_path / "run")
    data = load_data(str(write(tmp_path / "data", drawn())), window=settings.window)
    window = store_data(run, data, settings).image.window
    assert window == pytest.approx(window_from_range(1000, 1400), rel=0.02)
    stated = json.loads((run.data_folder / "contract.json").read_text())["image"]["window"]
    assert stated == list(window or ())
    assert run.pixels().min() < 40
    assert run.pixels().max() > 215


def test_a_ct_without_a_window_is_read_with_percentiles(tmp_path: Path) -> None:
    (file,) = (path for path in pydicom_files() if path.name == "CT_small.dcm")
    for number in range(12):
        scan = pydicom.dcmread(file)
        scan.PatientID = f"p{number}"
        scan.PixelData = np.roll(scan.pixel_array, number, 0).tobytes()
        path = tmp_path / "data" / CLASSES[number % 2] / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        scan.save_as(path)
    source, names = str(tmp_path / "data"), PatientNames(tmp_path / "key")
    assert all("Give --window" in one.fault for one in load_data(source, names=names).decode())
    settings = settings_from(TrainSettings, archs=("a",), image_size=128, window="0%,100%")
    run = Run(tmp_path / "run")
    image = store_data(run, load_data(source, names=names, window=settings.window), settings).image
    # Stored values are from 128 to 2,191, and the intercept is -1,024.
    assert image.window == window_from_range(128 - 1024, 2191 - 1024)
    assert (run.pixels().min(), run.pixels().max()) == (0, 255)


def test_the_full_range_is_stored_by_name(tmp_path: Path) -> None:
    settings = settings_from(TrainSettings, archs=("a",), image_size=20, window="full")
    source = write(tmp_path / "data", drawn(-3000, 3000, "i2"), ".tif")
    run = Run(tmp_path / "run")
    assert store_data(run, load_data(str(source), window=settings.window), settings).image.window == "full"
    assert Run(run.path).data().image.window == "full"


@pytest.mark.parametrize("rule", ["5%", "9%,1%", "1%,101%", "0.1,99.9%", "a%,b%", "nan%,5%", "whole"])
def test_a_wrong_rule_is_refused(tmp_path: Path, plurum: CommandLine, rule: str) -> None:
    source = write(tmp_path, drawn())
    assert "--window: expected CENTRE,WIDTH" in plurum.refused("data", source, "--window", rule)


def test_the_report_names_12_bits_and_what_to_give(tmp_path: Path, plurum: CommandLine) -> None:
    source = write(tmp_path, drawn(0, 4096))
    text = " ".join(plurum.said("data", source).split())
    assert "12 images nearly black" in text
    assert "give --window 2048,4096 or --window 0.1%,99.9%" in text
    text = " ".join(plurum.said("data", source, "--window", "0.1%,99.9%").split())
    assert "nearly black" not in text
    assert "--window 0.1%,99.9% is " in text


@pytest.mark.parametrize("rule", [(1200.5, 401.0), Percentiles(lowest=0, highest=100)])
def test_tiles_keep_all_bits_for_a_window(tmp_path: Path, rule: WindowRule | Percentiles) -> None:
    random = np.random.default_rng(0)
    images = {
        f"{name}/{number}": random.integers(1000, 1401, (64, 96)).astype(np.uint16)
        for name in CLASSES
        for number in range(6)
    }
    source = write(tmp_path / "data", images)
    run, settings = Run(tmp_path / "run"), settings_from(TrainSettings, archs=("a",), image_size=32, tile_size=32)
    data = load_data(str(source), tile_size=32, window=rule)
    settings = settings.model_copy(update={"window": rule})
    assert store_data(run, data, settings).image.window == (1200.5, 401.0)
    place = run.table().sources.index(f"{source}/CE/3.png#xywh=32,32,32,32")
    expected = (images["CE/3"][32:64, 32:64] - 1000.0) / 400 * 255
    np.testing.assert_allclose(run.pixels()[place, ..., 0], expected, atol=0.51)


def test_signed_numbers_are_not_cut_into_tiles(tmp_path: Path) -> None:
    source = write(tmp_path, {name: np.full((64, 64), 1000, np.int16) for name in drawn()}, ".tif")
    data = load_data(str(source), tile_size=32, window="full")
    assert all("grey of 8 or 16 unsigned bits is cut into tiles" in one.fault for one in data.decode())


def lesions(each: int, seed: int) -> dict[str, Values]:
    """Return smooth images of 12-bit values, of which class CE has a striped square: 12 of 4,096 from dark to bright.

    All values have the high byte 4, so that 8 bits of the full range show nothing.
    """
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:32, 0:32] / 31 - 0.5
    stripes = 12 * (np.arange(16) // 2 % 2)[:, None] - 6
    found = {}
    for name in CLASSES:
        for number in range(each):
            angle = random.uniform(0, 2 * np.pi)
            values = 1145 + 140 * (np.cos(angle) * rows + np.sin(angle) * columns) + random.normal(0, 1, rows.shape)
            if name == "CE":
                top, left = random.integers(0, 17, 2)
                values[top : top + 16, left : left + 16] += stripes
            found[f"{name}/{number}"] = values.round().astype(np.uint16)
    assert all((one >> 8 == 4).all() for one in found.values())
    return found


@pytest.mark.slow
def test_a_lesion_that_the_high_byte_hides_is_learnt_with_percentiles_only(tmp_path: Path, plurum: CommandLine) -> None:
    source = write(tmp_path / "data", lesions(100, seed=0))
    options = ("--arch", "resnet10t", "--epochs", 12, "--batch-size", 16, "--image-size", 32, "--learning-rate", "1e-3")
    accuracies = {}
    for name, rule in {"old": (), "new": ("--window", "0.1%,99.9%")}.items():
        code, _, err = plurum.ended("train", source, *options, *rule, "--out", tmp_path / name)
        assert code == 0, err
        (member,) = tmp_path.glob(f"{name}/members/*/member.json")
        accuracies[name] = json.loads(member.read_text())["validation"]["accuracy"]
    window = Run(tmp_path / "new").data().image.window
    assert isinstance(window, tuple)
    # The lesion spans some 16 of 255 levels of the fitted range.
    assert 4 < 12 * 255 / (window[1] - 1) < 20
    assert accuracies["new"] > 0.9
    assert accuracies["old"] < 0.7
