"""Write the files of a fit into a run's report folder."""

from __future__ import annotations

from pathlib import Path

from plurum.files import write_bytes, write_text
from plurum.training.fitting.report import FitReport

__all__ = ["write_fit"]


def write_fit(report: FitReport, folder: Path) -> tuple[Path, ...]:
    """Write `fit.json` and the plots of the fit, `fit_*.png`, into `folder`, each atomically.

    Plots of an earlier fit that this one lacks are removed.

    Returns:
        Paths of the files.

    Raises:
        OutputError: `folder` is a file or can't be written.
        MissingExtraError: matplotlib is not installed.
    """
    from plurum.training.fitting.plots import PLOTS, plots_from_fit

    paths = [folder / "fit.json"]
    write_text(paths[0], report.model_dump_json(indent=1) + "\n")
    pictures = plots_from_fit(report)
    for name in PLOTS:
        path = folder / f"{name}.png"
        if name in pictures:
            write_bytes(path, pictures[name])
            paths.append(path)
        else:
            path.unlink(missing_ok=True)
    return tuple(paths)
