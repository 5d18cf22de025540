"""Detectors of outliers for a fitted run, made without a fit of the vote."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from plurum.detectors import write_detector
from plurum.files import sha256_of
from plurum.run import Run, number_patients
from plurum.spec import Member, OutlierRule, write_metadata
from plurum.training.fitting.detection import fit_detector
from plurum.training.inference.features import extract_features, feature_model
from plurum.voting import OutlierTest

__all__ = ["add_detectors"]

_AXES = 16
_ALPHA = 0.1


def add_detectors(run: Run, detecting: Sequence[bool]) -> OutlierRule:
    """Add detectors to members of a fitted run, and the outlier test to its `ensemble.json`.

    Args:
        run: Fitted run.
        detecting: True for each member that gets a detector; these have the same weight.
    """
    ensemble, table = run.ensemble(), run.table()
    rows = table.rows("validation")
    novelty = np.stack(
        [
            _add_detector(run, member) if has else np.zeros(len(rows))
            for member, has in zip(ensemble.members, detecting, strict=True)
        ],
        axis=1,
    )
    share = 1 / sum(detecting)
    weights = tuple(share if has else 0.0 for has in detecting)
    files = [run.detector(member.name) for member in ensemble.members]
    scores = OutlierTest(_ALPHA, tuple(detecting), weights, (), None, 1).score(novelty)
    rule = OutlierRule(
        alpha=_ALPHA,
        members=tuple(detecting),
        detectors=tuple(sha256_of(file) if has else None for file, has in zip(files, detecting, strict=True)),
        weights=weights,
        reference=(0.0,),
        patients=1,
        split="validation",
    ).with_reference(scores, number_patients([table.patients[row] for row in rows]))
    write_metadata(run.ensemble_file, ensemble.with_outliers(rule))
    return rule


def _add_detector(run: Run, member: Member) -> npt.NDArray[np.float64]:
    """Write a member's detector, and return the novelty of the validation images."""
    model, table = feature_model(run, member), run.table()
    rows = table.rows("train")
    validation = extract_features(model, run, table.rows("validation"), member.image)
    known = extract_features(model, run, rows, member.image)
    detector = fit_detector(known, torch.from_numpy(table.labels[rows]), validation, axes=_AXES)
    write_detector(run.detector(member.name), detector)
    with torch.inference_mode():
        return np.asarray(detector(validation)[:, 0], dtype=np.float64)
