"""Certifications that exports of a run refused, in RUN/report/refused_exports.json.

A refused export writes no repository. But it has looked at the certification patients, so that a later promise on them
is less certain than stated; model cards say so.
"""

from __future__ import annotations

import logging
from typing import Literal

from pydantic import ValidationError

from plurum.errors import CertificationError, OutputError
from plurum.export.settings import Precision
from plurum.files import sha256_of
from plurum.regular_files import read_regular
from plurum.run import Run
from plurum.spec import Metadata, RefusedPromise, Sha256, write_metadata

__all__ = ["RefusedExport", "read_refusals", "record_refusal"]

_FILE = "refused_exports.json"


class RefusedExport(Metadata):
    """Certification that an export refused.

    Attributes:
        precision: Coarsest precision of the graphs.
        is_fused: True if the fused graph was certified too.
        promise: Promise that the graphs did not keep.
    """

    precision: Precision
    is_fused: bool
    promise: RefusedPromise


class _RefusedExports(Metadata):
    """Content of the file.

    Attributes:
        version: Version of this format.
        ensemble_sha256: SHA-256 of the `ensemble.json` that was exported.
        exports: Refused exports, at most one for each precision and form.
    """

    version: Literal[1] = 1
    ensemble_sha256: Sha256
    exports: tuple[RefusedExport, ...]


def read_refusals(run: Run) -> tuple[RefusedExport, ...]:
    """Return the refused exports of the run's present fit; empty without any, or if the file can't be read."""
    try:
        found = _RefusedExports.model_validate_json(read_regular(run.report_folder / _FILE))
    except (OSError, ValidationError):
        return ()
    return found.exports if found.ensemble_sha256 == sha256_of(run.ensemble_file) else ()


def record_refusal(run: Run, error: CertificationError) -> None:
    """Add a refused export to the run's file; a run that can't be written to gets a warning."""
    if error.refused is None:
        return
    one = RefusedExport.model_validate(error.refused)
    others = [
        found for found in read_refusals(run) if (found.precision, found.is_fused) != (one.precision, one.is_fused)
    ]
    exports = sorted([*others, one], key=lambda found: (found.precision, found.is_fused))
    try:
        file = _RefusedExports(ensemble_sha256=sha256_of(run.ensemble_file), exports=tuple(exports))
        write_metadata(run.report_folder / _FILE, file)
    except OutputError as failure:
        logging.getLogger(__name__).warning("the refused export is not recorded: %s", failure)
