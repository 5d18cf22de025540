"""Simulate calibrations on corrections with known truth: what a biased sample costs, and what its weights repair.

    python -m plurum.benchmarks.claims.corrections

A server answers images of a site with a small shift. Some images are artefacts: the model is certain of their class,
and right by chance. A person labels every image that needs review, and a server draws 2 % of all images for audit, so
that certain errors are seen only by audits. Each draw calibrates with the functions of `plurum calibrate`: on these
corrections without weights, on the same ones with the weight 1 / probability of being chosen, and on a random sample of
as many images as the weighted corrections count for (Kish). Judged on other images of the site are: how far the
accuracy that the labelled images show is from the true one; how far the slope of the log-probabilities is from the best
one, if it is fitted without shrinkage, so that only bias and noise are left; the NLL above that of the best correction;
how far confidence exceeds accuracy where no person looks; and the coverage of prediction sets. Not measured: patients
with several images, and persons who err.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import typer

from plurum.benchmarks.claims.sites import ALPHA, SHIFTS, SiteImages, draw_site
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine
from plurum.errors import needs_extra
from plurum.predictions.arrays import Floats, Ints
from plurum.spec import Conformal, Review
from plurum.training.calibration.correction import Correction, fit_corrections
from plurum.training.calibration.shrinkage import fit_site
from plurum.training.calibration.site_rule import SiteRule, fit_site_rule
from plurum.training.fitting.points import LabelledScores
from plurum.training.statistics.calibration import conformal_quantiles
from plurum.training.statistics.patients import effective_patients, sampling_weights

__all__ = ["FIGURES", "METHODS", "corrections", "simulate"]

METHODS = ("corrections, unweighted", "corrections, weighted", "random sample")
AUDIT_RATE, LIMIT = 0.02, 0.8
_SOURCE, _SITE = SHIFTS[2]["no"], SHIFTS[2]["small"]
# Fraction of artefacts, and their log-odds on average.
_ARTEFACTS, _CERTAIN = 0.06, 4.5
_REST = 20_000
# A prior that is too weak to shrink.
_WEAK = 1e-3
# Figures of a draw, with their headings.
FIGURES = {
    "labelled": "images",
    "accuracy shown": "accuracy shown - true",
    "slope": "slope - best",
    "NLL": "NLL - best",
    "overconfidence": "confidence - accuracy, unreviewed",
    "coverage": "least coverage",
}


@dataclass(frozen=True)
class _Truth:
    """Other images of the site, and what was known of them before.

    Attributes:
        rest: These images.
        best: Correction fitted to all of them.
        old: Rule before the calibration.
    """

    rest: SiteImages
    best: Correction
    old: SiteRule

    def corrected(self, correction: Correction) -> SiteImages:
        return replace(self.rest, probabilities=correction.apply(self.rest.probabilities))


def _draw(images: int, rng: np.random.Generator) -> SiteImages:
    """Return images of the site, some of them artefacts."""
    site = draw_site(_SITE, images, rng)
    is_artefact = rng.random(images) < _ARTEFACTS
    # Log-odds of an artefact do not depend on its class.
    odds = rng.choice([-1.0, 1.0], images) * rng.normal(_CERTAIN, 0.5, images)
    stated = np.stack([1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(odds))], axis=1)
    return replace(site, probabilities=np.where(is_artefact[:, None], stated, site.probabilities))


def _known_truth(seed: int) -> _Truth:
    rest = _draw(_REST, np.random.default_rng([seed, 0]))
    source = draw_site(_SOURCE, _REST, np.random.default_rng([seed, 1]))
    quantiles = conformal_quantiles(source.probabilities, source.labels, np.arange(_REST), ALPHA)
    old = SiteRule(Conformal(alpha=ALPHA, quantiles=quantiles), Review(threshold=LIMIT, risk=0.05), None)
    return _Truth(rest, _fit_without_shrinkage(rest, None), old)


def _fit_without_shrinkage(site: SiteImages, weights: Floats | None) -> Correction:
    each = np.ones(len(site.labels)) if weights is None else weights / weights.mean()
    return fit_corrections(site.probabilities, site.labels, each[None], np.array([_WEAK]))[0]


def _samples(served: SiteImages, rng: np.random.Generator) -> dict[str, tuple[Ints, Floats | None]]:
    """Return the labelled images of each method, and their weights."""
    needs_review = served.probabilities.max(axis=1) < LIMIT
    chosen = np.where(needs_review, 1.0, AUDIT_RATE)
    rows = np.flatnonzero(rng.random(len(chosen)) < chosen)
    weights = sampling_weights(chosen[rows])
    even = rng.permutation(len(chosen))[: round(effective_patients(weights, np.arange(len(rows))))]
    return dict(zip(METHODS, [(rows, None), (rows, weights), (even, None)], strict=True))


def _judge(site: SiteImages, weights: Floats | None, truth: _Truth) -> list[float]:
    """Return the figures of a calibration on labelled images, in the order of `FIGURES`."""
    groups, rest, classes = np.arange(len(site.labels)), truth.rest, ("0", "1")
    fitted = fit_site(site.probabilities, site.labels, groups, weights=weights)
    scores = LabelledScores(fitted.cross_fitted, site.labels, groups, classes, weights)
    conformal = fit_site_rule(truth.old, scores, fitted.correction).conformal
    new = truth.corrected(fitted.correction)
    shown = np.average(site.probabilities.argmax(axis=1) == site.labels, weights=weights)
    sets = 1 - new.probabilities <= np.array(conformal.quantiles if conformal else ())
    unseen = rest.probabilities.max(axis=1) >= LIMIT
    correct = new.probabilities.argmax(axis=1) == rest.labels
    return [
        len(site.labels),
        float(shown) - rest.accuracy,
        _fit_without_shrinkage(site, weights).slope - truth.best.slope,
        new.nll - truth.corrected(truth.best).nll,
        float((new.probabilities.max(axis=1) - correct)[unseen].mean()),
        min(float(sets[rest.labels == index, index].mean()) for index in range(2)),
    ]


def simulate(*, draws: int, served: int = 4000, seed: int = 0) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the figures of calibrations at a simulated site by method, each with its standard error.

    Args:
        draws: Number of draws.
        served: Images that a server answers in each draw.
        seed: Random seed.
    """
    truth, rng = _known_truth(seed), np.random.default_rng([seed, 2])
    found: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    for _ in range(draws):
        answered = _draw(served, rng)
        for name, (rows, weights) in _samples(answered, rng).items():
            site = SiteImages(answered.probabilities[rows], answered.labels[rows], answered.best[rows])
            found[name].append(_judge(site, weights, truth))
    figures = {}
    for name, of_draws in found.items():
        values = np.array(of_draws)
        errors = values.std(axis=0, ddof=1) / np.sqrt(draws)
        pairs = zip(values.mean(axis=0).tolist(), errors.tolist(), strict=True)
        figures[name] = dict(zip(FIGURES, pairs, strict=True))
    return figures


