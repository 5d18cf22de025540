"""Model card as Markdown. Texts of users, such as class names, are escaped, so that they stay plain text."""

from __future__ import annotations

from collections.abc import Iterator

from plurum.export.repository.cards.card import ModelCard
from plurum.export.repository.cards.intended_use import IntendedUse
from plurum.export.repository.cards.markup import code, escape, list_from_lines, table_from_rows
from plurum.export.repository.cards.measured import figure_blocks, parity_blocks
from plurum.promises.cascades import cascade_texts
from plurum.run import Split
from plurum.spec import RefusedPromise

__all__ = ["markdown_from_card"]

_USES: dict[Split, str] = {
    "train": "weights of the members",
    "validation": "epoch, members, vote, operating point and review",
    "calibration": "prediction sets",
    "certification": "promises",
    "test": "reports; chooses nothing",
}
# Each member leaves out a fold of the training images; validation images are those set aside for calibration.
_USES_WITH_FOLDS: dict[Split, str] = _USES | {
    "train": "weights of the members; epoch, members and vote out of fold",
    "validation": "temperature, prediction sets, operating point, review and outliers",
}
_TITLES = {
    "purpose": "Purpose",
    "users": "Users",
    "out_of_scope": "Out of scope",
    "limits": "Limits",
    "contact": "Contact",
    "licence": "Licence",
}
_ANOTHER_LOOK = "A promise that was certified afterwards on the same patients is less certain than it states"


def markdown_from_card(card: ModelCard) -> str:
    """Return the card as Markdown."""
    parts = [
        [
            f"# Model card: {escape(card.name)}",
            f"Release `{card.release}`, exported by Plurum {card.plurum}. Ranges in brackets are 95 % intervals.",
        ],
        ["## Intended use", *_use(card.use)],
        ["## Data", *_data(card)],
        ["## Members", _members(card)],
        ["## Decisions", *_decisions(card)],
        ["## Figures", *figure_blocks(card)],
        ["## Exported graphs", *parity_blocks(card)],
        ["## Files", _files(card)],
    ]
    if card.missing:
        parts.append(["## Not known", list_from_lines(map(escape, card.missing))])
    return "\n\n".join(block for part in parts for block in part) + "\n"


def _files(card: ModelCard) -> str:
    return table_from_rows(("file", "SHA-256"), ((code(name), code(sha256)) for name, sha256 in card.files.items()))


def _use(use: IntendedUse) -> Iterator[str]:
    found, absent = [], []
    for name, title in _TITLES.items():
        value = getattr(use, name)
        if isinstance(value, tuple):
            found += [f"**{title}**: {escape(one)}" for one in value]
        elif value:
            found.append(f"**{title}**: {escape(value)}")
        if not value:
            absent.append(name)
    if found:
        yield list_from_lines(found)
    if absent:
        what = f"Not stated: {', '.join(absent)}." if found else "Not stated."
        yield f"{what} Write `RUN/intended_use.json` with the keys {', '.join(map(code, absent))}, then export again."


def _data(card: ModelCard) -> Iterator[str]:
    yield f"Source: {escape(card.data)}. SHA-256 of pixels and labels: `{card.fingerprint}`."
    if not card.splits:
        return
    classes = card.classes if any(one.by_class for one in card.splits.values()) else ()
    uses = _USES if card.folds is None else _USES_WITH_FOLDS
    head = ("split", "images", "patients", *map(escape, classes), "used for")
    yield table_from_rows(
        head,
        (
            (
                split,
                f"{one.images:,}",
                "not known" if one.patients is None else f"{one.patients:,}",
                *(f"{one.by_class.get(name, 0):,}" for name in classes),
                uses[split],
            )
            for split, one in card.splits.items()
        ),
    )
    if card.folds is not None:
        yield (
            f"Training images are divided into {card.folds} folds. Each member was trained without one of them, which "
            f"chose its epoch. Members and vote were chosen on predictions out of fold."
        )


def _members(card: ModelCard) -> str:
    head = ("member", "architecture", "parameters", "weight", "exported as", "SHA-256 of the checkpoint")
    return table_from_rows(
        head,
        (
            (
                escape(one.name),
                escape(one.arch),
                f"{one.parameters:,}",
                f"{one.weight:.3f}",
                f"{one.precision}, {one.backend}",
                f"`{one.checkpoint_sha256}`",
            )
            for one in card.members
        ),
    )


