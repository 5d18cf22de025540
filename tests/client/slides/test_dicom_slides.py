"""Whole-slide images in DICOM: read by OpenSlide, one image whatever its files, and never sent."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from plurum.client import EnsembleClient, Prediction, listing_from_names
from plurum.client.reports.report_stream import ReportStream, check_sources
from plurum.client.slides.slide_stream import SlideStream, is_slide
from plurum.client.slides.slides import SlideSettings
from plurum.evidence import Evidence
from plurum.images import UnreadableImageError, open_image
from plurum.slides.scanners import ScannerSlide, open_slide
from tests.client.slides.dicom_slide import write_dicom_slide
from tests.client.slides.painter import PURPLE, Painter
from tests.client.slides.slide_writer import GLASS, TISSUE
from tests.images.dicom_files import PLANTED, dicom, pydicom

pytest.importorskip("openslide")


@pytest.fixture
def pixels() -> npt.NDArray[np.uint8]:
    """Glass with a disc of tissue, and a purple square in it."""
    rows, columns = np.mgrid[:600, :700]
    found = np.full((600, 700, 3), GLASS, np.uint8)
    found[(rows - 300) ** 2 + (columns - 350) ** 2 < 200**2] = TISSUE
    found[260:340, 310:390] = PURPLE
    return found


def test_levels_in_files_of_a_series(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    for path in write_dicom_slide(tmp_path, pixels, 2, 0.5):
        assert is_slide(path)
        with ExitStack() as stack:
            slide = open_slide(path, stack)
            assert isinstance(slide, ScannerSlide)
            assert [(level.width, level.height) for level in slide.levels] == [(700, 600), (350, 300)]
            assert slide.microns_per_pixel == pytest.approx(0.5)
            np.testing.assert_array_equal(slide.region(200, 250, 300, 90), pixels[250:340, 200:500])
    assert not is_slide(tmp_path / "away.dcm")
    (tmp_path / "scan").write_bytes(dicom(np.zeros((16, 16), np.uint8)))
    assert not is_slide(tmp_path / "scan")


def test_a_slide_is_one_image_with_one_report(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    first, second = write_dicom_slide(tmp_path / "in", pixels, 2, 0.5)
    listing = listing_from_names([tmp_path / "in", second])
    assert list(listing) == [str(first)]
    pytest.importorskip("highdicom")
    check_sources(listing, tmp_path / "out", [tmp_path / "in"])
    client = cast("EnsembleClient", Painter())
    stream = SlideStream(client, SlideSettings())
    said: list[str] = []
    evidence = cast("Evidence", SimpleNamespace(mismatch=lambda *_: ""))
    reports = ReportStream(stream, client.served, tmp_path / "out", listing, evidence=evidence, line=said.append)
    (answer,) = reports.stream(iter(listing))
    assert said[0].startswith(f"{first}: no heat map: DICOM: SOPClassUID (0008,0016): is a whole-slide image")
    assert isinstance(answer, Prediction)
    report = pydicom.dcmread(tmp_path / "out" / "level0.sr.dcm")
    (series,) = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"{PLANTED['SOPInstanceUID']}.0"


def test_elsewhere_it_is_refused_by_name(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    (path,) = write_dicom_slide(tmp_path, pixels, 1, 0.5)
    with pytest.raises(UnreadableImageError, match=r"SOPClassUID \(0008,0016\): is a whole-slide image, which only"):
        open_image(path.read_bytes())
