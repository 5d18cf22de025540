"""Fit the outlier test of an ensemble: a detector for each member, and the scores of reference images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from plurum.errors import NoFeaturesError, needs_extra
from plurum.files import sha256_of
from plurum.predictions.arrays import Floats, Ints
from plurum.run import Run, Split, Table, number_patients
from plurum.settings.fitting import FitSettings
from plurum.spec import Ensemble, Member, Metadata, OutlierRule
from plurum.training.progress import show_progress
from plurum.voting import OutlierTest, outlier_test_from_ensemble

if TYPE_CHECKING:
    from plurum.detectors import Detector

__all__ = [
    "FittedDetectors",
    "FittedOutliers",
    "OutlierFit",
    "fit_detectors",
    "fit_outliers",
    "least_alpha",
    "outlier_lines",
]

ReferenceSplit = Literal["calibration", "validation"]

_ESTIMATE = (
    "outliers: the rate of false alarms is an estimate, because validation images are the reference; plurum train "
    "--certification 0.3 sets patients aside for it"
)
_ESTIMATE_OF_FOLDS = (
    "outliers: the reference is the validation images, which no member learned; the rate of false alarms is an "
    "estimate, because the detectors are standardised on them too"
)
# The statistics of more training images differ little.
_MOST = 20_000


class OutlierFit(Metadata):
    """Result of fitting an outlier test.

    Attributes:
        without: Reason of each member that the test leaves out, by name.
        flagged: Fraction of test images with a p-value below alpha; None without a test.
    """

    without: dict[str, str]
    flagged: float | None


@dataclass(frozen=True)
class FittedDetectors:
    """Detectors of an ensemble's members.

    Attributes:
        detectors: Detector of each member, in the order of the ensemble; None if it has no features.
        without: Reason of each member that has none, by name.
        novelty: Novelty of validation images, `[images, members]`, 0 for a member without a detector.
    """

    detectors: tuple[Detector | None, ...]
    without: Mapping[str, str]
    novelty: Floats


@dataclass(frozen=True)
class FittedOutliers:
    """Outlier test of an ensemble.

    Attributes:
        found: Result for the report.
        rule: Outlier test; None if it leaves out every member.
    """

    found: OutlierFit
    rule: OutlierRule | None = None

    @property
    def test(self) -> OutlierTest | None:
        """Form of the rule that a vote uses."""
        return None if self.rule is None else outlier_test_from_ensemble({"outliers": self.rule.model_dump()})


def fit_detectors(run: Run, members: Sequence[Member], seed: int) -> FittedDetectors:
    """Return a detector for each member, fitted to features of training images and standardised on validation images.

    Args:
        run: Run of the members.
        members: Members of the ensemble, in its order.
        seed: Random seed of the draw of training images, if they are many.

    Raises:
        MetadataError: a member is invalid.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    table = run.table()
    detectors = list["Detector | None"]()
    novelty, without = list[Floats](), dict[str, str]()
    with show_progress("fitting detectors of outliers", len(members), "members") as progress:
        for member in members:
            try:
                detector, found = _fit_member(run, member, table, seed)
            except NoFeaturesError as error:
                without[member.name] = str(error)
                detector, found = None, np.zeros(len(table.rows("validation")))
            detectors.append(detector)
            novelty.append(found)
            progress(1, "")
    return FittedDetectors(tuple(detectors), without, np.stack(novelty, axis=1))