def corrections(
    draws: Annotated[int, typer.Option(min=10, help="Draws of served images.")] = 60,
    served: Annotated[int, typer.Option(min=1000, help="Images that a server answers in each draw.")] = 4000,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Measure what weights repair in a calibration on corrections: a table on standard error, a line of JSON."""
    from rich.table import Table

    with needs_extra("training"):
        from threadpoolctl import threadpool_limits

    # Threads of the linear algebra wait for one another longer than these small problems take.
    with command.show_status("simulating"), threadpool_limits(1):
        found = simulate(draws=draws, served=served, seed=seed)
    title = f"{draws} draws of {served:,} served images, {AUDIT_RATE:.0%} audited; mean ± standard error"
    table = Table("calibrated on", *FIGURES.values(), title=title)
    for name, figures in found.items():
        cells = [_cell(figure, *pair) for figure, pair in figures.items()]
        table.add_row(name, *cells)
    report: dict[str, Any] = {"draws": draws, "served": served, "coverage target": 1 - ALPHA, "found": found}
    command.print_report(report, machine(), table)


def _cell(figure: str, mean: float, error: float) -> str:
    return f"{mean:,.0f}" if figure == "labelled" else f"{mean:.4f} ± {error:.4f}"


if __name__ == "__main__":
    command.run_as_program(corrections)
