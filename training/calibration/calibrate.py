"""Calibrate a run's vote on the labelled images of a site."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.dicom_files import PatientNames
from plurum.errors import SettingsError
from plurum.files import check_folder, sha256_of, write_text
from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.promises.risk_control import smallest_promise
from plurum.run import Run, number_patients
from plurum.settings.calibration import CalibrateSettings
from plurum.spec import Ensemble, SiteCalibration, write_metadata
from plurum.training.calibration.report import CalibrationReport, compare_verdicts, figures_of_point
from plurum.training.calibration.sampled_images import SampledImages
from plurum.training.calibration.shrinkage import SiteFit, fit_site
from plurum.training.calibration.site_images import decode_site_images, load_site_images
from plurum.training.calibration.site_outliers import fit_site_outliers, write_reference
from plurum.training.calibration.site_rule import SiteRule, correct_voting, decide_probabilities, fit_site_rule
from plurum.training.data.store import fingerprint_from_pixels
from plurum.training.fitting.baseline import baseline_from_verdict
from plurum.training.fitting.points import CONFIDENCE, LabelledScores
from plurum.training.inference.predictions import predict_ensemble
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.patients import draw_equally, effective_patients
from plurum.voting import MODES, decide

__all__ = ["calibrate_run"]

_NO_CASCADE = "cascade: none, because its exit was certified for other patients and with another calibration"


@dataclass(frozen=True)
class _Site:
    """Images of a site and what the members say of them: probabilities and novelty, labels and patients."""

    sampled: SampledImages
    pixels: npt.NDArray[np.uint8]
    fingerprint: str
    members: Floats
    novelty: Floats
    labels: Ints
    groups: Ints

    @property
    def patients(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def weights(self) -> Floats | None:
        return self.sampled.weights

    @property
    def effective(self) -> float | None:
        return None if self.weights is None else effective_patients(self.weights, self.groups)

    def count_independent(self, seed: int) -> int:
        """Return the number of patients in a sample that needs no weights."""
        return self.patients if self.weights is None else len(np.unique(self.groups[draw_equally(self.weights, seed)]))

    def share(self, of: Bools) -> float:
        return float(np.average(of, weights=self.weights))


def calibrate_run(path: Path, settings: CalibrateSettings) -> CalibrationReport:
    """Calibrate the vote of the run `path` at a site, write its files to RUN/sites/SITE and return the report.

    Members and weights stay, and so does RUN/ensemble.json. Temperature, class offsets (in `prior_ratio`), prediction
    sets, operating point and review are fitted to the site's images, shrunk towards what the run has. The outlier test
    gets a reference of the site, if its patients are enough. Images that were not chosen with the same probability are
    weighted by its inverse.

    Raises:
        MetadataError: the folder is not a fitted run, or has an invalid member.
        DataError: the site's images can't be read, or can't calibrate this run.
        SettingsError: the vote has no probabilities.
        OutputError: the files can't be written.
        MissingExtraError: PyTorch, timm, safetensors, scikit-learn or SciPy is not installed.
    """
    run = Run(path)
    ensemble, folder = run.ensemble(), run.site_folder(settings.site)
    check_folder(folder, "the site")
    if not MODES[ensemble.voting.mode].has_probabilities:
        raise SettingsError(
            f"RUN: expected a vote of probabilities, got mode {ensemble.voting.mode}, whose votes can't be calibrated. "
            f"Fit {path} with --mode soft or --mode stack."
        )
    site = _read_site(run, ensemble, settings)
    old = decide(site.members, ensemble.rule).probabilities
    fitted = fit_site(old, site.labels, site.groups, settings.seed, site.weights)
    scores = LabelledScores(fitted.cross_fitted, site.labels, site.groups, ensemble.classes, site.weights)
    former = SiteRule(ensemble.conformal, ensemble.review, ensemble.operating_point)
    rule = fit_site_rule(former, scores, fitted.correction, settings.seed)
    outliers = fit_site_outliers(
        ensemble.outliers, site.novelty, site.groups, site.weights, is_biased=site.sampled.is_biased, seed=settings.seed
    )
    calibrated = _ensemble(run, ensemble.with_outliers(outliers.rule), site, settings, fitted, rule)
    report = _report(
        ensemble, calibrated, site, old, fitted, replace(rule, lines=(*rule.lines, *outliers.lines)), settings
    )
    write_reference(run.site_reference(settings.site), outliers.rows, site.pixels, site.groups)
    write_text(folder / "calibration.json", report.model_dump_json(indent=1) + "\n")
    write_metadata(folder / "ensemble.json", calibrated)
    return report


def _read_site(run: Run, ensemble: Ensemble, settings: CalibrateSettings) -> _Site:
    sampled = load_site_images(settings.on, run, PatientNames(settings.pseudonym_key_file, settings.keep_patient_ids))
    table = sampled.data.table
    pixels = decode_site_images(sampled.data, ensemble.image)
    predicted = predict_ensemble(run, ensemble, pixels, "the site's images")
    return _Site(
        sampled,
        pixels,
        fingerprint_from_pixels(pixels, table.labels),
        predicted.probabilities,
        predicted.novelty,
        table.labels,
        number_patients(table.patients),
    )


def _ensemble(
    run: Run, ensemble: Ensemble, site: _Site, settings: CalibrateSettings, fitted: SiteFit, rule: SiteRule
) -> Ensemble:
    is_changed = math.isfinite(fitted.strength)
    parts = {
        "version": 2,
        "voting": correct_voting(ensemble.voting, fitted.correction) if is_changed else ensemble.voting,
        "conformal": rule.conformal,
        "review": rule.review,
        "operating_point": rule.point,
        # What was promised for other patients, or with another rule, is void.
        "promise": None,
        "cascade": None,
        "scores": {},
        "site": SiteCalibration(
            name=settings.site,
            data=settings.on,
            fingerprint=site.fingerprint,
            images=len(site.labels),
            patients=site.patients,
            strength=fitted.strength if is_changed else None,
            fit=sha256_of(run.ensemble_file),
        ),
    }
    calibrated = ensemble.model_copy(update=parts)
    verdict = decide(site.members, calibrated.rule, site.novelty)
    baseline = baseline_from_verdict(verdict, calibrated.rule, site.weights)
    # A copy with other values is not validated.
    return Ensemble.model_validate(calibrated.model_copy(update={"baseline": baseline}).model_dump())


def _report(
    ensemble: Ensemble,
    calibrated: Ensemble,
    site: _Site,
    old: Floats,
    fitted: SiteFit,
    rule: SiteRule,
    settings: CalibrateSettings,
) -> CalibrationReport:
    classes, bootstrap = ensemble.classes, Bootstrap(site.groups, settings.draws, settings.seed)
    former = SiteRule(ensemble.conformal, ensemble.review, ensemble.operating_point)
    before = decide_probabilities(old, former, classes, ensemble.outliers, site.novelty)
    after = decide_probabilities(fitted.cross_fitted, rule, classes, calibrated.outliers, site.novelty)
    figures = {
        "before": figures_of_point(former, before, site.labels, classes, bootstrap, site.weights),
        "after": figures_of_point(rule, after, site.labels, classes, bootstrap, site.weights),
    }
    counts = np.bincount(site.labels, minlength=len(classes)).tolist()
    judged = decide_probabilities(fitted.judged, rule, classes)
    return CalibrationReport(
        ensemble=calibrated,
        by_class=dict(zip(classes, counts, strict=True)),
        changes=compare_verdicts(before, judged, site.labels, bootstrap, site.weights),
        is_changed=calibrated.voting != ensemble.voting,
        decisions={name: one for name, one in figures.items() if one} or None,
        reviewed={"before": site.share(before.review), "after": site.share(after.review)},
        effective_patients=site.effective,
        lines=(
            *_weight_lines(site),
            *rule.lines,
            _promise_line(ensemble, site.count_independent(settings.seed)),
            *([_NO_CASCADE] if ensemble.cascade else []),
            *site.sampled.lines,
        ),
    )


def _promise_line(ensemble: Ensemble, patients: int) -> str:
    best = smallest_promise(patients, CONFIDENCE)
    void = "no promise" if ensemble.promise is None else f"the promise of {ensemble.promise.risk:.2%} is void here"
    return (
        f"review risk: {void}; {patients:,} patients without an error could promise {best:.1%} at best, with "
        f"{CONFIDENCE:.0%} confidence"
    )


def _weight_lines(site: _Site) -> list[str]:
    if site.effective is None:
        return []
    line = (
        f"weights: each image counts 1 / sampling_probability; together they say as much as {site.effective:,.1f} "
        f"patients of a random sample"
    )
    return [line]
