"""Statistics of a vote's predictions, the reference for detecting drift of a server."""

from __future__ import annotations

import numpy as np

from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.spec import Baseline
from plurum.voting import Verdict, VotingRule, decide_members

__all__ = ["baseline_from_verdict"]


def baseline_from_verdict(verdict: Verdict, rule: VotingRule, weights: Floats | None = None) -> Baseline:
    """Return the frequencies among a vote's predictions.

    Args:
        verdict: Verdict of the vote on some images.
        rule: Voting rule of the verdict, without which members do not decide.
        weights: Weight of each image, `[images]`; None if each is 1.
    """
    dissents = decide_members(verdict.member_probabilities, rule) != verdict.label[:, None]
    limits = np.array(Baseline.model_fields["confidence_limits"].default)
    confidence = np.take_along_axis(verdict.probabilities, verdict.label[:, None], axis=-1)[:, 0]

    def shares(bins: Ints, count: int) -> tuple[float, ...]:
        counts = np.bincount(bins, weights, count)
        return tuple((counts / counts.sum()).tolist())

    def share(of: Bools) -> float:
        return float(np.average(of, weights=weights))

    return Baseline(
        images=len(verdict.label),
        class_shares=shares(verdict.label, verdict.probabilities.shape[1]),
        confidence_limits=tuple(limits.tolist()),
        # Bins include their upper limit, as in Prometheus.
        confidence_shares=shares(np.searchsorted(limits, confidence), len(limits) + 1),
        review_share=share(verdict.review),
        dissent_shares=tuple(share(dissent) for dissent in dissents.T),
    )
