"""Stream predictions, and write each as a DICOM report when it arrives, or each study's at the end."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import Any

from plurum.client.bulk.bulk_run import PredictionSource
from plurum.client.connection.payload import AnyImage, without_patient
from plurum.client.connection.predictions import Answer, Failure, Prediction, Served
from plurum.client.connection.requests import Patients
from plurum.client.reports.captures import capture_from_picture
from plurum.client.reports.report_names import names_of_reports
from plurum.client.reports.sources import is_other_format, quiet_dicom, read_source
from plurum.client.reports.structured_reports import ReportedImage, ReportWriter, check_classes
from plurum.dicom_files import file_and_frame
from plurum.errors import ImageError, SettingsError
from plurum.evidence import Evidence
from plurum.files import check_folder, write_bytes
from plurum.regular_files import MAX_IMAGE_BYTES, read_regular

__all__ = ["ReportStream", "check_sources"]


@dataclass
class ReportStream:
    """A stream of predictions for DICOM files that also writes reports, each file atomically.

    Attributes:
        inner: Stream of the predictions.
        served: Description of the served ensemble.
        folder: Folder of the reports.
        paths: All images of the run, on whose order the names of the reports depend.
        by_study: If True, write one report for all images of a study at the end.
        evidence: Members that draw a heat map of each image; None draws none.
        line: Function that shows a line to the user.

    Raises:
        OutputError: the folder can't be written to.
        SettingsError: a class name doesn't fit into a report, or `evidence` is not of the served ensemble.
    """

    inner: PredictionSource
    served: Served
    folder: Path
    paths: Iterable[str]
    by_study: bool = False
    evidence: Evidence | None = None
    line: Callable[[str], None] = lambda _: None
    _studies: dict[str, list[tuple[str, ReportedImage]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_folder(self.folder, "reports")
        check_classes(self.served.classes)
        served = self.served
        if self.evidence and (reason := self.evidence.mismatch(served.classes, served.members, served.checkpoints)):
            raise SettingsError(f"--sr-heatmap: expected the run that is served; {reason}. Name another run.")
        self._names = names_of_reports(self.paths)
        self._writer = ReportWriter(served)

    def stream(
        self, images: Iterator[AnyImage], *, patients: Patients | None = None, batch_size: int | None = None
    ) -> Iterator[Answer]:
        """Yield one result per image, in order, after its report is written; failures have none.

        Raises:
            DataError: a file changed and can't be reported any more.
            OutputError: a report can't be written.
            ServerError: no server responds, the server fails, or it serves no ensemble.
        """
        # The client reads images ahead of their results, so `tee` keeps those in flight.
        first, second = tee(images)
        for answer in self.inner.stream(first, patients=patients, batch_size=batch_size):
            path = str(next(second))
            if not isinstance(answer, Failure):
                self._add(path, answer)
            yield answer
        for (path, image), *others in self._studies.values():
            self._write_report(path, [image, *(other for _, other in others)], "study.sr")

    def _add(self, path: str, prediction: Prediction) -> None:
        file, frame = file_and_frame(path)
        image = ReportedImage(read_source(Path(file)), prediction, None if file == path else frame + 1)
        if self.evidence:
            self._write_map(self.evidence, path, image)
        if self.by_study:
            self._studies.setdefault(image.source.StudyInstanceUID, []).append((path, image))
        else:
            self._write_report(path, [image], "sr")

    def _write_report(self, path: str, images: list[ReportedImage], kind: str) -> None:
        self._write(path, kind, self._writer.report(Path(path), images))

    def _write_map(self, evidence: Evidence, path: str, image: ReportedImage) -> None:
        file, frame = file_and_frame(path)
        try:
            data = without_patient(read_regular(Path(file), MAX_IMAGE_BYTES), frame)
            ensemble = evidence.maps(data, image.prediction.label)[0]
        except (ImageError, OSError, ValueError) as error:
            # Such as a slide, which is never decoded as a whole.
            self.line(f"{path}: no heat map: {getattr(error, 'strerror', None) or error}")
            return
        if ensemble.picture:
            self._write(path, "map", capture_from_picture(Path(path), self._writer, image, ensemble.picture))
        else:
            self.line(f"{path}: no heat map: {ensemble.note}")

    def _write(self, path: str, kind: str, dataset: Any) -> None:
        content = io.BytesIO()
        with quiet_dicom(Path(path)):
            dataset.save_as(content, enforce_file_format=True)
        write_bytes(self.folder / f"{self._names[path]}.{kind}.dcm", content.getvalue(), private=True)


def check_sources(paths: Iterable[str], folder: Path, inputs: Iterable[Path]) -> None:
    """Check that a report on each image can be written to `folder`, before any image is sent.

    Args:
        paths: Images to classify; missing ones fail later.
        folder: Folder of the reports.
        inputs: Files and folders that were given as images.

    Raises:
        DataError: a file does not say which image it is.
        MissingExtraError: highdicom is not installed.
        SettingsError: an image is not DICOM, or `folder` is among the images.
    """
    place = folder.resolve()
    for one in inputs:
        if one.is_dir() and place.is_relative_to(one.resolve()):
            raise SettingsError(
                f"--sr: expected a folder outside the images, got {folder}, inside {one}. Name another."
            )
    former = ""
    for path in paths:
        file, _ = file_and_frame(path)
        if file == former:
            continue
        former = file
        if is_other_format(Path(file)):
            raise SettingsError(f"--sr: expected DICOM images, got {file}. Leave out --sr, or this image.")
        # A file that can't be read fails alone, when it is classified.
        with suppress(ImageError):
            read_source(Path(file))
