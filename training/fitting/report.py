"""Report of a fit, and text about its operating point."""

from __future__ import annotations

from typing import Literal

from plurum.figures import PointScores
from plurum.promises.review import TriedLimit
from plurum.sentences import figure_text, percent_text, point_text
from plurum.spec import Ensemble, Metadata, RefusedPromise, Scores
from plurum.training.fitting.outliers import OutlierFit
from plurum.training.statistics.curves import Curve
from plurum.training.statistics.metrics import METRICS
from plurum.training.statistics.results import CascadeScores, Estimate, PatientLevel
from plurum.training.statistics.wording import significant_change

__all__ = ["CascadeFit", "FitReport", "MemberFit", "point_lines"]

FittedSplit = Literal["validation", "test"]


class MemberFit(Metadata):
    """Result of a fit for one member of the run.

    Attributes:
        weight: Weight in the vote; 0 for a member that was left out.
        contribution: Increase of the vote's validation NLL without the member, in nats, with its 95 % interval, as
            computed last. None for a single member. With folds, out of fold, and without all members of its model.
        scores: Scores of the member alone, by split.
    """

    weight: float
    contribution: Estimate | None
    scores: dict[FittedSplit, Scores]


class CascadeFit(Metadata):
    """Result of fitting a cascade.

    Attributes:
        lines: Results as lines of text: what is promised, or why no cascade was fitted.
        scores: Figures of the cascade on test images; None without one.
    """

    lines: tuple[str, ...]
    scores: CascadeScores | None = None


class FitReport(Metadata):
    """Report of a fit.

    With a prior, images are weighted by the ratio of their class's frequency in service to that in the data. This does
    not apply to the figures of contributions, weights and patients.

    Attributes:
        version: Version of the file format.
        ensemble: Contents of `ensemble.json`.
        members: Results of all members of the run by name, selected or not.
        select: Method of member selection.
        weights_tried: Weights fitted for the selected members, by name, whether or not they are used; None for a
            stacked vote.
        nll_saved: 95 % interval of the validation NLL that these weights, or stacking, save against equal weights, in
            nats; each image is predicted by a fit without its patient.
        reviewed: Fraction of predictions that need review, by split.
        covered: Fraction of images whose prediction set contains the true class, by split.
        risk_coverage: Risk–coverage curve of the validation images.
        best_single: Member with the lowest NLL on validation images, each with its own temperature.
        differences: Ensemble minus best member on test images, by `accuracy` and `nll`, with 95 % intervals.
        patient_level: Scores of test images by patient; None if no patient is known.
        prior: Class frequencies that the vote is corrected for, by class; None without correction.
        promise_line: Result of the certification in a sentence; None without certification patients.
        refused_promise: Certification that no review limit passed; None without a refusal.
        unfinished: Names of planned members whose training is unfinished.
        decisions: Figures of the decisions at the operating point, by split; None without one.
        outliers: Result of fitting the outlier test; None if the settings disable it.
        rates: Curves of the positive class's threshold → sensitivity and specificity of the validation images; None
            without an operating point of two classes.
        tried_limits: Review limits that the certification tested, the strictest first; empty if a cascade's exits were
            tested with them.
        cascade: Result of fitting a cascade; None if none was requested.
        folds: Number of folds; None without. Members' contributions and weights are then fitted out of fold.
    """

    version: Literal[1] = 1
    ensemble: Ensemble
    members: dict[str, MemberFit]
    select: Literal["backward", "greedy", "all"]
    weights_tried: dict[str, float] | None
    nll_saved: tuple[float, float]
    reviewed: dict[FittedSplit, float]
    covered: dict[FittedSplit, float]
    risk_coverage: Curve
    best_single: str
    differences: dict[str, Estimate]
    patient_level: PatientLevel | None
    prior: dict[str, float] | None
    promise_line: str | None = None
    refused_promise: RefusedPromise | None = None
    unfinished: tuple[str, ...] = ()
    decisions: dict[FittedSplit, PointScores] | None = None
    outliers: OutlierFit | None = None
    rates: dict[Literal["sensitivity", "specificity"], Curve] | None = None
    tried_limits: tuple[TriedLimit, ...] = ()
    cascade: CascadeFit | None = None
    folds: int | None = None

    @property
    def outcome(self) -> Literal["better", "no different", "mixed", "worse"]:
        """Statistically significant difference of the ensemble from its best member on test images."""
        said = {significant_change(figure, METRICS[name].better) for name, figure in self.differences.items()} - {""}
        if len(said) == 2:
            return "mixed"
        return "better" if "better" in said else "worse" if "worse" in said else "no different"

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the members that are not in the ensemble."""
        kept = {member.name for member in self.ensemble.members}
        return tuple(name for name in self.members if name not in kept)


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
