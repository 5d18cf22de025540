"""Sections of a model card with what was measured: figures by split, figures by group, and parity of the graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from plurum.export.repository.cards.card import ModelCard
from plurum.export.repository.cards.facts import FittedSplit, SplitFigures
from plurum.export.repository.cards.markup import escape, list_from_lines, table_from_rows
from plurum.figures import FIGURES, DecisionFigures, Diagnosis, Estimate, GroupedFigures, GroupFigures, SiteFigures
from plurum.sentences import figure_text, group_cell, group_lines, percent_text

__all__ = ["figure_blocks", "parity_blocks"]

_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "ROC-AUC, mean over classes",
    "nll": "NLL (nats)",
    "brier": "Brier score",
    "ece": "ECE",
}
_FRACTIONS = {"accuracy", "balanced_accuracy"}
_FOUR = ("sensitivity", "specificity", "ppv", "npv")


def figure_blocks(card: ModelCard) -> Iterator[str]:
    """Yield the blocks of figures by split."""
    if card.is_refitted:
        yield (
            "The export serves another vote or review rule than that of the fit, whose figures these are. Measure what "
            "is served: `plurum evaluate RUN --url HOST:PORT`."
        )
    by_split = {one.split: one for one in card.figures}
    splits: tuple[FittedSplit, ...] = ("test", "validation")
    for split in splits:
        found = by_split.get(split)
        if found is None and split not in card.scores:
            continue
        yield f"### {split.capitalize()} images"
        yield from _scores(card, split) if found is None else _evaluated(found)
        yield from _decided(card, split, found)
        if found is not None:
            yield from _groups(found)
            if found.notes:
                yield list_from_lines(map(escape, found.notes))
    if card.calibration is not None and card.site is not None:
        yield f"### Images of the site {escape(card.site.name)}"
        yield from _calibrated(card.calibration)
    elif not card.scores and not card.figures:
        yield "Not known."


def _calibrated(site: SiteFigures) -> Iterator[str]:
    """Yield the figures of a calibration on a site's images."""
    counts = ", ".join(f"{count:,} of {escape(name)}" for name, count in site.by_class.items())
    weighted = ""
    if site.effective_patients is not None:
        weighted = f" The images are weighted, and count as {site.effective_patients:,.1f} patients of a random sample."
    yield (
        f"{counts}. By cross-validation: each image is predicted by a calibration without its patient. Intervals are "
        f"by patient.{weighted}"
    )
    rows = [
        (_METRICS[name], figure_text(one.before), figure_text(one.after), figure_text(one.difference))
        for name, one in site.changes.items()
    ]
    reviewed = [f"{site.reviewed[when]:.1%}" for when in ("before", "after")]
    yield table_from_rows(("figure", "before", "after", "change"), [*rows, ("needs review", *reviewed, "")])
    if site.decisions:
        head = ("decisions", *(FIGURES[name] for name in _FOUR))
        found = site.decisions.items()
        yield table_from_rows(
            head, ((when, *(percent_text(getattr(one, name)) for name in _FOUR)) for when, one in found)
        )
    yield list_from_lines(f"{escape(line)}." for line in site.lines)


def _decided(card: ModelCard, split: FittedSplit, found: SplitFigures | None) -> Iterator[str]:
    """Yield the figures of the decisions for a positive class, and their costs."""
    names = [*_FOUR]
    if found is not None and found.prevalence is not None:
        names += ["ppv_at_prevalence", "npv_at_prevalence"]
        yield f"The stated prevalence, where the ensemble serves, is {found.prevalence:g}."
    if rows := list(_decision_rows(card, split, found, names)):
        intervals = "by image" if card.patient_rule is None else "by patient"
        yield f"Decisions (intervals {intervals}; PPV and NPV at the class frequencies of these images):"
        yield table_from_rows(("positive class", "decisions", *(FIGURES[name] for name in names)), rows)
    decided = (card.decisions or {}).get(split)
    if decided is not None and decided.cost is not None and decided.usual_cost is not None:
        yield (
            f"A decision costs {figure_text(decided.cost)} on average; by the most probable class, it would cost "
            f"{figure_text(decided.usual_cost)}."
        )


