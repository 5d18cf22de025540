"""Compare an artefact's predictions with PyTorch's; only artefacts that pass are published.

Both predict the same held-out labelled images. Labels, probabilities, accuracy, NLL, calibration and review flags may
change within a budget. The uncertainty of a vote must equal what `plurum.voting` computes from the same members'
probabilities, in any precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from plurum.errors import ParityError
from plurum.export.settings import MEMBER_SLACK, Budget, Precision
from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.outputs import VOTED
from plurum.predictions.scores import calibration_error, compute_losses
from plurum.voting import Verdict, VotingRule, decide

__all__ = ["Parity", "check_parity", "member_parity", "stack_novelty", "verdict_from_members", "vote_parity"]


# Outputs that follow from the members' probabilities and round like them.
_UNCERTAINTIES = [
    output.field for output in VOTED.values() if output.datatype == "FP32" and "PROBABILITIES" not in output.name
]
# In nats: far above float32 rounding, far below the effect of a wrong sum.
_UNCERTAINTY_LIMIT = 1e-3


class Parity(BaseModel):
    """Differences between an artefact's predictions and PyTorch's on the same labelled images.

    Attributes:
        subject: A member's name, `vote`, `ensemble_fused`, or `stage 1` and so on of a cascade.
        precision: Precision of the artefact; for a vote, the coarsest of its members.
        images: Number of images.
        flips: Number of images whose label changed.
        review_flips: Number of images whose review flag changed; None for a member.
        uncertainty_difference: Largest difference of an entropy, a disagreement (both in nats) or a standard deviation
            from the value that `plurum.voting` computes from the artefact's member probabilities; None for a member.
        outlier_change: Mean change of an image's rank by novelty, as a fraction of the images; for a vote, of its
            p-value, each against the reference of its own graphs. None without a detector.
        max_difference: Largest difference of any probability, 0 to 1.
        mean_difference: Mean over images of each image's largest difference.
        accuracy: Accuracy of PyTorch's predictions, 0 to 1.
        accuracy_change: Accuracy of the artefact minus PyTorch's.
        nll_change: Mean negative log-likelihood of the artefact minus PyTorch's, in nats.
        ece_change: Expected calibration error of the artefact minus PyTorch's.
        faults: Limits of the budget that were exceeded, in words; empty if the artefact may be published.
    """

    model_config = ConfigDict(frozen=True)

    subject: str
    precision: Precision
    images: int
    flips: int
    review_flips: int | None = None
    uncertainty_difference: float | None = None
    outlier_change: float | None = None
    max_difference: float
    mean_difference: float
    accuracy: float
    accuracy_change: float
    nll_change: float
    ece_change: float
    faults: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if the artefact may be published."""
        return not self.faults


def member_parity(
    name: str,
    precision: Precision,
    original: Floats,
    exported: Floats,
    labels: Ints,
    budget: Budget,
    novelty: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
) -> Parity:
    """Compare a member's probabilities with PyTorch's.

    Args:
        name: Name of the member.
        precision: Precision of the artefact.
        original: Probabilities of the PyTorch model, `[images, classes]`.
        exported: Probabilities of the artefact, `[images, classes]`.
        labels: True classes, `[images]`.
        budget: Budget of the vote; a member may differ `MEMBER_SLACK` times as much.
        novelty: Novelty of the images by the PyTorch model and by the artefact, `[images]` each; None without a
            detector.
    """
    slack = {
        field: min(1.0, getattr(budget, field) * MEMBER_SLACK) for field in Budget.model_fields if "_diff" not in field
    }
    winners = (original.argmax(axis=-1), exported.argmax(axis=-1))
    parity = _compare(name, precision, (original, exported), winners, labels)
    if novelty is not None:
        parity = parity.model_copy(update={"outlier_change": _rank_change(*novelty)})
    return _check_budget(parity, budget.model_copy(update=slack))


def vote_parity(
    subject: str,
    precision: Precision,
    original: Verdict,
    exported: Verdict,
    labels: Ints,
    budget: Budget,
    rule: VotingRule,
) -> Parity:
    """Compare the artefact's verdict with PyTorch's.

    Args:
        subject: `vote`, `ensemble_fused`, or a stage.
        precision: Coarsest precision of the members.
        original: Verdict of the PyTorch models.
        exported: Verdict of the artefacts, on the same images.
        labels: True classes, `[images]`.
        budget: Allowed differences.
        rule: Voting rule of both verdicts.
    """
    probabilities = (original.probabilities, exported.probabilities)
    parity = _compare(subject, precision, probabilities, (original.label, exported.label), labels)
    flips = int(np.count_nonzero(original.review != exported.review))
    # Compare with the artefact's own members; the probabilities show how far rounding moved them.
    expected = decide(exported.member_probabilities, rule)
    pairs = [(getattr(exported, name), getattr(expected, name)) for name in _UNCERTAINTIES]
    # Not the built-in max, which may drop a NaN.
    difference = float(np.max([np.abs(stated - correct).max() for stated, correct in pairs]))
    changed = {"review_flips": flips, "uncertainty_difference": difference}
    if rule.outliers is not None:
        changed["outlier_change"] = float(np.abs(original.outlier - exported.outlier).mean())
    return _check_budget(parity.model_copy(update=changed), budget)


