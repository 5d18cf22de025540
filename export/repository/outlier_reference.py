"""Outlier reference of the graphs that will serve: scores of the reference images, computed by these graphs.

The fit scored the reference images with PyTorch. A graph in INT8 gives other scores, and a p-value is valid only
against scores of the same graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from plurum.detectors import FeatureModel, read_detector
from plurum.errors import MetadataError
from plurum.export.graphs.member import PixelModel
from plurum.export.graphs.runtimes import Artefact, outputs_from_artefact
from plurum.export.repository.parity import stack_novelty
from plurum.predictions.arrays import Ints
from plurum.run import Run, Table, number_patients
from plurum.spec import Ensemble, Member, OutlierRule

__all__ = ["ReferenceImages", "reference_images", "with_detector", "with_served_reference"]


@dataclass(frozen=True)
class ReferenceImages:
    """Images whose scores are the reference of an outlier test.

    Attributes:
        pixels: All images of the run, uint8 `[images, height, width, 3]`.
        rows: Indices of the reference images, int64 `[reference images]`.
        groups: Group of each, int64 `[reference images]`; images of one patient share a group.
    """

    pixels: npt.NDArray[np.uint8]
    rows: Ints
    groups: Ints


def with_detector(run: Run, ensemble: Ensemble, member: Member, model: nn.Module) -> PixelModel:
    """Return a member's model with normalisation, and with its detector if the ensemble's outlier test has one.

    Raises:
        MetadataError: the detector's file is missing, corrupt, or not the one that the fit wrote.
        NoFeaturesError: the model has no features.
    """
    expected = ensemble.outliers and ensemble.outliers.detectors[ensemble.members.index(member)]
    if not expected:
        return PixelModel(model, member.image, decoded=ensemble.image)
    detector = read_detector(run.detector(member.name), expected)
    return PixelModel(FeatureModel(model), member.image, detector, ensemble.image)


def reference_images(rule: OutlierRule | None, table: Table, pixels: npt.NDArray[np.uint8]) -> ReferenceImages | None:
    """Return the images of the split that the rule's reference is from; None without a rule.

    Raises:
        MetadataError: the run has no such images.
    """
    if rule is None:
        return None
    rows = table.rows(rule.split)
    if not len(rows):
        raise MetadataError(f"outliers: expected {rule.split} images in the run, got none. Fit the run again.")
    return ReferenceImages(pixels, rows, number_patients([table.patients[row] for row in rows]))


def with_served_reference(
    ensemble: Ensemble, artefacts: Sequence[Artefact], images: ReferenceImages | None, progress: Callable[[str], None]
) -> Ensemble:
    """Return the ensemble with the reference that its served graphs give; without a test, as it is.

    Args:
        ensemble: Ensemble with the reference of the fit.
        artefacts: Artefacts of the members, in the order of the ensemble.
        images: Reference images; None keeps the reference of the fit.
        progress: Called with one line per step.
    """
    rule, test = ensemble.outliers, ensemble.rule.outliers
    if rule is None or test is None or images is None:
        return ensemble
    novelty = []
    for artefact in artefacts:
        if artefact.has_novelty:
            progress(f"{artefact.member}: {artefact.execution} on {len(images.rows):,} reference images")
            novelty.append(outputs_from_artefact(artefact, images.pixels, images.rows).novelty)
        else:
            novelty.append(None)
    return ensemble.with_outliers(rule.with_reference(test.score(stack_novelty(novelty)), images.groups))
