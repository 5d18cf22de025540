"""Score predictions by patient, with every rule that combines a patient's images."""

from __future__ import annotations

import numpy as np

from plurum.predictions.scores import compute_losses
from plurum.spec import PatientRule
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.estimates import estimate_from_draws
from plurum.training.statistics.metrics import LabelledPredictions
from plurum.training.statistics.patients import RULES, Patients
from plurum.training.statistics.results import PatientLevel, PatientScores
from plurum.voting import DecisionPoint, decide_groups

__all__ = ["score_patients"]


def score_patients(
    patients: Patients | None,
    candidates: dict[str, LabelledPredictions],
    draws: int,
    seed: int,
    point: DecisionPoint | None = None,
) -> PatientLevel | None:
    """Return the scores of predictions per patient, or None if no patient is known.

    Args:
        patients: Patients and their images.
        candidates: Predictions for all images, by name of the model.
        draws: Number of bootstrap resamples of patients.
        seed: Random seed of the bootstrap.
        point: Operating point, which also decides for patients; None takes the most probable class.
    """
    if patients is None or not patients.names:
        return None
    bootstrap = Bootstrap(np.arange(len(patients.labels)), draws, seed)
    by_rule = {
        name: {rule: _score_by_rule(patients, predictions, rule, bootstrap, point) for rule in RULES}
        for name, predictions in candidates.items()
    }
    return PatientLevel(patients=len(patients.labels), images=len(patients.rows), by_rule=by_rule)


def _score_by_rule(
    patients: Patients,
    predictions: LabelledPredictions,
    rule: PatientRule,
    bootstrap: Bootstrap,
    point: DecisionPoint | None,
) -> PatientScores:
    probabilities = patients.probabilities(predictions.probabilities, predictions.winners, rule)
    correct = (decide_groups(rule, probabilities, point) == patients.labels).astype(np.float64)
    values = np.stack([correct, compute_losses(probabilities, patients.labels)])
    drawn = np.concatenate([values @ counts for counts in bootstrap.blocks()], axis=1) / len(patients.labels)
    accuracy, nll = (estimate_from_draws(float(row.mean()), draws) for row, draws in zip(values, drawn, strict=True))
    return PatientScores(accuracy=accuracy, nll=None if rule == "majority" else nll)
