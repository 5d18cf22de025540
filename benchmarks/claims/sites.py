"""Simulate sites with known truth: what calibrating on 30 or 100 labelled images gains and risks there.

    python -m plurum.benchmarks.claims.sites

A model that is calibrated where it was fitted serves at a site with other class frequencies, and whose images change
the temperature and the offsets of its log-probabilities: not at all, a little, or much. Each draw labels 30 or 100 of
the site's images, calibrates with the functions of `plurum calibrate`, and is judged on other images of the site. Told
are the change of NLL and accuracy, the fraction of draws that lose more than half a point of accuracy, the worst draw,
the gap to the best decisions that the model's features allow, the calibration error, and the coverage of the prediction
sets of classes with enough images. Coverage of a single draw varies by a known law (beta-binomial); told is the
fraction of classes outside of its 99 % band. Not measured: patients with several images, and shifts that change the
order of the model's probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine
from plurum.errors import needs_extra
from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.predictions.scores import calibration_error, compute_losses
from plurum.spec import Conformal, Review
from plurum.training.calibration.shrinkage import SiteFit, fit_site
from plurum.training.calibration.site_images import LEAST_PATIENTS
from plurum.training.calibration.site_rule import LEAST_FOR_SETS, SiteRule, fit_site_rule
from plurum.training.fitting.points import LabelledScores
from plurum.training.statistics.calibration import conformal_quantiles

__all__ = ["ALPHA", "SHIFTS", "SiteImages", "SiteShift", "draw_site", "simulate", "sites"]

ALPHA = 0.1
# Distance of the classes' centres, in standard deviations.
_SEPARATION = 2.3
_REST = 20_000
_BAND = 0.99
# Figures of the table, with their headings.
_SHOWN = {
    "accuracy before": "before",
    "accuracy change": "change",
    "lose over 0.5 points": "lose > 0.5",
    "worst": "worst",
    "gap to best": "gap",
    "NLL change": "NLL",
    "ECE before": "ECE",
    "ECE": "after",
    "coverage": "covered",
    "outside the band": "outside",
}


@dataclass(frozen=True)
class SiteShift:
    """Difference of a site from where the model was fitted.

    Attributes:
        frequencies: Frequency of each class at the site; equal at the fit.
        temperature: Divisor of the model's log-probabilities.
        offsets: Offset of each class's log-probability.
    """

    frequencies: tuple[float, ...]
    temperature: float
    offsets: tuple[float, ...]


SHIFTS = {
    2: {
        "no": SiteShift((0.5, 0.5), 1.0, (0.0, 0.0)),
        "small": SiteShift((0.6, 0.4), 1.1, (-0.15, 0.15)),
        "large": SiteShift((0.7, 0.3), 0.6, (-0.6, 0.6)),
    },
    3: {
        "no": SiteShift((1 / 3, 1 / 3, 1 / 3), 1.0, (0.0, 0.0, 0.0)),
        "small": SiteShift((0.4, 0.35, 0.25), 1.1, (-0.15, 0.0, 0.15)),
        "large": SiteShift((0.55, 0.3, 0.15), 0.6, (-0.8, 0.0, 0.8)),
    },
}


@dataclass(frozen=True)
class SiteImages:
    """Images of a simulated site.

    Attributes:
        probabilities: Probabilities that the model states, `[images, classes]`.
        labels: True classes, `[images]`.
        best: Mask of images whose best decision is correct, `[images]`.
    """

    probabilities: Floats
    labels: Ints
    best: Bools

    @property
    def accuracy(self) -> float:
        """Fraction of images whose most probable class is correct."""
        return float((self.probabilities.argmax(axis=1) == self.labels).mean())

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, in nats."""
        return float(compute_losses(self.probabilities, self.labels).mean())


def draw_site(shift: SiteShift, images: int, rng: np.random.Generator) -> SiteImages:
    """Return images with normally distributed features, of which the model knows the classes' log-densities."""
    classes = len(shift.frequencies)
    labels = rng.choice(classes, images, p=shift.frequencies)
    centres = np.eye(classes) * _SEPARATION / np.sqrt(2)
    logits = (centres[labels] + rng.normal(size=(images, classes))) @ centres
    best = (logits + np.log(shift.frequencies)).argmax(axis=1) == labels
    logits = logits / shift.temperature + np.asarray(shift.offsets)
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    return SiteImages(likely / likely.sum(axis=1, keepdims=True), labels, best)


def _draw_usable(shift: SiteShift, images: int, rng: np.random.Generator) -> SiteImages:
    """Return a site's images that the command does not refuse."""
    while True:
        site = draw_site(shift, images, rng)
        if np.bincount(site.labels, minlength=len(shift.frequencies)).min() >= LEAST_PATIENTS:
            return site


