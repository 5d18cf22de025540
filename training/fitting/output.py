"""Write the files of a fit into a run's report folder."""

from __future__ import annotations

from pathlib import Path

from plurum.files import write_bytes, write_text
from plurum.training.fitting.report import FitReport

__all__ = ["write_fit"]


def write_fit(report: FitReport, folder: Path) -> tuple[Path, ...]:
    """Write `fit.json`, `fit_members.png` and `fit_review.png` into `folder`, each atomically.

    Returns:
        Paths of the files.

    Raises:
        OutputError: `folder` is a file or can't be written.
        MissingExtraError: matplotlib is not installed.
    """
    from plurum.training.fitting.plots import plots_from_fit

    paths = [folder / "fit.json"]
    write_text(paths[0], report.model_dump_json(indent=1) + "\n")
    for name, picture in plots_from_fit(report).items():
        paths.append(folder / f"{name}.png")
        write_bytes(paths[-1], picture)
    return tuple(paths)
