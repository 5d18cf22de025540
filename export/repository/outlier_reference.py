"""Outlier reference of the graphs that will serve: scores of the reference images, computed by these graphs.

The fit scored the reference images with PyTorch. A graph in INT8 gives other scores, and a p-value is valid only
against scores of the same graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from torch import nn

from plurum.detectors import FeatureModel, read_detector
from plurum.errors import MetadataError
from plurum.export.graphs.member import PixelModel
from plurum.export.graphs.runtimes import Artefact, outputs_from_artefact
from plurum.export.repository.parity import stack_novelty
from plurum.predictions.arrays import Floats, Ints
from plurum.run import Run, Table, number_patients
from plurum.spec import CascadeRule, Ensemble, Member, OutlierRule
from plurum.voting import cascade_from_ensemble

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


def reference_images(run: Run, ensemble: Ensemble, table: Table) -> ReferenceImages | None:
    """Return the images that the reference of the ensemble's outlier test is from; None without a test.

    Args:
        run: Run of the ensemble.
        ensemble: Ensemble of the run, or of one of its sites.
        table: Table of the run's images.

    Raises:
        MetadataError: the run has no such images, or the site's are missing or others.
    """
    rule = ensemble.outliers
    if rule is None:
        return None
    if rule.split == "site":
        return _site_images(run, rule, ensemble.site.name if ensemble.site else "")
    rows = table.rows(rule.split)
    if not len(rows):
        raise MetadataError(f"outliers: expected {rule.split} images in the run, got none. Fit the run again.")
    return ReferenceImages(run.pixels(), rows, number_patients([table.patients[row] for row in rows]))


def _site_images(run: Run, rule: OutlierRule, site: str) -> ReferenceImages:
    path = run.site_reference(site)
    fix = f"Calibrate it again: plurum calibrate {run.path} --on SITE.csv --name {site}"
    try:
        with np.load(path, allow_pickle=False) as file:
            pixels, groups = file["pixels"], file["groups"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise MetadataError(
            f"{path}: expected reference images, got no file that can be read: {error}. {fix}"
        ) from error
    if (len(pixels), len(np.unique(groups))) != (len(rule.reference), rule.patients):
        raise MetadataError(f"{path}: expected {len(rule.reference)} reference images, got other images. {fix}")
    return ReferenceImages(pixels, np.arange(len(pixels)), groups)


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
    stacked = stack_novelty(novelty)
    served = ensemble.with_outliers(rule.with_reference(test.score(stacked), images.groups))
    return served.with_cascade(_with_stage_references(served, stacked, images.groups))


def _with_stage_references(ensemble: Ensemble, novelty: Floats, groups: Ints) -> CascadeRule | None:
    """Return the cascade, each of whose stages has the reference that its members give; None without a cascade.

    Args:
        ensemble: Ensemble that may have a cascade.
        novelty: Novelty of the reference images, `[images, members]`.
        groups: Group of each reference image, int64 `[images]`.
    """
    stated, cascade = ensemble.cascade, cascade_from_ensemble(ensemble.model_dump())
    if stated is None or cascade is None:
        return None
    stages = []
    for stage, known in zip(stated.stages, cascade.stages, strict=True):
        rule, test = stage.outliers, known.rule.outliers
        if rule is not None and test is not None:
            scores = test.score(novelty[:, list(known.members)])
            stage = stage.model_copy(update={"outliers": rule.with_reference(scores, groups)})  # noqa: PLW2901
        stages.append(stage)
    return stated.model_copy(update={"stages": tuple(stages)})
