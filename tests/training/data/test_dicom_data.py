"""DICOM files as training data: patients, frames and windows."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from plurum.dicom_files import PatientNames
from plurum.errors import DataError, SettingsError
from plurum.images import open_image
from plurum.spec import ImageSpec
from plurum.training import load_data
from tests.cli.command_line import CommandLine
from tests.images.dicom_files import PATIENT_ID, PATIENT_NAME, dicom

CLASSES = ("CE", "LAA")


def picture(seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    return np.random.default_rng(seed).integers(0, 4096, (16, 16)).astype(np.uint16)


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with 10 patients of each class, who have two images each; some have no extension."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for label, name in enumerate(CLASSES):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number in range(20):
            suffix = ".dcm" if number % 3 else ""
            data = dicom(picture(100 * label + number), patient=f"{PATIENT_ID}-{label}-{number // 2}", BitsStored=12)
            (tmp_path / "scans" / name / f"1.2.{number}{suffix}").write_bytes(data)
    (tmp_path / "scans" / "CE" / "DICOMDIR").write_bytes(dicom(picture(0)))
    return tmp_path / "scans"


def test_patients_are_pseudonyms_and_stay_in_one_split(scans: Path) -> None:
    data = load_data(str(scans))
    assert len(data) == 40
    patients = data.table.patients
    assert len(set(patients)) == 20
    assert all(len(name) == 32 and PATIENT_ID not in name for name in patients)
    splits = {(patient, split) for patient, split in zip(patients, data.table.splits, strict=True)}
    assert len(splits) == 20
    assert load_data(str(scans)).table.patients == patients
    key = scans.parent / "config" / "plurum" / "pseudonym.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    other = load_data(str(scans), names=PatientNames(scans.parent / "other.key"))
    assert not set(other.table.patients) & set(patients)
    kept = load_data(str(scans), names=PatientNames(keep_ids=True))
    assert set(kept.table.patients) == {f"{PATIENT_ID}-{label}-{number}" for label in (0, 1) for number in range(10)}


def test_images_are_passed_on_without_what_identifies(scans: Path) -> None:
    data = load_data(str(scans))
    for index in range(len(data)):
        content = data.read_encoded(index)
        assert PATIENT_ID.encode() not in content
        assert PATIENT_NAME.encode() not in content


def test_patients_of_a_manifest_come_first(scans: Path) -> None:
    rows = [f"{path.relative_to(scans)},{path.parent.name},{path.name}" for path in sorted(scans.rglob("1.2.*"))]
    (scans / "list.csv").write_text("\n".join(["path,label,patient", *rows]) + "\n")
    assert set(load_data(str(scans / "list.csv")).table.patients) == {
        f"1.2.{n}{'.dcm' * bool(n % 3)}" for n in range(20)
    }


def test_a_window_is_applied_and_stored_in_the_spec(scans: Path) -> None:
    data = load_data(str(scans), window=(1024.0, 512.0))
    spec = ImageSpec(height=16, width=16, mean=(0, 0, 0), std=(1, 1, 1), window=(1024.0, 512.0))
    expected = np.asarray(open_image(Path(data.table.sources[0]).read_bytes(), window=spec.window))
    np.testing.assert_array_equal(data.pixels(spec)[0, ..., 0], expected)
    without = data.pixels(spec.model_copy(update={"window": None}))
    assert (without[0, ..., 0] != expected).any()


def test_frames_are_images_of_one_patient(scans: Path) -> None:
    frames = np.stack([picture(1), picture(2), picture(3)])
    (scans / "CE" / "cine.dcm").write_bytes(dicom(frames, patient="", BitsStored=12))
    data = load_data(str(scans))
    rows = [row for row, source in enumerate(data.table.sources) if "cine.dcm" in source]
    assert [data.table.sources[row] for row in rows] == [f"{scans}/CE/cine.dcm#frame={frame}" for frame in range(3)]
    assert {data.table.patients[row] for row in rows} == {"CE/cine.dcm"}
    pixels = [np.asarray(open_image(data.read_encoded(row))) for row in rows]
    np.testing.assert_array_equal(pixels[1], np.floor(picture(2) / 4095 * 255 + 0.5))


def test_the_report_names_unreadable_files_and_no_patient(scans: Path, plurum: CommandLine) -> None:
    (scans / "LAA" / "cut.dcm").write_bytes(dicom(picture(9), BitsStored=12)[:-100])
    code, out, err = plurum.ended("data", scans, "--skip-unreadable", "--window", "1024,512")
    assert code == 0
    assert "1 image that can't be read" in out
    assert "PixelData (7FE0,0010): reaches beyond the end of the file" in out
    for text in (out, err):
        assert PATIENT_ID not in text
        assert PATIENT_NAME not in text
    report = json.loads(plurum.said("data", scans, "--skip-unreadable", "--json", "--keep-patient-ids"))
    assert report["counts"]["CE"]["train"]["patients"]


@pytest.mark.parametrize("window", ["40", "40,0.5", "nan,3", "a,b"])
def test_a_wrong_window_is_refused(scans: Path, plurum: CommandLine, window: str) -> None:
    assert "--window: expected" in plurum.refused("data", scans, "--window", window)


def test_a_key_that_others_can_read_is_refused(scans: Path) -> None:
    key = scans.parent / "open.key"
    key.write_text("0" * 64)
    key.chmod(0o644)
    with pytest.raises(SettingsError, match="--pseudonym-key-file: expected a file that only its owner can read"):
        load_data(str(scans), names=PatientNames(key))
    key.chmod(0o600)
    key.write_text("short")
    with pytest.raises(SettingsError, match="--pseudonym-key-file: expected 64 hexadecimal digits"):
        load_data(str(scans), names=PatientNames(key))
    with pytest.raises(SettingsError, match="--pseudonym-key-file: expected a file that can be read or made"):
        load_data(str(scans), names=PatientNames(Path("/proc/none/key")))


def test_dicom_is_not_cut_into_tiles(scans: Path) -> None:
    data = load_data(str(scans), tile_size=8)
    assert data.decode()[0].fault == "DICOM images are not cut into tiles. Leave out --tile-size"
    with pytest.raises(DataError, match="not cut into tiles"):
        data.pixels(ImageSpec(height=16, width=16, mean=(0, 0, 0), std=(1, 1, 1)))
