"""Cascade: the verdict of the first members on images that leave no doubt, and of all members on the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .decisions import Verdict, decide, decide_members
from .rules import VotingRule, rule_from_ensemble

__all__ = ["Cascade", "CascadeStage", "CascadeVerdict", "cascade_from_ensemble", "decide_cascade", "merge_verdicts"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CascadeStage:
    """Stage at which an image may leave the cascade.

    Attributes:
        members: Indices of the members that have run, in the order in which they run.
        rule: Voting rule of these members, in this order.
        leave: Probability of the label from which an image leaves, a 32-bit number.
    """

    members: tuple[int, ...]
    rule: VotingRule
    leave: float

    def decide(self, members: Floats, novelty: npt.NDArray[Any] | None = None) -> tuple[Verdict, Bools]:
        """Return the stage's verdict, and the mask of images that may leave if they are confident enough, `[batch]`.

        An image may leave if the verdict does not need review, and its members agree on the label.

        Args:
            members: Probabilities of all members of the ensemble, `[batch, members, classes]`; of those that have not
                run, any value.
            novelty: Novelty by member of the ensemble, `[batch, members]`; None tests no outliers.
        """
        chosen = list(self.members)
        seen = members[:, chosen]
        verdict = decide(seen, self.rule, None if novelty is None else novelty[:, chosen])
        agree = (decide_members(seen, self.rule) == verdict.label[:, None]).all(axis=1)
        return verdict, ~verdict.review & (agree if len(chosen) > 1 else True)

    def leaves(self, verdict: Verdict, may_leave: Bools) -> Bools:
        """Return the mask of images that leave, `[batch]`; confidences are compared in 32 bits, as graphs do."""
        confidence = np.take_along_axis(verdict.probabilities, verdict.label[:, None], axis=-1)[:, 0]
        return np.asarray(may_leave & (confidence.astype(np.float32) >= np.float32(self.leave)))


@dataclass(frozen=True)
class Cascade:
    """Stages of a cascade, and the rule of the whole vote.

    Attributes:
        stages: Stages before the whole vote.
        rule: Voting rule of all members, in the order of the ensemble.
    """

    stages: tuple[CascadeStage, ...]
    rule: VotingRule


@dataclass(frozen=True)
class CascadeVerdict:
    """Predictions of a cascade for a batch.

    Attributes:
        verdict: Predictions; those of an image that left are its stage's. Probabilities of members that did not run are
            0, and disagreement and standard deviation are over the members that ran.
        members_used: True for each member that ran, `[batch, members]`.
        stage: Index of the stage at which each image left, int64 `[batch]`; the number of stages for the whole vote.
    """

    verdict: Verdict
    members_used: Bools
    stage: npt.NDArray[np.int64]


def cascade_from_ensemble(ensemble: Mapping[str, Any]) -> Cascade | None:
    """Return the cascade of a parsed `ensemble.json`; None if it has none."""
    stated = ensemble.get("cascade")
    if stated is None:
        return None
    order = tuple(stated["order"])
    return Cascade(
        stages=tuple(
            CascadeStage(
                members=order[: stage["members"]],
                # Operating point and review limit are those of the whole vote.
                rule=rule_from_ensemble(
                    {**ensemble, **{key: stage[key] for key in ("voting", "conformal", "outliers")}}
                ),
                leave=stage["leave"],
            )
            for stage in stated["stages"]
        ),
        rule=rule_from_ensemble(ensemble),
    )


def decide_cascade(
    members: Floats, cascade: Cascade, novelty: npt.ArrayLike | None = None, *, full: bool = False
) -> CascadeVerdict:
    """Return the cascade's verdict on the probabilities of all members, `[batch, members, classes]`.

    A program that serves a cascade computes the members of a stage only for the images that reach it; this function
    states what it answers.

    Args:
        members: Probabilities of all members, in the order of the ensemble.
        cascade: Stages and the rule of the whole vote.
        novelty: Novelty of each image by member, `[batch, members]`; None tests no outliers.
        full: If True, no image leaves early.
    """
    known = None if novelty is None else np.asarray(novelty, dtype=np.float64)
    verdict = decide(members, cascade.rule, known)
    used = np.ones(members.shape[:2], dtype=np.bool_)
    stage_of = np.full(len(members), len(cascade.stages))
    stages = () if full else cascade.stages
    # The first stage last, as an image leaves at the first that settles it.
    for index, stage in reversed(list(enumerate(stages))):
        found, may_leave = stage.decide(members, known)
        left = stage.leaves(found, may_leave)
        ran = np.isin(np.arange(members.shape[1]), stage.members)
        stage_of[left], used[left] = index, ran
        verdict = merge_verdicts(left, replace(found, member_probabilities=members), verdict)
    seen = np.where(used[..., None], members, 0.0)
    return CascadeVerdict(replace(verdict, member_probabilities=seen), used, stage_of)


def merge_verdicts(left: Bools, early: Verdict, late: Verdict) -> Verdict:
    """Return the predictions of `early` for the images in the mask `left`, `[batch]`, and of `late` for the others."""
    values = {}
    for one in fields(Verdict):
        first, last = getattr(early, one.name), getattr(late, one.name)
        values[one.name] = np.where(left.reshape(-1, *(1,) * (first.ndim - 1)), first, last)
    return Verdict(**values)
