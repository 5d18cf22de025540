"""Fit the outlier test of an ensemble: a detector for each member, and the scores of reference images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from plurum.errors import NoFeaturesError, needs_extra
from plurum.files import sha256_of
from plurum.predictions.arrays import Floats, Ints
from plurum.run import Run, Split, Table, number_patients
from plurum.settings.training import FitSettings
from plurum.spec import Ensemble, Member, Metadata, OutlierRule
from plurum.training.progress import show_progress
from plurum.voting import OutlierTest, outlier_test_from_ensemble

if TYPE_CHECKING:
    from plurum.detectors import Detector

__all__ = ["FittedOutliers", "OutlierFit", "fit_outliers", "least_alpha", "outlier_lines"]

ReferenceSplit = Literal["calibration", "validation"]

_ESTIMATE = (
    "outliers: the rate of false alarms is an estimate, because validation images are the reference; plurum train "
    "--certification 0.3 sets patients aside for it"
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
class FittedOutliers:
    """Outlier test of an ensemble, and the novelty of a run's images.

    Attributes:
        found: Result for the report.
        rule: Outlier test; None if it leaves out every member.
        novelty: Novelty by split, `[images, members]`, 0 for a member without a detector; empty without a test.
    """

    found: OutlierFit
    rule: OutlierRule | None = None
    novelty: Mapping[Split, Floats] = field(default_factory=dict)

    @property
    def test(self) -> OutlierTest | None:
        """Form of the rule that a vote uses."""
        return None if self.rule is None else outlier_test_from_ensemble({"outliers": self.rule.model_dump()})


@dataclass(frozen=True)
class _MemberNovelty:
    """Detector of a member, and the novelty of images by split, `[images]`."""

    detector: Detector
    novelty: Mapping[Split, Floats]


def fit_outliers(run: Run, members: Sequence[Member], settings: FitSettings, splits: Sequence[Split]) -> FittedOutliers:
    """Write a detector for each member, and return the outlier test of their ensemble.

    The reference images are those set aside for calibration, else validation images. The scores are those of PyTorch in
    float32; export computes them again with the graphs that it writes. Members without features are left out of the
    test; if all are, there is none.

    Args:
        run: Run of the members.
        members: Members of the ensemble, in its order.
        settings: Alpha and seed.
        splits: Splits whose novelty is needed; `validation` and `test` are among them.

    Raises:
        MetadataError: a member is invalid.
        OutputError: a detector can't be written.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    with needs_extra("training"):
        from plurum.detectors import write_detector
    table = run.table()
    split: ReferenceSplit = "calibration" if "calibration" in table.splits else "validation"
    found: dict[str, _MemberNovelty] = {}
    without: dict[str, str] = {}
    with show_progress("fitting detectors of outliers", len(members), "members") as progress:
        for member in members:
            try:
                found[member.name] = _fit_member(run, member, table, splits, settings.seed)
            except NoFeaturesError as error:
                without[member.name] = str(error)
            progress(1, "")
    if not found:
        return FittedOutliers(OutlierFit(without=without, flagged=None))
    for name, one in found.items():
        write_detector(run.detector(name), one.detector)
    names = [member.name for member in members]
    detecting = tuple(name in found for name in names)
    rule = OutlierRule(
        alpha=settings.outlier_alpha,
        members=detecting,
        detectors=tuple(sha256_of(run.detector(name)) if name in found else None for name in names),
        # Equal weights: fitting others would need outliers.
        weights=tuple(has / len(found) for has in detecting),
        reference=(0.0,),
        patients=1,
        split=split,
    )
    scores = np.mean([one.novelty[split] for one in found.values()], axis=0)
    groups = number_patients([table.patients[row] for row in table.rows(split)])
    novelty = {
        part: np.stack(
            [found[name].novelty[part] if name in found else np.zeros(len(table.rows(part))) for name in names], axis=1
        )
        for part in splits
    }
    fitted = FittedOutliers(OutlierFit(without=without, flagged=None), rule.with_reference(scores, groups), novelty)
    flagged = None if fitted.test is None else float(fitted.test.test(novelty["test"])[1].mean())
    return replace(fitted, found=OutlierFit(without=without, flagged=flagged))


def outlier_lines(ensemble: Ensemble, fitted: OutlierFit | None) -> list[str]:
    """Return the results of the outlier test as lines of text; none if the fit had none to do."""
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
        lines.append(_ESTIMATE)
    return lines


def least_alpha(patients: int) -> float:
    """Return the smallest alpha that a p-value from so many patients can be below, rounded up to three digits."""
    digits = 3 + math.floor(math.log10(patients + 1))
    return (math.floor(10.0**digits / (patients + 1)) + 1) / 10.0**digits


def _fit_member(run: Run, member: Member, table: Table, splits: Sequence[Split], seed: int) -> _MemberNovelty:
    """Fit a member's detector, and compute the novelty of the splits' images.

    Raises:
        NoFeaturesError: the member has no features.
    """
    import torch

    from plurum.training.fitting.detection import fit_detector
    from plurum.training.inference.features import extract_features, feature_model

    if not len(rows := _draw(table.rows("train"), seed)):
        raise NoFeaturesError("the run has no training images")
    model = feature_model(run, member)
    validation = extract_features(model, run, table.rows("validation"), member.image)
    detector = fit_detector(
        extract_features(model, run, rows, member.image), torch.from_numpy(table.labels[rows]), validation
    )

    def novelty(part: Split) -> Floats:
        features = validation if part == "validation" else extract_features(model, run, table.rows(part), member.image)
        with torch.inference_mode():
            found: Floats = detector(features)[:, 0].double().numpy()
        return found

    return _MemberNovelty(detector, {split: novelty(split) for split in splits})


def _draw(rows: Ints, seed: int) -> Ints:
    """Return the rows, or some of them if they are many."""
    return rows if len(rows) <= _MOST else np.sort(np.random.default_rng(seed).choice(rows, _MOST, replace=False))
