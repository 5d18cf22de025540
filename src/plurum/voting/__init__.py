"""Votes and uncertainty from the members' probabilities. NumPy only.

This is the only place where votes and uncertainty are computed. Training's fit, the voter inside Triton and the tests
all use it. Export copies this package beside the voter; its imports are relative, because it is a package of its own
there.

Shapes: `[batch, members, classes]` for members, `[batch, classes]` for their vote. All arithmetic is float64;
entropies are in nats.
"""

from __future__ import annotations

from .cascades import Cascade, CascadeStage, CascadeVerdict, cascade_from_ensemble, decide_cascade, merge_verdicts
from .decisions import (
    REVIEW_CONFIDENCE,
    REVIEW_OUTLIER,
    REVIEW_REASONS,
    REVIEW_SET,
    Verdict,
    decide,
    decide_at,
    decide_groups,
    decide_members,
    needs_review_at,
    pool_groups,
    prediction_sets,
)
from .outliers import OutlierTest, outlier_test_from_ensemble
from .rules import DecisionPoint, VotingRule, point_from_ensemble, rule_from_ensemble
from .votes import (
    MODES,
    VotingMode,
    entropy,
    hard_vote,
    mutual_information,
    soft_vote,
    softmax,
    spread,
    stacked_vote,
    stacking_features,
    temper,
    with_prior,
)

__all__ = [
    "MODES",
    "REVIEW_CONFIDENCE",
    "REVIEW_OUTLIER",
    "REVIEW_REASONS",
    "REVIEW_SET",
    "Cascade",
    "CascadeStage",
    "CascadeVerdict",
    "DecisionPoint",
    "OutlierTest",
    "Verdict",
    "VotingMode",
    "VotingRule",
    "cascade_from_ensemble",
    "decide",
    "decide_at",
    "decide_cascade",
    "decide_groups",
    "decide_members",
    "entropy",
    "hard_vote",
    "merge_verdicts",
    "mutual_information",
    "needs_review_at",
    "outlier_test_from_ensemble",
    "point_from_ensemble",
    "pool_groups",
    "prediction_sets",
    "rule_from_ensemble",
    "soft_vote",
    "softmax",
    "spread",
    "stacked_vote",
    "stacking_features",
    "temper",
    "with_prior",
]
