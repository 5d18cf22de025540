"""DICOM files as data: their frames, and names of their patients, which are pseudonyms or PatientID itself.

A pseudonym is the start of HMAC-SHA256 (RFC 2104) of PatientID with a secret key. With the same key, a patient has the
same pseudonym in training and prediction. Without the key, nobody can find the ID, or test a guess.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from plurum.errors import DataError, SettingsError
from plurum.files import write_text
from plurum.images import FORMATS, UnreadableImageError
from plurum.images.dicom_file import DicomHeading, is_dicom, read_heading
from plurum.regular_files import MAX_IMAGE_BYTES, MAX_SECRET_BYTES, open_regular, read_regular

__all__ = ["PatientNames", "default_key_file", "file_and_frame", "frame_names", "heading_from_file"]

# 128 bits: two patients of millions never share them.
_DIGITS = 32
_KEY_BYTES = 32
# PatientID and NumberOfFrames stand near the beginning of a file.
_BEGINNING = 1 << 16
# DICOM files may have any name, but hardly that of another format.
_OTHERS = frozenset(suffix for name, one in FORMATS.items() if name != "DICOM" for suffix in one.suffixes)


def default_key_file() -> Path:
    """Return the file of the user's key, which may be missing."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "plurum" / "pseudonym.key"


def heading_from_file(path: Path) -> DicomHeading | None:
    """Return patient and frames of a DICOM file; None for other files and unreadable ones, whose decoding says why."""
    if path.suffix.lower() in _OTHERS:
        return None
    try:
        with open_regular(path) as file:
            beginning = file.read(_BEGINNING)
        if not is_dicom(beginning):
            return None
        try:
            return read_heading(beginning)
        except UnreadableImageError:
            # A long element stands before NumberOfFrames, or the file is deflated.
            return read_heading(read_regular(path, MAX_IMAGE_BYTES))
    except (OSError, ValueError):
        return None


def frame_names(path: str) -> list[str]:
    """Return the name of each frame of a DICOM file of several, `FILE#frame=0`; of any other file, its path.

    The frames of a whole-slide image are its tiles, so it has one name.
    """
    heading = heading_from_file(Path(path))
    if heading is None or heading.frames == 1 or heading.slide:
        return [path]
    return [f"{path}#frame={frame}" for frame in range(heading.frames)]


def file_and_frame(name: str) -> tuple[str, int]:
    """Return path and frame of a name from `frame_names`; a name without a frame is a path, with frame 0."""
    path, mark, frame = name.rpartition("#frame=")
    if not mark or not re.fullmatch("[0-9]{1,9}", frame) or os.path.lexists(name):
        return name, 0
    return path, int(frame)


@dataclass
class PatientNames:
    """Names of patients for DICOM files.

    Attributes:
        key_file: File of the key, made when it is first needed; None takes `default_key_file`.
        keep_ids: If True, names are the PatientIDs themselves.
    """

    key_file: Path | None = None
    keep_ids: bool = False
    _key: bytes = field(default=b"", repr=False)

    def name(self, path: Path) -> str:
        """Return the name of the patient of a file; empty if it is not DICOM, or states no patient.

        Raises:
            SettingsError: the key can't be read or made, or others may read it.
            DataError: PatientID is kept and can't be shown.
        """
        heading = heading_from_file(path)
        if heading is None or not heading.patient:
            return ""
        patient = heading.patient
        if self.keep_ids:
            return _text(path, patient)
        return hmac.digest(self._read_key(), patient, "sha256").hex()[:_DIGITS]

    def _read_key(self) -> bytes:
        if not self._key:
            file = self.key_file or default_key_file()
            try:
                self._key = _key_from_file(file)
            except OSError as error:
                raise SettingsError(
                    f"--pseudonym-key-file: expected a file that can be read or made, got {file}: {error.strerror}. "
                    f"Name another file, or keep the IDs with --keep-patient-ids"
                ) from error
        return self._key


def _key_from_file(file: Path) -> bytes:
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        hidden = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        write_text(hidden, secrets.token_hex(_KEY_BYTES) + "\n", private=True)
        try:
            # Another process may have made it meanwhile; then its key counts.
            os.link(hidden, file)
        except FileExistsError:
            pass
        finally:
            hidden.unlink()
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise SettingsError(
            f"--pseudonym-key-file: expected a file that only its owner can read, got {file}. Run: chmod 600 {file}"
        )
    text = read_regular(file, MAX_SECRET_BYTES).strip()
    if not re.fullmatch(rb"[0-9a-f]{64}", text):
        raise SettingsError(f"--pseudonym-key-file: expected 64 hexadecimal digits, got another content in {file}")
    return bytes.fromhex(text.decode())


def _text(path: Path, patient: bytes) -> str:
    try:
        text = patient.decode()
    except UnicodeDecodeError:
        text = patient.decode("latin-1")
    if not text.isprintable():
        raise DataError(f"{path}: PatientID (0010,0020): expected printable letters. Leave out --keep-patient-ids")
    return text
