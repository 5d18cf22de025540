"""Patient, study and identity of a DICOM file whose prediction is reported.

pydicom parses only the elements that are listed here, after the same checks as for pixels. Messages name tags and never
values, which identify a patient.
"""

from __future__ import annotations

import functools
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plurum.errors import DataError, ImageError, needs_extra
from plurum.images import UnreadableImageError
from plurum.images.dicom_elements import tag_text
from plurum.images.dicom_file import is_dicom
from plurum.images.dicom_writer import with_only_elements
from plurum.regular_files import MAX_IMAGE_BYTES, open_regular, read_regular

__all__ = ["is_other_format", "quiet_dicom", "read_source"]

_ANY_UID = "1.2.3"
# The elements stand near the beginning of a file.
_BEGINNING = 1 << 16
# Elements that every object of the same study repeats, and those that name the image.
_KEYWORDS = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "StudyID",
)
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# Valid values (PS3.5, 6.2); a report has an empty one if the file has an invalid one, or none.
_VALID = {
    "StudyDate": r"\d{8}",
    "PatientBirthDate": r"\d{8}",
    "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
    "PatientSex": "[MFO]",
    "AccessionNumber": r"[^\\]{1,16}",
    "StudyID": r"[^\\]{1,16}",
    "PatientID": r"[^\\]{1,64}",
    "PatientName": r"[^\\]{1,324}",
    "ReferringPhysicianName": r"[^\\]{1,324}",
}
# As above, but left out instead of empty.
_OPTIONAL = {"IssuerOfPatientID": r"[^\\]{1,64}", "StudyDescription": r"[^\\]{1,64}"}


def is_other_format(path: Path) -> bool:
    """Return True if `path` is a file that is not DICOM; a missing one may have been."""
    try:
        with open_regular(path) as file:
            return not is_dicom(file.read(_BEGINNING))
    except (OSError, ValueError):
        return False


def read_source(path: Path) -> Any:
    """Return the elements of a DICOM file that its reports repeat, as a dataset of pydicom.

    Raises:
        DataError: the file does not say which image of the standard it is.
        ImageError: the file can't be read; nor can its pixels.
        MissingExtraError: highdicom is not installed.
    """
    with needs_extra("dicom"):
        import highdicom  # noqa: F401 - before anything is sent
        import pydicom
    tags = frozenset(map(_tag, _KEYWORDS))
    try:
        with open_regular(path) as file:
            beginning = file.read(_BEGINNING)
        try:
            data = with_only_elements(beginning, tags)
        except UnreadableImageError:
            # A long element stands before the last, or the file is deflated.
            data = with_only_elements(read_regular(path, MAX_IMAGE_BYTES), tags)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    with quiet_dicom(path):
        return _source(path, pydicom.dcmread(io.BytesIO(data)))


def _source(path: Path, found: Any) -> Any:
    import pydicom

    source = pydicom.Dataset()
    for keyword in _REQUIRED:
        uid = pydicom.uid.UID(_text(found, keyword))
        if not (uid.is_valid and uid) or (keyword == "SOPClassUID" and not _is_known(uid)):
            expected = "the UID of a class of the standard" if keyword == "SOPClassUID" else "a UID"
            name = tag_text(_tag(keyword)).removeprefix(f"{keyword} ")
            raise DataError(f"{path}: {keyword} {name}: expected {expected}. A report needs it to name the image")
        setattr(source, keyword, uid)
    for keyword, valid in (_VALID | _OPTIONAL).items():
        text = _text(found, keyword)
        text = text if text.isprintable() and re.fullmatch(valid, text) else ""
        if text or keyword in _VALID:
            setattr(source, keyword, text)
    return source


def _tag(keyword: str) -> int:
    from pydicom.datadict import tag_for_keyword

    return tag_for_keyword(keyword) or 0


@functools.cache
def _is_known(sop_class: str) -> bool:
    """Return True if highdicom knows which elements objects of a class share with a report."""
    import highdicom
    import pydicom

    source = pydicom.Dataset()
    source.SOPClassUID, source.SOPInstanceUID = sop_class, _ANY_UID
    uids = dict.fromkeys(("study_instance_uid", "series_instance_uid", "sop_instance_uid"), _ANY_UID)
    report = highdicom.SOPClass(
        **uids, sop_class_uid=pydicom.uid.ComprehensiveSRStorage, series_number=1, instance_number=1, modality="SR"
    )
    try:
        report.copy_patient_and_study_information(source)
    except KeyError:
        return False
    return True


def _text(found: Any, keyword: str) -> str:
    """Return the text of an element; empty if it is missing, or has several values or numbers."""
    value = found.get(keyword, "")
    return str(value).strip() if isinstance(value, str) or keyword.endswith("Name") else ""


@contextmanager
def quiet_dicom(path: Path) -> Iterator[None]:
    """Run the block without the warnings and records of pydicom and highdicom, which may show a patient's name.

    Raises:
        DataError: the block fails; without the cause, whose text may show it too.
    """
    loggers = [logging.getLogger(name) for name in ("highdicom", "pydicom")]
    former = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no report can be made from its elements: {type(error).__name__}") from None
    finally:
        for one, level in zip(loggers, former, strict=True):
            one.setLevel(level)