def _coverage(site: SiteImages, fitted: SiteFit, new: Floats, rest: SiteImages, old: SiteRule) -> list[list[float]]:
    """Return coverage of each class with enough images, and whether it is outside its band."""
    from scipy.stats import betabinom

    classes = [str(index) for index in range(new.shape[1])]
    scores = LabelledScores(fitted.cross_fitted, site.labels, np.arange(len(site.labels)), classes)
    conformal = fit_site_rule(old, scores, fitted.correction).conformal
    found = []
    for index, count in enumerate(np.bincount(site.labels, minlength=len(classes)).tolist()):
        if conformal is None or count < LEAST_FOR_SETS:
            continue
        # Without the rule that a set holds the label, which can only raise coverage.
        covered = 1 - new[rest.labels == index, index] <= conformal.quantiles[index]
        rank = int(np.ceil((count + 1) * (1 - ALPHA)))
        below = betabinom.cdf([covered.sum() - 1, covered.sum()], len(covered), rank, count + 1 - rank)
        is_outside = below[1] < (1 - _BAND) / 2 or below[0] > (1 + _BAND) / 2
        found.append([float(covered.mean()), float(is_outside)])
    return found


def simulate(classes: int, shift: str, images: int, *, draws: int, seed: int = 0) -> dict[str, Any]:
    """Return what calibrating on so many labelled images changes at a simulated site, by figure.

    Coverage and what is outside of its band are None if no class ever has enough images.

    Args:
        classes: Number of classes, 2 or 3.
        shift: `no`, `small` or `large`.
        images: Labelled images of a draw.
        draws: Number of draws.
        seed: Random seed.
    """
    site_shift = SHIFTS[classes][shift]
    rest = draw_site(site_shift, _REST, np.random.default_rng([seed, classes]))
    source = draw_site(SHIFTS[classes]["no"], _REST, np.random.default_rng([seed, classes, 1]))
    quantiles = conformal_quantiles(source.probabilities, source.labels, np.arange(_REST), ALPHA)
    old = SiteRule(Conformal(alpha=ALPHA, quantiles=quantiles), Review(threshold=0.9, risk=0.01), None)
    rng = np.random.default_rng([seed, classes, images, 2])
    rows, covered = [], []
    for _ in range(draws):
        site = _draw_usable(site_shift, images, rng)
        fitted = fit_site(site.probabilities, site.labels, np.arange(images))
        new = SiteImages(fitted.correction.apply(rest.probabilities), rest.labels, rest.best)
        error = calibration_error(new.probabilities, new.probabilities.argmax(axis=1), new.labels)
        rows.append([new.accuracy - rest.accuracy, new.nll - rest.nll, error, float(np.isinf(fitted.strength))])
        covered += _coverage(site, fitted, new.probabilities, rest, old)
    accuracy, nll, ece, unchanged = np.array(rows).T
    means = np.array(covered).mean(axis=0).tolist() if covered else [None, None]
    return {
        "accuracy before": rest.accuracy,
        "accuracy change": float(accuracy.mean()),
        "accuracy error": float(accuracy.std() / np.sqrt(draws)),
        "lose over 0.5 points": float((accuracy < -0.005).mean()),
        "worst": float(accuracy.min()),
        "gap to best": float(rest.best.mean() - rest.accuracy - accuracy.mean()),
        "NLL change": float(nll.mean()),
        "NLL error": float(nll.std() / np.sqrt(draws)),
        "ECE before": calibration_error(rest.probabilities, rest.probabilities.argmax(axis=1), rest.labels),
        "ECE": float(ece.mean()),
        "unchanged": float(unchanged.mean()),
        "coverage": means[0],
        "outside the band": means[1],
    }


def _cell(name: str, value: float | None) -> str:
    """Return a figure as text; NLL and ECE as they are, others in percent."""
    if value is None:
        return ""
    if name.startswith(("NLL", "ECE")):
        return f"{value:.3f}"
    return f"{100 * value:.2f}"


def sites(
    draws: Annotated[int, typer.Option(min=10, help="Draws of labelled images for each site and number.")] = 200,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Measure what calibrating at a site changes: a table on standard error, a line of JSON on standard output."""
    from rich.table import Table

    with needs_extra("training"):
        from threadpoolctl import threadpool_limits

    found: list[dict[str, Any]] = []
    # Threads of the linear algebra wait for one another longer than these small problems take.
    with command.show_status("simulating") as say, threadpool_limits(1):
        for classes, shifts in SHIFTS.items():
            for shift in shifts:
                for images in (30, 100):
                    say(f"{classes} classes, {shift} shift, {images} images")
                    figures = simulate(classes, shift, images, draws=draws, seed=seed)
                    found.append({"classes": classes, "shift": shift, "images": images, **figures})
    title = f"{draws} draws each, judged on {_REST:,} other images; accuracy and coverage in percent"
    table = Table(*("classes", "shift", "images"), *_SHOWN.values(), title=title)
    for row in found:
        cells = [_cell(name, row[name]) for name in _SHOWN]
        table.add_row(str(row["classes"]), str(row["shift"]), str(row["images"]), *cells)
    command.print_report({"draws": draws, "coverage target": 1 - ALPHA, "found": found}, machine(), table)


if __name__ == "__main__":
    command.run_as_program(sites)
