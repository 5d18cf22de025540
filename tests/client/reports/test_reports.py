"""DICOM reports of predictions: what they say, that others can read them, and what is refused."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from plurum.benchmarks.claims.images.dicom import pydicom_files
from plurum.client import Answer, Failure, Served
from plurum.client.reports.report_names import names_of_reports
from plurum.client.reports.report_stream import ReportStream, check_sources
from plurum.client.reports.sources import read_source
from plurum.client.reports.structured_reports import ReportedImage, ReportWriter
from plurum.errors import DataError, OutputError, SettingsError
from plurum.evidence import Evidence
from tests.cli.command_line import CommandLine
from tests.client.samples import png, prediction
from tests.fuzz.dicom_mutations import broken_dicom, dicom_corpus
from tests.images.dicom_files import PATIENT_ID, PLANTED, STUDY_UID, dicom, identifying_values, pydicom

highdicom: Any = pytest.importorskip("highdicom")

SERVED = Served(("CE", "LAA"), ("one", "two"), 8, None, metadata_sha256="ab" * 32, name="stroke")
GREY = np.zeros((16, 16), np.uint8)
# Two frames, in a class that has frames.
CINE: dict[str, Any] = {"pixels": np.stack([GREY, GREY]), "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}


class Source:
    """Predicts `prediction()` for each image, or what `answers` says."""

    def __init__(self, answers: Iterable[Answer] = ()) -> None:
        self.answers = iter(answers)

    def stream(self, images: Iterator[Any], **_: Any) -> Iterator[Answer]:
        for _ in list(images):
            yield next(self.answers, prediction())


def write(path: Path, number: int = 1, **elements: Any) -> str:
    elements.setdefault("SOPInstanceUID", f"{PLANTED['SOPInstanceUID']}.{number}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom(elements.pop("pixels", GREY), **elements))
    return str(path)


def report_on(folder: Path, images: list[str], *answers: Answer, **options: Any) -> list[Any]:
    """Return the datasets that are written, after checking them with dciodvfy if it is installed."""
    stream = ReportStream(Source(answers), options.pop("served", SERVED), folder, images, **options)
    list(stream.stream(iter(images)))
    found = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        for line in problems(path):
            assert not line.startswith("Error"), line
    return found


def problems(path: Path) -> list[str]:
    if not (tool := shutil.which("dciodvfy")):
        return []
    return subprocess.run([tool, str(path)], capture_output=True, text=True, check=False).stderr.splitlines()


def group_of(report: Any) -> Any:
    (group,) = highdicom.sr.ComprehensiveSR.from_dataset(report).content.get_image_measurement_groups()
    return group


def evaluations(group: Any) -> list[tuple[str, str]]:
    return [(one.name.meaning, one.value.meaning) for one in group.get_qualitative_evaluations()]


def test_dciodvfy_is_installed() -> None:
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    assert problems(Path(__file__))


def test_a_report_says_all_of_the_prediction(tmp_path: Path) -> None:
    answer = replace(
        prediction(), release="r7", outlier=0.0078125, review_reason=("set", "outlier"), audit=False,
        probabilities={"CE": 0.6000000238418579, "LAA": 0.3999999761581421},
    )  # fmt: skip
    (report,) = report_on(tmp_path / "out", [write(tmp_path / "scan.dcm", PatientSex="F")], answer)
    assert (tmp_path / "out" / "scan.sr.dcm").is_file()
    group = group_of(report)
    numbers = {one.name.meaning: one.value for one in group.get_measurements()}
    assert numbers == {"Probability of CE": 0.6, "Probability of LAA": 0.4, "P-value of the outlier test": 0.007812}
    assert evaluations(group) == [
        ("Predicted class", "CE"), ("Class in the prediction set", "CE"), ("Class in the prediction set", "LAA"),
        ("Needs review", "Yes"), ("Reason for review", "Several classes can't be ruled out"),
        ("Reason for review", "Unlike the reference images"), ("Drawn for audit", "No"),
    ]  # fmt: skip
    texts = {one.ConceptNameCodeSequence[0].CodeMeaning: one.get("TextValue") for one in group[0].ContentSequence}
    assert texts["Algorithm Name"] == "stroke"
    assert texts["Algorithm Version"] == "r7"
    assert texts["Algorithm Parameters"] == "members: one, two"
    (image,) = group.source_images
    assert image.referenced_sop_instance_uid == f"{PLANTED['SOPInstanceUID']}.1"
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == STUDY_UID == report.StudyInstanceUID
    assert (report.PatientID, report.PatientSex, report.Modality) == (PATIENT_ID, "F", "SR")
    assert (report.VerificationFlag, report.SpecificCharacterSet) == ("UNVERIFIED", "ISO_IR 192")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
def test_other_encodings_of_the_source(tmp_path: Path, syntax: str) -> None:
    name = "Zażółć^Gęślą"
    elements: dict[str, Any] = {"SpecificCharacterSet": "ISO_IR 101", "PatientName": name}
    if syntax.endswith("1.2.2"):
        data = pydicom.dcmread(io.BytesIO(dicom(GREY, **elements)))
        data.file_meta.TransferSyntaxUID = syntax
        path = tmp_path / "scan"
        pydicom.dcmwrite(path, data, little_endian=False, implicit_vr=False, enforce_file_format=True)
    else:
        path = Path(write(tmp_path / "scan", syntax=syntax, **elements))
    (report,) = report_on(tmp_path / "out", [str(path)])
    assert str(report.PatientName) == name


def test_frames_share_the_series_of_their_study(tmp_path: Path) -> None:
    write(tmp_path / "cine.dcm", **CINE)
    images = [f"{tmp_path}/cine.dcm#frame={frame}" for frame in (0, 1)]
    first, second = report_on(tmp_path / "out", images)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cine-frame0.sr.dcm", "cine-frame1.sr.dcm"]
    assert group_of(second).source_images[0].referenced_frame_numbers == [2]
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)


def test_a_report_for_each_study(tmp_path: Path) -> None:
    studies = ["", "", ".9"]
    images = [
        write(tmp_path / f"{number}.dcm", number, StudyInstanceUID=STUDY_UID + study)
        for number, study in enumerate(studies)
    ]
    answers: list[Answer] = [prediction(), Failure(1, images[1], "broken"), prediction("LAA", review=False)]
    reports = report_on(tmp_path / "out", images, *answers, by_study=True)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["0.study.sr.dcm", "2.study.sr.dcm"]
    assert evaluations(group_of(reports[1]))[:2] == [("Predicted class", "LAA"), ("Class in the prediction set", "LAA")]
    both = report_on(tmp_path / "both", images[:2], by_study=True)
    groups = highdicom.sr.ComprehensiveSR.from_dataset(both[0]).content.get_image_measurement_groups()
    assert [one.source_images[0].referenced_sop_instance_uid[-2:] for one in groups] == [".0", ".1"]


def test_invalid_values_of_the_source_are_left_out(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "scan.dcm"
    data = dicom(GREY, StudyDate="20200102").replace(b"20200102", b"02/01/20").replace(b"19431107", b"unknown!")
    path.write_bytes(data)
    (report,) = report_on(tmp_path / "out", [str(path)])
    assert (report.StudyDate, report.PatientBirthDate) == ("", "")
    assert not recwarn.list


def test_a_heat_map_is_a_secondary_capture(tmp_path: Path) -> None:
    maps = [SimpleNamespace(picture=png(9), note=""), SimpleNamespace(picture=b"", note="too few cells")]
    evidence = SimpleNamespace(mismatch=lambda *_: "", maps=lambda *_: [maps.pop(0)])
    said: list[str] = []
    images = [write(tmp_path / "a.dcm", **CINE) + "#frame=1", write(tmp_path / "b.dcm")]
    capture, *_ = report_on(tmp_path / "out", images, evidence=cast("Evidence", evidence), line=said.append)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "a-frame1.map.dcm", "a-frame1.sr.dcm", "b.sr.dcm",
    ]  # fmt: skip
    assert capture.SOPClassUID.name == "Secondary Capture Image Storage"
    assert capture.pixel_array[0, 0].tolist() == [9, 40, 90]
    assert capture.SourceImageSequence[0].ReferencedFrameNumber == 2
    assert said == [f"{images[1]}: no heat map: too few cells"]
    evidence.mismatch = lambda *_: "runs/a is not the run that is served: its classes or members differ"
    with pytest.raises(SettingsError, match="--sr-heatmap: expected the run that is served; runs/a is not"):
        report_on(tmp_path / "out", images, evidence=cast("Evidence", evidence))


def test_names_never_meet() -> None:
    paths = ["/a/b/x.dcm", "/a/c/x.dcm", "/c/x.DCM", "/c_x.dcm", "/a/1.2.840.99", "/x/b/x.dcm"]
    names = names_of_reports(paths)
    assert list(names.values()) == ["x", "c_x", "2_x", "3_c_x", "1.2.840.99", "b_x"]
    assert names == names_of_reports(paths)


def test_what_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    scan = write(tmp_path / "in" / "scan.dcm")
    (tmp_path / "in" / "photo.png").write_bytes(png(1))
    (tmp_path / "in" / "broken.dcm").write_bytes(bytes(128) + b"DICM\x02")
    out = tmp_path / "out"
    # Those that can't be read fail alone.
    check_sources([scan, f"{tmp_path}/in/broken.dcm", "away.dcm"], out, [Path(scan)])
    with pytest.raises(SettingsError, match=r"--sr: expected DICOM images, got .*photo.png. Leave out"):
        check_sources([scan, f"{tmp_path}/in/photo.png"], out, [])
    with pytest.raises(SettingsError, match=r"--sr: expected a folder outside the images, got .*/in/out, inside "):
        check_sources([scan], tmp_path / "in" / "out", [tmp_path / "in"])
    for keyword, value, message in (
        ("StudyInstanceUID", "", r"StudyInstanceUID \(0020,000D\): expected a UID\. A"),
        ("SOPClassUID", "1.2.3", r"SOPClassUID \(0008,0016\): expected the UID of a class of the standard"),
    ):
        with pytest.raises(DataError, match=message):
            check_sources([write(tmp_path / "odd.dcm", 1, **{keyword: value})], out, [])
    for name in ("x" * 50, "a\\b", ""):
        with pytest.raises(SettingsError, match="--sr: expected class names of 1 to 49 characters"):
            report_on(out, [scan], served=replace(SERVED, classes=(name, "LAA")))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="name a folder for reports"):
        report_on(tmp_path / "file", [scan])
    assert not out.exists()


def test_the_command_refuses_in_one_line(plurum: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(png(1))
    refused = plurum.refused("predict", tmp_path / "photo.png", "--sr", tmp_path / "out", "--url", "127.0.0.1:1")
    assert f"--sr: expected DICOM images, got {tmp_path}/photo.png" in refused
    for option in (["--sr-by-study"], ["--sr-heatmap", tmp_path]):
        assert f"{option[0]}: expected --sr FOLDER" in plurum.refused("predict", tmp_path / "photo.png", *option)


def test_an_earlier_report_stays_if_the_next_fails(tmp_path: Path) -> None:
    scan = write(tmp_path / "scan.dcm")
    report_on(tmp_path / "out", [scan])
    before = (tmp_path / "out" / "scan.sr.dcm").read_bytes()
    bad = replace(prediction(), probabilities={"CE": cast("float", "many")})
    with pytest.raises(DataError, match="no report can be made from its elements"):
        report_on(tmp_path / "out", [scan], bad)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan.sr.dcm"]
    assert (tmp_path / "out" / "scan.sr.dcm").read_bytes() == before


@pytest.mark.slow
def test_broken_sources_give_a_valid_report_or_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus, writer, path = dicom_corpus(), ReportWriter(SERVED), tmp_path / "scan.dcm"
    refusals = []
    for number in range(150):
        draw = random.Random(number)
        path.write_bytes(broken_dicom(draw, draw.choice(corpus)))
        try:
            report = writer.report(path, [ReportedImage(read_source(path), prediction())])
            report.save_as(io.BytesIO(), enforce_file_format=True)
        except DataError as error:
            refusals.append(str(error))
    assert 0 < len(refusals) < 150
    assert all("\n" not in one for one in refusals)
    assert identifying_values("".join([*refusals, caplog.text]).encode()) == []


@pytest.mark.slow
def test_files_of_pydicom_give_a_valid_report_or_one_line(tmp_path: Path) -> None:
    writer, reported = ReportWriter(SERVED), 0
    for path in pydicom_files():
        with suppress(DataError):
            report = writer.report(path, [ReportedImage(read_source(path), prediction())])
            report.save_as(tmp_path / f"{reported}.dcm", enforce_file_format=True)
            reported += 1
    errors = [(path, line) for path in tmp_path.iterdir() for line in problems(path) if line.startswith("Error")]
    assert errors == []
    assert reported > 50
