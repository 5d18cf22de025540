"""The stream of predictions that `plurum predict` makes with its options for DICOM reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plurum.settings.client import ReportOptions

if TYPE_CHECKING:
    from plurum.client import Listing, Served
    from plurum.client.bulk.bulk_run import PredictionSource
    from plurum.client.bulk.journal import EarlierResults

__all__ = ["check_reports", "check_resumed", "journal_settings", "report_stream"]


def check_reports(options: ReportOptions, listing: Listing, inputs: list[Path]) -> None:
    """Check the options and the images, before a server is contacted.

    Raises:
        DataError: a file does not say which image it is.
        MissingExtraError: highdicom is not installed.
        SettingsError: an option is given without --sr, an image is not DICOM, or the folder is among the images.
    """
    from plurum.client.reports.report_stream import check_sources
    from plurum.errors import SettingsError

    if options.sr is not None:
        check_sources(listing, options.sr, inputs)
    elif options.sr_by_study or options.sr_heatmap is not None:
        option = "--sr-by-study" if options.sr_by_study else "--sr-heatmap"
        raise SettingsError(f"{option}: expected --sr FOLDER beside it, got none. Add --sr, or leave out {option}.")


def check_resumed(options: ReportOptions, found: EarlierResults) -> None:
    """Check that no prediction that a report needs comes from an earlier run.

    Raises:
        SettingsError: one does.
    """
    from plurum.errors import SettingsError

    if options.sr_by_study and found.answered:
        raise SettingsError(
            f"--sr-by-study: expected all predictions from one run, got {found.answered:,} from an interrupted one. "
            "Add --fresh to start again, or leave out --sr-by-study."
        )


def journal_settings(options: ReportOptions) -> dict[str, Any]:
    """Return the settings that the reports of a run depend on, for the journal; empty without reports."""
    chosen = {name: str(value) for name, value in options if value}
    return {"reports": chosen} if chosen else {}


def report_stream(
    stream: PredictionSource, served: Served, options: ReportOptions, listing: Listing, line: Callable[[str], None]
) -> PredictionSource:
    """Return `stream`, or one that also writes reports."""
    if options.sr is None:
        return stream
    from plurum.client.reports.report_stream import ReportStream
    from plurum.evidence import Evidence
    from plurum.run import Run

    return ReportStream(
        inner=stream,
        served=served,
        folder=options.sr,
        paths=listing,
        by_study=options.sr_by_study,
        evidence=None if options.sr_heatmap is None else Evidence(Run(options.sr_heatmap)),
        line=line,
    )