def verdict_from_members(
    members: Iterable[Floats], rule: VotingRule, novelty: Sequence[npt.NDArray[Any] | None] = ()
) -> Verdict:
    """Return the vote over the members.

    Args:
        members: Probabilities of each member, `[images, classes]`.
        rule: Voting rule.
        novelty: Novelty of each member, `[images]`, None without a detector; empty tests no outliers.
    """
    return decide(np.stack(list(members), axis=1), rule, stack_novelty(novelty) if len(novelty) else None)


def stack_novelty(novelty: Sequence[npt.NDArray[Any] | None]) -> Floats:
    """Return the members' novelty, `[images, members]`, 0 for members without a detector.

    Args:
        novelty: Novelty of each member, `[images]`; None without a detector, but not for all.
    """
    images = next(len(one) for one in novelty if one is not None)
    return np.stack([np.zeros(images) if one is None else one for one in novelty], axis=1).astype(np.float64)


def check_parity(parity: Parity, notes: Iterable[str] = ()) -> None:
    """Refuse an artefact that exceeds its budget.

    Args:
        parity: Parity of the artefact.
        notes: Additional sentences for the message.

    Raises:
        ParityError: the artefact exceeds its budget; the message names the limits.
    """
    if parity.faults:
        raise ParityError(
            f"the {parity.precision.upper()} graph of {parity.subject} differs from PyTorch on "
            f"{parity.images} images: {'; '.join(parity.faults)}. Nothing was written. Choose a finer "
            f"--precision, train a member that has hardly learnt for longer, or allow more with --tolerance (FP32) or "
            f"ExportSettings(budgets=…)" + "".join(f"; {note}" for note in notes)
        )


def _compare(
    subject: str, precision: Precision, pair: tuple[Floats, Floats], winners: tuple[Ints, Ints], labels: Ints
) -> Parity:
    differences = np.abs(pair[0] - pair[1]).max(axis=1)
    accuracies = [float((winner == labels).mean()) for winner in winners]
    losses = [float(compute_losses(probabilities, labels).mean()) for probabilities in pair]
    errors = [calibration_error(*both, labels) for both in zip(pair, winners, strict=True)]
    return Parity(
        subject=subject,
        precision=precision,
        images=len(labels),
        flips=int(np.count_nonzero(winners[0] != winners[1])),
        max_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        accuracy=accuracies[0],
        accuracy_change=accuracies[1] - accuracies[0],
        nll_change=losses[1] - losses[0],
        ece_change=errors[1] - errors[0],
    )


def _rank_change(original: npt.NDArray[Any], exported: npt.NDArray[Any]) -> float:
    """Return the mean change of an image's rank as a fraction of the images; NaN if a value is."""
    if np.isnan(original).any() or np.isnan(exported).any():
        return float("nan")
    ranks = [values.argsort(kind="stable").argsort() for values in (original, exported)]
    return float(np.abs(ranks[0] - ranks[1]).mean() / len(original))


def _check_budget(parity: Parity, budget: Budget) -> Parity:
    measured = {
        "probabilities differ by up to": (parity.max_difference, budget.max_difference),
        "fraction of changed labels": (parity.flips / parity.images, budget.flips),
        "loss of accuracy": (-parity.accuracy_change, budget.accuracy_loss),
        "increase of NLL": (parity.nll_change, budget.nll_increase),
        # A single image that crosses the edge of a bin changes ECE by about 1 / images.
        "increase of ECE": (parity.ece_change, max(budget.ece_increase, 1 / parity.images)),
    }
    if parity.review_flips is not None:
        measured["fraction of changed review flags"] = (parity.review_flips / parity.images, budget.review_flips)
    if parity.outlier_change is not None:
        # Two images that swap their ranks.
        limit = max(budget.outlier_change, 2 / parity.images**2)
        measured["p-values of outliers, or ranks by novelty, change on average by"] = (parity.outlier_change, limit)
    if parity.uncertainty_difference is not None:
        measured["uncertainty differs from that of its members by up to"] = (
            parity.uncertainty_difference,
            _UNCERTAINTY_LIMIT,
        )
    # `not value <= limit` rather than `value > limit`, so that NaN fails.
    faults = tuple(
        f"{what} {value:.2g} (at most {limit:.2g})" for what, (value, limit) in measured.items() if not value <= limit
    )
    return parity.model_copy(update={"faults": faults})
