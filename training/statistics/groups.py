"""Figures by group of images, such as a site or a scanner, with tests of their differences.

A group is compared with all other images by a permutation test over patients: under the hypothesis of no difference,
every assignment of the patients to the groups is as likely. P-values are corrected for the number of tests by Holm's
method (1979). Groups with few patients are named, and not judged.

Legend: masks and groups are `[images]`; units are the images of one patient in one group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from plurum.figures import FEWEST_PATIENTS, GroupedFigures, GroupFigures
from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.decisions import estimate_fractions

__all__ = [
    "FEWEST_PATIENTS",
    "UNKNOWN",
    "Fraction",
    "GroupFigures",
    "GroupedFigures",
    "correct_holm",
    "split_by_column",
]

UNKNOWN = "unknown"
_PERMUTATIONS = 2000
# Texts that pandas, R and databases write for a missing value.
_MISSING = frozenset({"", "nan", "na", "<na>", "n/a", "#n/a", "null", "none", "nat"})
# A fraction: the images that count, and those of them that have the property.
Fraction = tuple[Bools, Bools]


def split_by_column(
    columns: Mapping[str, Sequence[str]],
    fractions: Mapping[str, Fraction],
    bootstrap: Bootstrap,
    *,
    higher_is_better: Sequence[str],
) -> tuple[GroupedFigures, ...]:
    """Return figures by the groups of each column.

    Args:
        columns: Values of each image, by column.
        fractions: Fractions to compute, by name; each is tested too.
        bootstrap: Bootstrap over the patients of all images.
        higher_is_better: Names of the fractions of which the worst group is named.
    """
    raw: dict[tuple[str, str, str], float] = {}
    found: dict[str, dict[str, GroupFigures]] = {}
    for column, values in columns.items():
        names = np.array([UNKNOWN if value.strip().lower() in _MISSING else value for value in values])
        found[column] = {
            str(name): _group_figures(str(name), names == name, fractions, bootstrap) for name in np.unique(names)
        }
        for name in _tested(found[column]):
            for figure, fraction in fractions.items():
                p_value = _permutation_p_value(fraction, names == name, bootstrap.groups, bootstrap.seed)
                if p_value is not None:
                    raw[column, name, figure] = p_value
    corrected = dict(zip(raw, correct_holm(list(raw.values())), strict=True))
    return tuple(
        GroupedFigures(
            column=column,
            groups=tuple(_with_p_values(one, column, corrected) for one in groups.values()),
            worst=_worst_groups(groups, higher_is_better),
        )
        for column, groups in found.items()
    )


def _group_figures(name: str, inside: Bools, fractions: Mapping[str, Fraction], bootstrap: Bootstrap) -> GroupFigures:
    of = [inside & among & has for among, has in fractions.values()]
    figures = estimate_fractions(of, [inside & among for among, _ in fractions.values()], bootstrap)
    patients = len(np.unique(bootstrap.groups[inside]))
    return GroupFigures(
        name=name,
        images=int(inside.sum()),
        patients=patients,
        is_judged=patients >= FEWEST_PATIENTS,
        figures=dict(zip(fractions, figures, strict=True)),
        p_values={},
    )


def _tested(groups: Mapping[str, GroupFigures]) -> list[str]:
    """Return the groups to compare with all others; of two groups, one comparison is enough."""
    judged = [name for name, one in groups.items() if one.is_judged]
    if len(groups) < 2:
        return []
    return judged[:1] if len(groups) == 2 else judged


def _with_p_values(one: GroupFigures, column: str, corrected: Mapping[tuple[str, str, str], float]) -> GroupFigures:
    p_values = {figure: value for (of, name, figure), value in corrected.items() if (of, name) == (column, one.name)}
    return one.model_copy(update={"p_values": p_values})


def _worst_groups(groups: Mapping[str, GroupFigures], names: Sequence[str]) -> dict[str, str]:
    worst = {}
    for figure in names:
        values = {
            name: value
            for name, one in groups.items()
            if one.is_judged and (value := one.figures[figure].value) is not None
        }
        if len(set(values.values())) > 1:
            worst[figure] = min(values, key=values.__getitem__)
    return worst


def _permutation_p_value(fraction: Fraction, inside: Bools, patients: Ints, seed: int) -> float | None:
    """Return the two-sided p-value of a group's difference from all others; None if one side has no image.

    A patient with images on both sides is two units.
    """
    among, has = fraction
    if not (among & inside).any() or not (among & ~inside).any():
        return None
    _, first, unit = np.unique(patients[among] * 2 + inside[among], return_index=True, return_inverse=True)
    images = np.bincount(unit).astype(np.float64)
    hits = np.bincount(unit, has[among]).astype(np.float64)
    member = inside[among][first]

    def difference(chosen: Floats) -> Floats:
        own, all_own = chosen @ hits, chosen @ images
        return np.asarray(own / all_own - (hits.sum() - own) / (images.sum() - all_own))

    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.broadcast_to(member.astype(np.float64), (_PERMUTATIONS, len(member))), axis=1)
    observed = abs(float(difference(member.astype(np.float64)[None])[0]))
    # The observed assignment is one of those that are possible, so that no p-value is 0.
    return float((1 + (np.abs(difference(drawn)) >= observed - 1e-12).sum()) / (1 + _PERMUTATIONS))


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, such that all false alarms together keep the level (Holm 1979)."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(steps, 1.0)
    return [float(value) for value in corrected]