def fit_outliers(
    run: Run, members: Sequence[Member], fitted: FittedDetectors, novelty: Mapping[Split, Floats], settings: FitSettings
) -> FittedOutliers:
    """Write the members' detectors, and return the outlier test of their ensemble.

    The reference images are those set aside for calibration, else validation images. The scores are those of PyTorch in
    float32; export computes them again with the graphs that it writes. Members without features are left out of the
    test; if all are, there is none.

    Args:
        run: Run of the members.
        members: Members of the ensemble, in its order.
        fitted: Their detectors.
        novelty: Novelty by split, `[images, members]`; `validation` and `test` are among them.
        settings: Alpha.

    Raises:
        OutputError: a detector can't be written.
    """
    from plurum.detectors import write_detector

    if len(fitted.without) == len(members):
        return FittedOutliers(OutlierFit(without=dict(fitted.without), flagged=None))
    table = run.table()
    split: ReferenceSplit = "calibration" if "calibration" in table.splits else "validation"
    hashes = list[str | None]()
    for member, detector in zip(members, fitted.detectors, strict=True):
        if detector is not None:
            write_detector(run.detector(member.name), detector)
        hashes.append(None if detector is None else sha256_of(run.detector(member.name)))
    detecting = tuple(one is not None for one in hashes)
    rule = OutlierRule(
        alpha=settings.outlier_alpha,
        members=detecting,
        detectors=tuple(hashes),
        # Equal weights: fitting others would need outliers.
        weights=tuple(has / sum(detecting) for has in detecting),
        reference=(0.0,),
        patients=1,
        split=split,
    )
    scores = novelty[split][:, detecting].mean(axis=1)
    groups = number_patients([table.patients[row] for row in table.rows(split)])
    outliers = FittedOutliers(
        OutlierFit(without=dict(fitted.without), flagged=None), rule.with_reference(scores, groups)
    )
    flagged = None if outliers.test is None else float(outliers.test.test(novelty["test"])[1].mean())
    return replace(outliers, found=outliers.found.model_copy(update={"flagged": flagged}))


def outlier_lines(ensemble: Ensemble, fitted: OutlierFit | None, *, has_folds: bool = False) -> list[str]:
    """Return the results of the outlier test as lines of text; none if the fit had none to do.

    Args:
        ensemble: Fitted ensemble.
        fitted: Result of fitting the test.
        has_folds: True if the validation images chose no epoch and no member, as in a run with folds.
    """
    if fitted is None:
        return []
    lines = [f"outliers: the test leaves out {name}: {reason}" for name, reason in fitted.without.items()]
    rule = ensemble.outliers
    if rule is None or fitted.flagged is None:
        return [*lines, "outliers: no test, because it leaves out every member"]
    patients = f"{rule.patients:,} {rule.split} patient{'' if rule.patients == 1 else 's'}"
    lines.append(f"outliers: {fitted.flagged:.1%} of test images have a p-value below {rule.alpha:g} (from {patients})")
    if (least := least_alpha(rule.patients)) > rule.alpha:
        lines.append(
            f"--outlier-alpha: expected at least {least:g} with {patients}, got {rule.alpha:g}, below which no p-value "
            f"can be. Increase it, or set more patients aside"
        )
    if rule.split == "validation":
        lines.append(_ESTIMATE_OF_FOLDS if has_folds else _ESTIMATE)
    return lines


def least_alpha(patients: int) -> float:
    """Return the smallest alpha that a p-value from so many patients can be below, rounded up to three digits."""
    digits = 3 + math.floor(math.log10(patients + 1))
    return (math.floor(10.0**digits / (patients + 1)) + 1) / 10.0**digits


def _fit_member(run: Run, member: Member, table: Table, seed: int) -> tuple[Detector, Floats]:
    """Return a member's detector, and the novelty of validation images.

    Raises:
        NoFeaturesError: the member has no features.
    """
    with needs_extra("training"):
        import torch

        from plurum.training.fitting.detection import fit_detector
        from plurum.training.inference.features import extract_features, feature_model

    if not len(rows := _draw(table.rows("train"), seed)):
        raise NoFeaturesError("the run has no training images")
    model = feature_model(run, member)
    validation = extract_features(model, run, table.rows("validation"), member.image)
    features = extract_features(model, run, rows, member.image)
    detector = fit_detector(features, torch.from_numpy(table.labels[rows]), validation)
    with torch.inference_mode():
        return detector, np.asarray(detector(validation)[:, 0].double().numpy())


def _draw(rows: Ints, seed: int) -> Ints:
    """Return the rows, or some of them if they are many."""
    return rows if len(rows) <= _MOST else np.sort(np.random.default_rng(seed).choice(rows, _MOST, replace=False))
