"""Data folder of a run: atomic, equal pixels, reused for the same source, refused for another."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plurum.benchmarks.tools.requests import decode_pixels
from plurum.errors import DataError, OutputError
from plurum.run import Run
from plurum.training import TrainSettings, load_data
from plurum.training.data.store import image_spec, store_data
from tests.training.data_files import digit_arrays, save_npz, write_classes, write_image

SETTINGS = TrainSettings(archs=("a",), image_size=16)


@pytest.mark.parametrize(("side", "size"), [(8, 32), (28, 32), (32, 32), (33, 64), (224, 224)])
def test_arrays_keep_their_size_where_a_network_can_halve_it_five_times(tmp_path: Path, side: int, size: int) -> None:
    arrays = {
        name: array if "labels" in name else np.zeros((len(array), 8, side), np.uint8)
        for name, array in digit_arrays().items()
    }
    save_npz(tmp_path / "a.npz", arrays)
    image = image_spec(load_data(str(tmp_path / "a.npz")), TrainSettings(archs=("a",)))
    assert (image.height, image.width) == (size, size)


def test_files_are_resized_to_224_or_to_the_requested_size(tmp_path: Path) -> None:
    data = load_data(str(write_classes(tmp_path, {"CE": 3, "LAA": 3})))
    assert image_spec(data, TrainSettings(archs=("a",))).height == 224
    image = image_spec(data, TrainSettings(archs=("a",), image_size=48, colour="grey", resize="crop"))
    assert (image.height, image.width, image.colour, image.resize) == (48, 48, "grey", "crop")


def test_stored_pixels_and_labels_equal_the_data(archive: Path, tmp_path: Path) -> None:
    run, data = Run(tmp_path / "run"), load_data(str(archive))
    metadata = store_data(run, data, SETTINGS)
    assert metadata == run.data()
    assert metadata.source == str(archive)
    assert metadata.classes == data.classes
    np.testing.assert_array_equal(run.pixels(), data.pixels(metadata.image))
    table = run.table()
    assert table.splits == data.table.splits
    assert table.sources == data.table.sources
    np.testing.assert_array_equal(table.labels, data.table.labels)


def write_jpegs(folder: Path, images: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> Path:
    for number, pixels in enumerate(images):
        path = folder / ("CE", "LAA")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
    return folder


def test_large_jpegs_are_reduced_if_that_hardly_changes_their_pixels(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 160)
    smooth = [
        (ramp[:, None, None] + draws.normal(20, 5, (160, 160, 3))).clip(0, 255).astype(np.uint8) for _ in range(8)
    ]
    rough = [draws.choice(np.array([0, 255], np.uint8), (160, 160, 3)) for _ in range(8)]
    for name, images, is_reduced in (("smooth", smooth, True), ("rough", [*smooth[:7], rough[0]], False)):
        run, data = Run(tmp_path / f"run_{name}"), load_data(str(write_jpegs(tmp_path / name, images)))
        image = store_data(run, data, SETTINGS).image
        assert image.reduced_decoding is is_reduced
        assert run.data().image == image
        assert ("reduced_decoding" in image.model_dump()) is is_reduced
        stored, whole = run.pixels(), image.model_copy(update={"reduced_decoding": False})
        # As a server decodes them.
        np.testing.assert_array_equal(stored, [decode_pixels(data.read_encoded(row), image) for row in range(8)])
        assert np.array_equal(stored, data.pixels(whole)) is not is_reduced


def test_smaller_images_are_decoded_as_wholes(tmp_path: Path) -> None:
    small = [np.full((126, 160, 3), 10 * number, np.uint8) for number in range(6)]
    data = load_data(str(write_jpegs(tmp_path / "small", small)))
    assert not store_data(Run(tmp_path / "run"), data, SETTINGS).image.reduced_decoding


@pytest.mark.parametrize(("colour", "pretrained"), [("rgb", False), ("grey", False), ("rgb", True)])
def test_padding_is_the_mean_of_the_training_images(tmp_path: Path, colour: str, pretrained: bool) -> None:
    for label, sizes in {"CE": (40, 20), "LAA": (20, 40)}.items():
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng(number).integers(40, 90, (*sizes, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    run, data = Run(tmp_path / "run"), load_data(str(tmp_path / "data"))
    settings = TrainSettings.model_validate(
        {"archs": ["a"], "image_size": 32, "resize": "pad", "colour": colour, "pretrained": pretrained}
    )
    image = store_data(run, data, settings).image
    stored = run.pixels()
    # Serving decodes with the stored metadata.
    np.testing.assert_array_equal(stored, data.pixels(image))
    corner = image.resizing["fill"]
    assert (stored[:, 0, 0] == corner).all()
    if not pretrained:
        assert corner == pytest.approx([255 * value for value in image.mean], abs=0.5)
        assert 55 < corner[0] < 75


def test_images_and_patients_are_private_whatever_the_umask(archive: Path, tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        store_data(Run(tmp_path / "run"), load_data(str(archive)), SETTINGS)
    finally:
        os.umask(former)
    assert (tmp_path / "run" / "data").stat().st_mode & 0o777 == 0o700


def test_mean_and_std_are_those_of_training_pixels(archive: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    image = store_data(run, load_data(str(archive)), SETTINGS).image
    pixels = run.pixels()[run.table().rows("train")] / 255
    np.testing.assert_allclose(image.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(image.std, pixels.std(axis=(0, 1, 2)), rtol=1e-9)


def test_pretrained_members_get_the_mean_and_std_of_imagenet(archive: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"pretrained": True})
    image = store_data(Run(tmp_path / "run"), load_data(str(archive)), settings).image
    assert image.mean == (0.485, 0.456, 0.406)
    assert image.std == (0.229, 0.224, 0.225)


def test_pixels_that_never_change_can_be_normalised(tmp_path: Path) -> None:
    arrays = {name: array if "labels" in name else np.full_like(array, 255) for name, array in digit_arrays().items()}
    save_npz(tmp_path / "a.npz", arrays)
    image = store_data(Run(tmp_path / "run"), load_data(str(tmp_path / "a.npz")), SETTINGS).image
    assert image.mean == pytest.approx((1, 1, 1))
    assert image.std == pytest.approx((1 / 255,) * 3)


def test_a_disk_without_room_for_the_pixels_is_refused_before_they_are_written(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def full(_file: int, _start: int, size: int) -> None:
        asked.append(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    run = Run(tmp_path / "run")
    with pytest.raises(OutputError, match=r"data can't be written: No space left on device"):
        store_data(run, load_data(str(archive)), SETTINGS)
    assert asked[0] > 320 * 16 * 16 * 3
    assert list(run.path.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_gives_one_line_and_no_bus_error(archive: Path, tmp_path: Path) -> None:
    """Run in a separate process, because a write into a map on a full disk ends it by a signal."""
    (tmp_path / "small").mkdir()
    command = [sys.executable, "-m", "plurum", "train", str(archive), "--arch", "test_byobnet", "--out", "small/run"]
    mounted = 'mount -t tmpfs -o size=200k none small && exec "$@"'
    probe = ["unshare", "-m", "sh", "-c", mounted, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*probe, "true"], cwd=tmp_path, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run([*probe, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "plurum: small/run/data can't be written: No space left on device\n"


def test_images_are_decoded_once(archive: Path, tmp_path: Path) -> None:
    run, data = Run(tmp_path / "run"), load_data(str(archive))
    first = store_data(run, data, SETTINGS)
    inode = (run.data_folder / "pixels.npy").stat().st_ino
    assert store_data(run, data, SETTINGS) == first
    assert (run.data_folder / "pixels.npy").stat().st_ino == inode


def test_another_source_is_refused(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data", {"CE": 4, "LAA": 4})
    run = Run(tmp_path / "run")
    store_data(run, load_data(str(folder)), SETTINGS)
    with pytest.raises(OutputError, match=r"is not the data that .*run was started with"):
        store_data(run, load_data(str(folder), seed=1), SETTINGS)
    write_image(folder / "CE" / "0.png", 77, (30, 30))
    with pytest.raises(OutputError, match="start over with --fresh"):
        store_data(run, load_data(str(folder)), SETTINGS)


def test_a_broken_image_leaves_no_decoded_data(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data", {"CE": 4, "LAA": 4})
    (folder / "CE" / "0.png").write_bytes(b"broken")
    run = Run(tmp_path / "run")
    run.path.mkdir()
    with pytest.raises(DataError, match=r"CE/0.png"):
        store_data(run, load_data(str(folder)), SETTINGS)
    assert list(run.path.iterdir()) == []
