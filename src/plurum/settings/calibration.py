"""Settings of a calibration on a site's images."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Annotated

from pydantic import Field

from plurum.settings.options import Option, Settings
from plurum.settings.training import Draws, Seed, Text

__all__ = ["CalibrateSettings"]

_PATIENTS = Option(panel="Patients", metavar="FILE")


class CalibrateSettings(Settings):
    """Settings of a calibration on a site's images.

    Attributes:
        on: Labelled images of the site: a .csv file with columns path, label and, where known, patient and
            sampling_probability, such as the corrections that `plurum ui` exports; a folder; or a .npz file, as for
            `plurum train`.
        name: Name of the site and of its folder, RUN/sites/NAME. By default, the name of the file or folder.
        draws: Bootstrap resamples, by patient, for the confidence intervals.
        seed: Random seed of folds and bootstrap.
        pseudonym_key_file: Key of the pseudonyms that stand for the PatientIDs of DICOM images, as in training; made if
            it is missing. By default, `pseudonym.key` in the user's configuration.
        keep_patient_ids: If True, take the PatientIDs of DICOM images themselves as patients, as in training.
    """

    on: Annotated[Text, Option(metavar="DATA")]
    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"), Option(metavar="SITE")] = None
    draws: Draws = 1000
    seed: Seed = 0
    pseudonym_key_file: Annotated[Path | None, _PATIENTS] = None
    keep_patient_ids: Annotated[bool, _PATIENTS] = False

    @property
    def site(self) -> str:
        """Name of the site, restricted to the characters that a folder may have."""
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePath(self.on).stem).strip("-._")[:100]
        return self.name or name or "site"
