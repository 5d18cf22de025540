"""Predictions as DICOM Structured Reports (PS3.16, TID 1500), with a measurement group (TID 1501) for each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plurum import __version__
from plurum.client.connection.predictions import Prediction, Served
from plurum.client.reports.sources import quiet_dicom
from plurum.errors import SettingsError

__all__ = ["SCHEME", "ReportWriter", "ReportedImage", "check_classes"]

# Designator of the codes below; 99 marks a private scheme (PS3.16, section 8).
SCHEME = "99PLURUM"
# The number tells series of reports from a scanner's.
_SERIES_NUMBER = 9901
# A meaning has at most 64 characters, such as "Probability of CE".
_PROBABILITY, _MAX_MEANING = "Probability of {}", 64
_REASONS = {
    "confidence": "Confidence or operating point",
    "set": "Several classes can't be ruled out",
    "outlier": "Unlike the reference images",
}


@dataclass(frozen=True)
class ReportedImage:
    """A prediction to report, and where it comes from.

    Attributes:
        source: Elements of the file, from `read_source`.
        prediction: The prediction.
        frame: Frame of the file, from 1; None for a file of one frame, or a slide.
    """

    source: Any
    prediction: Prediction
    frame: int | None = None


@dataclass
class ReportWriter:
    """Makes the reports of a run: those of one study share a series.

    Attributes:
        served: Description of the served ensemble.
    """

    served: Served
    _series: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)

    def report(self, path: Path, images: Sequence[ReportedImage]) -> Any:
        """Return a report on images of one study, as a dataset of pydicom.

        Args:
            path: File of the first image, for messages.
            images: Images of the same study.

        Raises:
            DataError: the elements of a file make no valid report.
        """
        with quiet_dicom(path):
            from highdicom import UID, coding_schemes, sr

            evidence = {image.source.SOPInstanceUID: image.source for image in images}
            series, number = self.place(images[0].source, "SR")
            return sr.ComprehensiveSR(
                evidence=list(evidence.values()),
                content=self._content(images)[0],
                series_instance_uid=series,
                series_number=_SERIES_NUMBER,
                series_description="Plurum predictions",
                sop_instance_uid=UID(),
                instance_number=number,
                manufacturer="Plurum",
                manufacturer_model_name="Plurum",
                software_versions=__version__,
                is_complete=True,
                specific_character_set="ISO_IR 192",
                coding_schemes=[coding_schemes.CodingSchemeIdentificationItem(SCHEME, name="Plurum")],
            )

    def place(self, source: Any, modality: str) -> tuple[str, int]:
        """Return the UID of the series of a study's objects of a modality, and the number of the next one, from 1."""
        from highdicom import UID

        key = (source.StudyInstanceUID, modality)
        series, number = self._series.get(key, (UID(), 0))
        self._series[key] = (series, number + 1)
        return series, number + 1

    def _content(self, images: Sequence[ReportedImage]) -> Any:
        from highdicom import sr
        from pydicom.sr.codedict import codes
        from pydicom.uid import generate_uid

        device = sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=["Plurum", _ensemble(self.served)]),
            name="Plurum",
            manufacturer_name="Plurum",
            model_name=_ensemble(self.served),
        )
        observer = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
        return sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=observer),
            procedure_reported=sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
            imaging_measurements=[self._group(image) for image in images],
        )

    def _group(self, image: ReportedImage) -> Any:
        from highdicom import UID, sr

        prediction, source = image.prediction, image.source
        frames = None if image.frame is None else [image.frame]
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(uid=UID(), identifier="Plurum prediction"),
            algorithm_id=sr.AlgorithmIdentification(
                name=_ensemble(self.served),
                version=prediction.release or self.served.metadata_sha256 or "unknown",
                parameters=[f"members: {', '.join(self.served.members)}"],
            ),
            measurements=list(_measurements(prediction)),
            qualitative_evaluations=list(_evaluations(prediction)),
            source_images=[
                sr.SourceImageForMeasurementGroup(
                    source.SOPClassUID, source.SOPInstanceUID, referenced_frame_numbers=frames
                )
            ],
        )


def check_classes(classes: Iterable[str]) -> None:
    """Check that class names fit into coded values.

    Raises:
        SettingsError: a name is too long, or has a character that such a value can't have.
    """
    most = _MAX_MEANING - len(_PROBABILITY.format(""))
    for name in classes:
        if not (0 < len(name) <= most and name.isprintable() and "\\" not in name):
            raise SettingsError(f"--sr: expected class names of 1 to {most} characters without \\, got {name!r}.")


def _ensemble(served: Served) -> str:
    return served.name or f"ensemble of {len(served.members)} models"


def _measurements(prediction: Prediction) -> Iterable[Any]:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    numbers = {
        (f"PROBABILITY_{index}", _PROBABILITY.format(name)): value
        for index, (name, value) in enumerate(prediction.probabilities.items())
    }
    if prediction.outlier is not None:
        numbers["OUTLIER", "P-value of the outlier test"] = prediction.outlier
    for (value, meaning), number in numbers.items():
        # Six decimals, the precision of 32-bit numbers, as in CSV files.
        yield sr.Measurement(name=_code(value, meaning), value=round(number, 6), unit=codes.UCUM.NoUnits)


def _evaluations(prediction: Prediction) -> Iterable[Any]:
    from highdicom import sr

    for name, value in _findings(prediction):
        yield sr.QualitativeEvaluation(name=_code(*name), value=value)


def _findings(prediction: Prediction) -> Iterable[tuple[tuple[str, str], Any]]:
    """Yield the name and the coded value of everything but numbers."""
    from pydicom.sr.codedict import codes

    classes = {name: _code(f"CLASS_{index}", name) for index, name in enumerate(prediction.probabilities)}
    truths = {True: codes.SCT.Yes, False: codes.SCT.No}
    # If the server hides its config, the names of the classes are numbers, unlike the label.
    yield ("LABEL", "Predicted class"), classes.get(prediction.label) or _code("CLASS", prediction.label)
    for name in prediction.prediction_set:
        yield ("SET", "Class in the prediction set"), classes[name]
    yield ("REVIEW", "Needs review"), truths[prediction.review]
    for reason in prediction.review_reason or ():
        yield ("REASON", "Reason for review"), _code(reason.upper(), _REASONS.get(reason, reason))
    if prediction.audit is not None:
        yield ("AUDIT", "Drawn for audit"), truths[prediction.audit]


def _code(value: str, meaning: str) -> Any:
    from highdicom import sr

    return sr.CodedConcept(value, SCHEME, meaning)