def _decisions(card: ModelCard) -> Iterator[str]:
    vote = f"{card.voting.mode}, temperature {card.voting.temperature:.3f}"
    if card.voting.prior_ratio is not None:
        times = zip(card.classes, card.voting.prior_ratio, strict=True)
        ratios = ", ".join(f"{escape(name)} {ratio:.2f} times as often" for name, ratio in times)
        vote = f"{vote}, corrected for other class frequencies than those of the data ({ratios})"
    aside = "calibration" if "calibration" in card.splits else "validation"
    if card.site is not None:
        images = f"{card.site.images:,} images of {card.site.patients:,} patients"
        vote = f"{vote}, calibrated at the site {escape(card.site.name)} on {images} of {escape(card.site.data)}"
        aside = "site"
    sets = "hold the label alone"
    if card.coverage is not None:
        sets = f"contain the true class with a target of {card.coverage:.1%}, per class, fitted on {aside} images"
    patients = "single images only, as no patient is known"
    if card.patient_rule is not None:
        patients = f"the predictions of a patient's images are combined by {card.patient_rule}"
    yield list_from_lines(
        (
            f"**Vote**: {vote}.",
            f"**Label**: {escape(_label(card))}.",
            f"**Review**: a prediction needs review with {escape(card.review)}.",
            f"**Review risk**: {escape(_promise(card))}.",
            *(f"**Cascade**: {escape(line)}." for line in _cascade(card)),
            *(f"**Refused**: {escape(line)}." for line in _refusals(card)),
            f"**Prediction sets**: {sets}.",
            f"**Patients**: {patients}.",
        )
    )


def _label(card: ModelCard) -> str:
    if card.operating_point is None or card.operating_point.value is None:
        return card.decision
    if card.promise is not None and card.promise.decision is not None:
        return f"{card.decision}. This is {card.promise.status}, together with the review risk"
    chosen = "members and vote" if card.folds is None else "the temperature of the vote"
    return f"{card.decision}. This is provisional, because the validation images also chose {chosen}"


def _cascade(card: ModelCard) -> list[str]:
    return [] if card.cascade is None else cascade_texts(card.cascade, [member.name for member in card.members])


def _promise(card: ModelCard) -> str:
    promise = card.promise
    if promise is None:
        line = (card.promise_line or "").removeprefix("review risk: ").rstrip(".")
        if line.startswith("no promise"):
            return line
        return "no promise; figures on validation images are estimates"
    how = {
        "certified": "certified by the export on the predictions that are served",
        "provisional": "provisional: certified on PyTorch's predictions, not on those that are served",
    }[promise.status]
    text = (
        f"at most {promise.risk:.2%} for new patients like those of the certification split, with "
        f"{promise.confidence:.0%} confidence, {how}: {promise.errors:g} errors in {promise.patients:,} certification "
        f"patients with an unreviewed prediction. The review risk is the mean, over such patients, of the fraction of "
        f"their unreviewed predictions that are wrong"
    )
    if promise.by_class:
        each = ", ".join(f"{one.errors:g} errors in {one.patients:,} of {one.name}" for one in promise.by_class)
        text = f"{text}. The same holds for the patients of each class: {each}"
    if promise.decision is None:
        return text
    one = promise.decision
    name = "NPV" if one.criterion == "npv" else one.criterion
    figures = f"{one.errors:g} errors in {one.patients:,} patients"
    return f"{text}. Together with it, {name} of at least {one.value:.2%}: {figures}"


def _refusals(card: ModelCard) -> Iterator[str]:
    """Yield sentences about certifications that were refused: the configuration that failed, and its figures."""
    if card.refused_promise is not None:
        yield f"the fit, with PyTorch's predictions: {_refusal(card.refused_promise)}"
    for one in card.refused_exports:
        graphs = f"{one.precision.upper()} graphs{', also fused' if one.is_fused else ''}"
        again = "" if card.promise is None else f". {_ANOTHER_LOOK}"
        yield f"an export of {graphs}: {_refusal(one.promise)}{again}"


def _refusal(refused: RefusedPromise) -> str:
    if refused.limit is None or refused.p_value is None or refused.target is None:
        return f"no review limit could be tested for the {refused.what}: {refused.patients:,} patients at most"
    return (
        f"{refused.what} of {refused.target:.2%} with {refused.confidence:.0%} confidence; the first configuration, "
        f"without review from a confidence of {refused.limit:.4f} on, failed with {refused.errors:g} errors in "
        f"{refused.patients:,} patients, p = {refused.p_value:.3g}, where at most {1 - refused.confidence:.2g} passes"
    )
