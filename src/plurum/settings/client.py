"""Settings of the review page, and of slides and reports in `plurum predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from plurum.settings.options import NOT_AN_OPTION, Option, Settings

__all__ = ["ReportOptions", "SlideOptions", "UiSettings"]

_SLIDES = "Slides: images too large to send"
_REPORTS = "DICOM Structured Reports"


class UiSettings(Settings):
    """Settings of the review page.

    Attributes:
        host: Address to listen on. There is NO login: everyone who can connect sees all images.
        port: Port to listen on; 0 takes a free one.
        max_image_mib: Largest image file in MiB.
        recent_mib: Memory for images that are not sent to review yet, in MiB.
        uploads: Largest number of images decoded and sent to the server at the same time; others wait.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8085
    max_image_mib: Annotated[int, Field(ge=1)] = 64
    recent_mib: Annotated[int, Field(ge=1), NOT_AN_OPTION] = 256
    uploads: Annotated[int, Field(ge=1), NOT_AN_OPTION] = 4


class SlideOptions(Settings):
    """Options of `plurum predict` for slides.

    Attributes:
        folder: Save each slide's heat maps, tile table and prediction to FOLDER/NAME.
        microns_per_pixel: Pixel size at which tiles are cut, in µm. By default, the file's own.
        file_microns_per_pixel: Pixel size of the file in µm, if its metadata do not state it.
        tile_size: Side of a tile in pixels; use that of the training. By default, the server's input size.
        heat_class: Class whose probability the heat map shows. By default, each slide's predicted class.
        every: If True, cut every image into tiles, whatever its size.
    """

    folder: Annotated[Path | None, Option("--slides", panel=_SLIDES, metavar="FOLDER")] = None
    microns_per_pixel: Annotated[float | None, Field(gt=0, allow_inf_nan=False), Option(panel=_SLIDES)] = None
    file_microns_per_pixel: Annotated[float | None, Field(gt=0, allow_inf_nan=False), Option(panel=_SLIDES)] = None
    tile_size: Annotated[int | None, Field(ge=8, le=8_000), Option(panel=_SLIDES)] = None
    heat_class: Annotated[str | None, Option(panel=_SLIDES)] = None
    every: Annotated[bool, Option("--slide", panel=_SLIDES)] = False


class ReportOptions(Settings):
    """Options of `plurum predict` for DICOM reports.

    Attributes:
        sr: Save a DICOM Structured Report on each image to FOLDER; needs DICOM images.
        sr_by_study: If True, save one report for all images of a study, at the end.
        sr_heatmap: Fitted run that is served; saves a Grad-CAM map of each image as a DICOM Secondary Capture, too.
    """

    sr: Annotated[Path | None, Option(panel=_REPORTS, metavar="FOLDER")] = None
    sr_by_study: Annotated[bool, Option(panel=_REPORTS)] = False
    sr_heatmap: Annotated[Path | None, Option(panel=_REPORTS, metavar="RUN")] = None
