"""Statistics of a vote's predictions, the reference for detecting drift of a server."""

from __future__ import annotations

import numpy as np

from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.spec import Baseline
from plurum.voting import Verdict, VotingRule, decide_members

__all__ = ["baseline_from_verdict"]


def baseline_from_verdict(
    verdict: Verdict, rule: VotingRule, weights: Floats | None = None, used: Bools | None = None
) -> Baseline:
    """Return the frequencies among a vote's predictions.

    Args:
        verdict: Verdict of the vote on some images.
        rule: Voting rule of the verdict, without which members do not decide.
        weights: Weight of each image, `[images]`; None if each is 1.
        used: True for each member that ran, `[images, members]`; the fraction of its dissents is of these images. None
            if all ran for each image.
    """
    dissents = decide_members(verdict.member_probabilities, rule) != verdict.label[:, None]
    limits = np.array(Baseline.model_fields["confidence_limits"].default)
    confidence = np.take_along_axis(verdict.probabilities, verdict.label[:, None], axis=-1)[:, 0]

    def shares(bins: Ints, count: int) -> tuple[float, ...]:
        counts = np.bincount(bins, weights, count)
        return tuple((counts / counts.sum()).tolist())

    def share(of: Bools) -> float:
        return float(np.average(of, weights=weights))

    def dissent_share(of: Bools, ran: Bools) -> float:
        # No image may have reached the member.
        return float(np.average(of[ran], weights=None if weights is None else weights[ran])) if ran.any() else 0.0

    ran = np.ones_like(dissents) if used is None else used
    return Baseline(
        images=len(verdict.label),
        class_shares=shares(verdict.label, verdict.probabilities.shape[1]),
        confidence_limits=tuple(limits.tolist()),
        # Bins include their upper limit, as in Prometheus.
        confidence_shares=shares(np.searchsorted(limits, confidence), len(limits) + 1),
        review_share=share(verdict.review),
        dissent_shares=tuple(map(dissent_share, dissents.T, ran.T)),
    )
