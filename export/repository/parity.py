"""Does an artefact answer as the model it came from? The gate before anything is published.

Both sides answer the same held-out labelled images; what is compared is what counts afterwards: labels, probabilities,
accuracy, NLL, calibration, and which answers go to a person. A budget says how much of each may change. How uncertain a
vote says it is must be what its own members make it, in whatever precision.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from plurum.errors import ParityError
from plurum.export.settings import MEMBER_SLACK, Budget, Precision
from plurum.voting import Verdict, VotingRule, decide

__all__ = ["Parity", "check_parity", "member_parity", "verdict_of", "vote_parity"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Of ECE, as many as Guo et al. (arXiv 1706.04599) took.
_BINS = 15
_TINY = float(np.finfo(np.float64).tiny)
# Nats: far more than float32 rounds off, and far less than a wrong sum.
_UNCERTAINTY_LIMIT = 1e-3


class Parity(BaseModel):
    """How far an artefact's answers are from PyTorch's on the same labelled images.

    Attributes:
        subject: A member's name, `vote`, or `ensemble_fused`.
        precision: Of the artefact; of a vote, the coarsest among its members.
        images: How many were asked.
        flips: How many got another label.
        review_flips: How many go to a person and did not, or the other way round; None for a member.
        uncertainty_difference: Largest difference of an entropy, a disagreement (nats) or a standard deviation from
            what `plurum.voting` makes of the probabilities that the artefact's own members state; None for a member.
        max_difference: Largest difference of any probability, 0 to 1.
        mean_difference: Mean over images of the largest difference.
        accuracy: PyTorch's, 0 to 1.
        accuracy_change: The artefact's less PyTorch's; likewise the next two.
        nll_change: Of the mean negative log-likelihood, nats.
        ece_change: Of the expected calibration error.
        faults: What breaks the budget, in words; empty where the artefact may be published.
    """

    model_config = ConfigDict(frozen=True)

    subject: str
    precision: Precision
    images: int
    flips: int
    review_flips: int | None = None
    uncertainty_difference: float | None = None
    max_difference: float
    mean_difference: float
    accuracy: float
    accuracy_change: float
    nll_change: float
    ece_change: float
    faults: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the artefact may be published."""
        return not self.faults


def member_parity(
    name: str, precision: Precision, original: Floats, exported: Floats, labels: Ints, budget: Budget
) -> Parity:
    """Compare a member's probabilities, `[images, classes]`, with PyTorch's; `labels` `[images]` are the truth."""
    slack = {
        field: min(1.0, getattr(budget, field) * MEMBER_SLACK) for field in Budget.model_fields if "_diff" not in field
    }
    winners = (original.argmax(axis=-1), exported.argmax(axis=-1))
    parity = _compared(name, precision, (original, exported), winners, labels)
    return _judged(parity, budget.model_copy(update=slack))


def vote_parity(
    subject: str,
    precision: Precision,
    original: Verdict,
    exported: Verdict,
    labels: Ints,
    budget: Budget,
    rule: VotingRule,
) -> Parity:
    """Compare two verdicts by `rule` on the same images; `labels` `[images]` are the truth."""
    probabilities = (original.probabilities, exported.probabilities)
    parity = _compared(subject, precision, probabilities, (original.label, exported.label), labels)
    flips = int(np.count_nonzero(original.review != exported.review))
    # Against its own members: how far rounding moved those is judged by the probabilities.
    expected = decide(exported.member_probabilities, rule)
    pairs = [(getattr(exported, name), getattr(expected, name)) for name in ("entropy", "disagreement", "std")]
    # Not the built-in max: it may lose a NaN.
    difference = float(np.max([np.abs(stated - right).max() for stated, right in pairs]))
    return _judged(parity.model_copy(update={"review_flips": flips, "uncertainty_difference": difference}), budget)


def verdict_of(members: Iterable[Floats], rule: VotingRule) -> Verdict:
    """Return the vote over the members' probabilities, each `[images, classes]`."""
    return decide(np.stack(list(members), axis=1), rule)


def check_parity(parity: Parity, notes: Iterable[str] = ()) -> None:
    """Refuse to go on with an artefact that breaks its budget.

    Args:
        parity: How it fared.
        notes: What else there is to tell of it.

    Raises:
        ParityError: it does; the message says by what.
    """
    if parity.faults:
        raise ParityError(
            f"the {parity.precision.upper()} graph of {parity.subject} answers otherwise than PyTorch on "
            f"{parity.images} images: {'; '.join(parity.faults)}; nothing was written. Take a finer "
            f"--precision, train a member that has hardly learnt for longer, or allow more with --tolerance (FP32) or "
            f"ExportSettings(budgets=…)" + "".join(f"; {note}" for note in notes)
        )


def _compared(
    subject: str, precision: Precision, pair: tuple[Floats, Floats], winners: tuple[Ints, Ints], labels: Ints
) -> Parity:
    differences = np.abs(pair[0] - pair[1]).max(axis=1)
    accuracies, losses, errors = (
        [float(figure(probabilities, winner, labels)) for probabilities, winner in zip(pair, winners, strict=True)]
        for figure in (_accuracy, _nll, _ece)
    )
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


def _judged(parity: Parity, budget: Budget) -> Parity:
    measured = {
        "probabilities differ by up to": (parity.max_difference, budget.max_difference),
        "share of other labels": (parity.flips / parity.images, budget.flips),
        "loss of accuracy": (-parity.accuracy_change, budget.accuracy_loss),
        "increase of NLL": (parity.nll_change, budget.nll_increase),
        # One image that crosses the edge of a bin moves ECE by about this.
        "increase of ECE": (parity.ece_change, max(budget.ece_increase, 1 / parity.images)),
    }
    if parity.review_flips is not None:
        measured["share of other reviews"] = (parity.review_flips / parity.images, budget.review_flips)
    if parity.uncertainty_difference is not None:
        measured["uncertainty differs from its members' by up to"] = (
            parity.uncertainty_difference,
            _UNCERTAINTY_LIMIT,
        )
    # Not `value > limit`: NaN never passes.
    faults = tuple(
        f"{what} {value:.2g} (at most {limit:.2g})" for what, (value, limit) in measured.items() if not value <= limit
    )
    return parity.model_copy(update={"faults": faults})


def _accuracy(_: Floats, winners: Ints, labels: Ints) -> float:
    return float((winners == labels).mean())


def _nll(probabilities: Floats, _: Ints, labels: Ints) -> float:
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], _TINY)).mean())


def _ece(probabilities: Floats, winners: Ints, labels: Ints) -> float:
    """Return the expected calibration error over bins of equal width: (0, 1/15], (1/15, 2/15] and so on."""
    confidence = probabilities[np.arange(len(labels)), winners]
    if np.isnan(confidence).any():
        return float("nan")
    bins = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    gaps = np.bincount(bins, weights=confidence - (winners == labels), minlength=_BINS)
    return float(np.abs(gaps).sum() / len(labels))