def _scores(card: ModelCard, split: FittedSplit) -> Iterator[str]:
    one = card.scores[split]
    yield (
        f"{one.images:,} images, from the fit: accuracy {one.accuracy:.4f}, NLL {one.nll:.4f} nats. Intervals of these "
        f"figures are not known."
    )


def _evaluated(found: SplitFigures) -> Iterator[str]:
    patients = f" of {found.patients:,} patients" if found.patients else ""
    yield f"All predictions for {found.images:,} images{patients}; intervals by drawing {found.drawn}:"
    rows = [
        (title, percent_text(figure) if name in _FRACTIONS else figure_text(figure))
        for name, title in _METRICS.items()
        if (figure := found.metrics.get(name)) is not None
    ]
    rows += [
        ("needs review", percent_text(found.review.share)),
        ("accuracy without review", percent_text(found.review.accuracy_kept)),
        ("prediction set contains the true class", percent_text(found.sets.coverage)),
        ("classes in a prediction set", f"{found.sets.mean_size:.2f}"),
    ]
    if found.patients_correct is not None:
        title = f"patients with a correct prediction, by {found.patient_rule or 'mean'}"
        rows.append((title, percent_text(found.patients_correct)))
    yield table_from_rows(("figure", "all images"), rows)


def _decision_rows(
    card: ModelCard, split: FittedSplit, found: SplitFigures | None, names: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """Yield figures of decisions for images, and for patients where the fit states them."""
    decided = (card.decisions or {}).get(split)
    positive = card.operating_point.positive if card.operating_point else None
    for one in found.diagnoses if found else ():
        answers = "all images" if one.answers == "all" else "images without review"
        yield _decision_row(one.positive, f"{answers} ({_count(one):,})", [one.figures.get(name) for name in names])
    if decided is None or positive is None:
        return
    groups: dict[str, DecisionFigures | None] = {}
    if found is None:
        groups = {"all images": decided.images, "images without review": decided.unreviewed}
    for name, figures in (groups | {"patients": decided.patients}).items():
        if figures is not None:
            yield _decision_row(
                positive, f"{name} ({figures.number:,})", [getattr(figures, one, None) for one in names]
            )


def _count(one: Diagnosis) -> int:
    return one.true_positives + one.false_negatives + one.false_positives + one.true_negatives


def _decision_row(positive: str, decisions: str, figures: Iterable[Estimate | None]) -> tuple[str, ...]:
    cells = ("" if one is None else percent_text(one) for one in figures)
    return (escape(positive), decisions, *cells)


def _groups(found: SplitFigures) -> Iterator[str]:
    for column in found.by_group:
        yield f"#### By {escape(column.column)}"
        yield _group_table(column)
        lines = [escape(line) for line in group_lines(column)]
        yield list_from_lines([*lines, "A star marks a significant difference from all other images."])


def _group_table(column: GroupedFigures) -> str:
    figures = list(column.groups[0].figures)
    head = ("group", "patients", "images", *map(escape, figures))
    return table_from_rows(
        head,
        (
            (escape(one.name), f"{one.patients:,}", f"{one.images:,}", *(_group_cell(one, name) for name in figures))
            for one in column.groups
        ),
    )


def _group_cell(group: GroupFigures, figure: str) -> str:
    star = "\\*" if group_cell(group, figure).endswith("*") else ""
    return f"{percent_text(group.figures[figure])}{star}"


def parity_blocks(card: ModelCard) -> Iterator[str]:
    """Yield the blocks about the differences between the exported graphs and PyTorch."""
    yield f"Differences between the exported graphs and PyTorch, on {card.checked_on}:"
    head = ("", "precision", "images", "other labels", "other reviews", "largest difference of a probability")
    yield table_from_rows(
        head,
        (
            (
                escape(one.subject),
                one.precision,
                f"{one.images:,}",
                str(one.flips),
                "" if one.review_flips is None else str(one.review_flips),
                f"{one.max_difference:.1e}",
            )
            for one in card.parity
        ),
    )
