"""Detectors of outliers for a fitted run, made without a fit: shrunk covariance of the training images' features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from plurum.detectors import Detector, FeatureModel, write_detector
from plurum.files import sha256_of
from plurum.models import model_from_checkpoint, normalise
from plurum.run import Run, number_patients
from plurum.spec import Member, OutlierRule, write_metadata
from plurum.voting import OutlierTest

__all__ = ["add_detectors"]

_RANK = 16
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
    model = FeatureModel(model_from_checkpoint(member, run.checkpoint(member))).eval()
    table = run.table()

    def features(split: str) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(run.pixels()[table.rows(split)]))  # type: ignore[arg-type]
        with torch.inference_mode():
            found: torch.Tensor = model(normalise(pixels, member.image))[1]
        return found

    known, seen = features("train"), features("validation")
    labels = torch.from_numpy(table.labels[table.rows("train")])
    means = torch.stack([known[labels == label].mean(dim=0) for label in range(len(member.classes))])
    centre = known.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((known - means[labels]).T))
    projection = vectors[:, -_RANK:] / (values[-_RANK:] + values.mean()).sqrt()
    plain = Detector(centre, projection, (means - centre) @ projection)
    with torch.inference_mode():
        distances = plain(seen)
    shift, scale = distances.mean(), distances.std()
    write_detector(run.detector(member.name), Detector(centre, projection, plain.means, shift=shift, scale=scale))
    return np.asarray(((distances - shift) / scale)[:, 0], dtype=np.float64)
