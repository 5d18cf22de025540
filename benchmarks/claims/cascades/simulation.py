"""Simulate studies with known truth: how often the promise of a cascade, alone or with others, is violated.

    python -m plurum.benchmarks.claims.cascades

Each simulated study draws validation patients, who list exits and review limits, and certification patients, who test
them as `plurum fit --cascade` does. The cascade has a cheap member with more noise, and a vote of three. The true
fraction of hurt patients, review risk and sensitivity of the cascade that a study chose are known from many other
patients. A study violates its promise if one of the promised values is worse in truth; at a confidence of
95 %, at most 5 % of studies may. Not measured: real images, shifts between certification and service, and studies that
look at their certification patients more than once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine
from plurum.predictions.arrays import Floats, Ints
from plurum.promises.cascades import CascadeTarget, StagedAnswers, cascade_without_limit, certify_cascade
from plurum.promises.review import ReviewAnswers, ReviewTarget
from plurum.spec import OperatingPoint
from plurum.voting import Cascade, CascadeStage, DecisionPoint, VotingRule

__all__ = ["cascades", "draw_members", "simulate"]

CONFIDENCE, CASCADE_RISK, RISK, SENSITIVITY = 0.95, 0.01, 0.02, 0.9
SCENARIOS = ("alone", "with review risk", "with review risk and sensitivity")
_THRESHOLD = 0.35
_NOISE = (0.8, 0.5, 0.5)
_SEPARATION, _PATIENT_SPREAD = 1.8, 0.8
_TRUTH = 200_000
_VALIDATION = 400


@dataclass(frozen=True)
class _Images:
    """Images of simulated patients: probabilities of three members, `[images, 3, 2]`, truth and patient."""

    members: Floats
    labels: Ints
    groups: Ints

    def answers(self, cascade: Cascade) -> StagedAnswers:
        return StagedAnswers.from_members(self.members, None, cascade, self.labels, self.groups)


def draw_members(patients: int, images: int, rng: np.random.Generator) -> _Images:
    """Return patients whose images share most of their deviation, seen by members of different noise."""
    labels = np.repeat(rng.integers(0, 2, patients), images)
    shared = np.repeat(rng.normal(0, _PATIENT_SPREAD, patients), images)
    scores = np.where(labels == 1, _SEPARATION, -_SEPARATION) + shared
    noise = rng.normal(0, 1, (len(labels), len(_NOISE))) * np.array(_NOISE)
    positive = 1 / (1 + np.exp(-2 * (scores[:, None] + noise)))
    return _Images(np.stack([1 - positive, positive], axis=2), labels, np.repeat(np.arange(patients), images))


def _promises(scenario: str) -> tuple[Cascade, CascadeTarget]:
    """Return the cascade of a scenario, and what it promises."""
    has_point = scenario == SCENARIOS[2]
    point = DecisionPoint(positive=1, threshold=_THRESHOLD) if has_point else None
    stated = None
    if has_point:
        stated = OperatingPoint(
            criterion="sensitivity", value=SENSITIVITY, confidence=CONFIDENCE, positive="1", threshold=_THRESHOLD
        )
    rule = VotingRule((1 / 3,) * 3, point=point)
    cascade = Cascade((CascadeStage((0,), VotingRule((1.0,), temperature=1.2, point=point), 1.0),), rule)
    review = None if scenario == SCENARIOS[0] else ReviewTarget(RISK, CONFIDENCE, stated)
    return cascade_without_limit(cascade), CascadeTarget(CASCADE_RISK, CONFIDENCE, rule, review)


def _is_worse(truth: StagedAnswers, limit: float, leave: float | None, target: CascadeTarget) -> bool:
    """Return True if a promised value is worse in truth."""
    if leave is not None and truth.hurt(leave, limit).mean() > target.risk:
        return True
    if target.review is None:
        return False
    seen = ReviewAnswers.from_verdict(truth.verdict(leave), truth.labels, truth.groups, target.rule, target.review)
    if seen.losses(limit).mean() > RISK:
        return True
    return seen.decision_losses is not None and bool(seen.decision_losses.mean() > 1 - SENSITIVITY)


def simulate(scenario: str, images: int, *, studies: int, patients: int = 1000, seed: int = 0) -> dict[str, float]:
    """Return the fractions of studies with a violated promise and with a cascade, and the mean fraction that leaves.

    Args:
        scenario: One of `SCENARIOS`.
        images: Images of each patient.
        studies: Number of studies.
        patients: Certification patients of a study.
        seed: Random seed.
    """
    cascade, target = _promises(scenario)
    rng = np.random.default_rng([seed, images, SCENARIOS.index(scenario)])
    truth = draw_members(_TRUTH // images, images, rng).answers(cascade)
    violated, served, shares = 0, 0, []
    for _ in range(studies):
        seen, new = (draw_members(number, images, rng).answers(cascade) for number in (_VALIDATION, patients))
        found = certify_cascade(seen, [new], target)
        limit = found.review.limit if found.review else 0.0
        if limit is not None:
            violated += _is_worse(truth, limit, found.leave, target)
        served += found.leave is not None
        shares.append(0.0 if found.leave is None else float(truth.left(found.leave).mean()))
    return {"violated": violated / studies, "served": served / studies, "share": float(np.mean(shares))}


def cascades(
    studies: Annotated[int, typer.Option(min=100, help="Simulated studies for each row of the table.")] = 1000,
    patients: Annotated[int, typer.Option(min=300, help="Certification patients of a study.")] = 1000,
    images: Annotated[list[int] | None, typer.Option(help="Images of each patient; repeat for several.")] = None,
    promises: Annotated[int, typer.Option(min=0, max=3, help="Promises made together: 1 to 3; 0 measures each.")] = 0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Measure how often promises are violated: a table on standard error, a line of JSON on standard output."""
    from rich.table import Table

    table = Table("promise", "images per patient", "cascades", "images that leave", "violated")
    found: dict[str, dict[str, float]] = {}
    with command.show_status("simulating") as say:
        for number in images or [1, 3]:
            for scenario in SCENARIOS if promises == 0 else SCENARIOS[promises - 1 : promises]:
                say(f"{scenario}, patients with {number} images")
                one = simulate(scenario, number, studies=studies, patients=patients, seed=seed)
                found[f"{scenario}, {number}"] = one
                table.add_row(scenario, str(number), *(f"{one[name]:.1%}" for name in ("served", "share", "violated")))
    promise = {"cascade risk": CASCADE_RISK, "risk": RISK, "sensitivity": SENSITIVITY, "confidence": CONFIDENCE}
    report = {"studies": studies, "patients": patients, **promise, "found": found}
    command.print_report(report, machine(), table)
