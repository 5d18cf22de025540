"""Text about the operating point of a fit."""

from __future__ import annotations

from plurum.figures import PointScores
from plurum.sentences import figure_text, percent_text, point_text
from plurum.training.fitting.report import FitReport

__all__ = ["point_lines"]


def point_lines(report: FitReport) -> list[str]:
    """Return the operating point of a fit and its figures; nothing without a point."""
    point = report.ensemble.operating_point
    if point is None or report.decisions is None:
        return []
    lines = [f"operating point: {point_text(point)}"]
    for split, scores in report.decisions.items():
        lines += _figure_lines(split, scores)
    return lines


def _figure_lines(split: str, scores: PointScores) -> list[str]:
    groups = {
        f"all {split} images": scores.images,
        f"{split} images without review": scores.unreviewed,
        f"{split} patients": scores.patients,
    }
    lines = []
    for name, figures in groups.items():
        if figures is not None:
            said = ", ".join(
                f"{title} {percent_text(getattr(figures, field))}"
                for field, title in (
                    ("sensitivity", "sensitivity"),
                    ("specificity", "specificity"),
                    ("ppv", "PPV"),
                    ("npv", "NPV"),
                )
            )
            lines.append(f"{name} ({figures.number:,}): {said}")
    if scores.cost is not None and scores.usual_cost is not None:
        lines.append(
            f"{split}: a decision costs {figure_text(scores.cost)} on average; by the most probable class, "
            f"{figure_text(scores.usual_cost)}"
        )
    return lines
