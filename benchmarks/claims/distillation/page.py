"""Table of the page about students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from plurum.export.repository.cards.markup import table_from_rows
from plurum.spec import Scores
from plurum.training.distilling.report import DistillationReport
from plurum.training.statistics.estimates import Estimate
from plurum.training.statistics.wording import difference_text

__all__ = ["student_table"]

_DIFFERENCES: tuple[tuple[Literal["vote", "labels"], str], ...] = (
    ("labels", "accuracy"),
    ("labels", "nll"),
    ("vote", "accuracy"),
)


def student_table(cases: Mapping[str, Sequence[DistillationReport]]) -> str:
    """Return a table of the vote and, for each case and seed, of the network on labels and the student.

    Args:
        cases: Reports of each seed, by what the students learn from; each names the same teacher.
    """
    first = next(iter(cases.values()))[0]
    columns = ("multiply–adds", "accuracy", "NLL", "accuracy − on labels", "NLL − on labels", "accuracy − vote")
    rows = [_row("vote", first.multiply_adds["vote"], first.vote)]
    for case, reports in cases.items():
        for seed, one in enumerate(reports):
            work = one.multiply_adds["student"]
            found = [one.differences[other][figure] for other, figure in _DIFFERENCES]
            rows.append(_row(f"on labels, seed {seed}", work, one.labels))
            rows.append(_row(f"**student**, {case}, seed {seed}", work, one.student, found))
    return table_from_rows(("", *columns), rows)


def _row(name: str, work: int, scores: Scores | None, found: Sequence[Estimate] = ()) -> tuple[str, ...]:
    figures = ("", "") if scores is None else (f"{scores.accuracy:.4f}", f"{scores.nll:.4f}")
    differences = [difference_text(one) for one in found] or [""] * len(_DIFFERENCES)
    return (name, f"{work / 1e6:.2f} M", *figures, *differences)
