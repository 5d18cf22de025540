"""Simulated predictions whose patients have several images that resemble each other."""

from __future__ import annotations

import numpy as np

from plurum.training.drift.answers import Answers, answers_from_verdict
from plurum.voting import VotingRule, decide, softmax

__all__ = ["CLASSES", "simulate"]

CLASSES = ("CE", "LAA", "other")
_RULE = VotingRule((0.5, 0.5), quantiles=(0.7,) * len(CLASSES), review_threshold=0.6)


def simulate(
    seed: int,
    images: int = 300,
    *,
    mix: tuple[float, float, float] = (0.4, 0.4, 0.2),
    separation: float = 2.0,
    per_patient: int = 1,
    spread: float = 0.0,
    are_patients_known: bool = True,
) -> Answers:
    """Return predictions of two members.

    Args:
        seed: Random seed.
        images: Number of images, a multiple of `per_patient`.
        mix: Frequencies of the classes.
        separation: Height of the true class's logit.
        per_patient: Images of each patient.
        spread: Deviation of the logits that a patient's images share.
        are_patients_known: If False, no patient is stated.
    """
    rng = np.random.default_rng(seed)
    patients = images // per_patient
    labels = np.repeat(rng.choice(len(CLASSES), patients, p=mix), per_patient)
    shared = np.repeat(rng.normal(0, spread, (patients, 2, len(CLASSES))), per_patient, axis=0)
    logits = shared + rng.normal(0, 1, shared.shape)
    logits[np.arange(images), :, labels] += separation
    names = [f"{seed}/{image // per_patient}" for image in range(images)] if are_patients_known else None
    return answers_from_verdict(f"sample {seed}", CLASSES, decide(softmax(logits), _RULE), names)
