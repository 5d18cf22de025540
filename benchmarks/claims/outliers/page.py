"""Tables of the page about outliers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plurum.benchmarks.claims.outliers.material import CHOOSING, FAR, NEAR, TaskName
from plurum.benchmarks.claims.outliers.methods import OURS
from plurum.benchmarks.claims.outliers.result import OutlierResult
from plurum.export.repository.cards.markup import table_from_rows

__all__ = ["alarm_table", "method_table", "picture_of", "suite_tables"]

_TITLES: dict[TaskName, str] = {"digits": "digits", "fashion": "Fashion-MNIST"}
_SHOWN = (OURS, "ViM", "entropy", "disagreement", "MSP", "energy")


def picture_of(page: Path) -> Path:
    """Return the file of a page's picture."""
    return page.parent / "images" / page.stem / "outliers.png"


def suite_tables(result: OutlierResult) -> str:
    """Return a table per task: AUROC by kind, and FPR at 95 % detection in percent, means over seeds."""
    kinds = (*FAR, *NEAR)
    tables = []
    for task in result.tasks():
        members = f"Members trained on {_TITLES[task]}, {result.mean_accuracy(task):.0%} accurate"
        rows = []
        for method in _SHOWN:
            figures = [
                (result.mean_auroc(method, [kind], task), result.mean_fpr95(method, [kind], task)) for kind in kinds
            ]
            rows.append((method, *(f"{auroc:.3f} ({100 * fpr:.0f})" for auroc, fpr in figures)))
        tables.append(table_from_rows((members, *kinds), rows))
    return "\n\n".join(tables)


def method_table(result: OutlierResult) -> str:
    """Return a table of all methods: mean AUROC over the kinds that chose, the others, and the near ones."""
    others = [kind for kind in (*FAR, *NEAR) if kind not in CHOOSING]
    rows = [
        (method, *(f"{result.mean_auroc(method, kinds):.4f}" for kinds in (CHOOSING, others, NEAR)))
        for method in result.methods()
    ]
    return table_from_rows(("method", "kinds that chose", "other kinds", "near"), rows)


def alarm_table(found: Iterable[Mapping[str, Any]]) -> str:
    """Return a table of false alarms, from the rows of `plurum.benchmarks.claims.outliers.false_alarms`."""
    titles = ("members", "images per patient", "precision", "alpha", "flagged images", "by the law")
    rows = []
    for row in found:
        # The law counts images as independent; with several per patient, alpha is the limit.
        is_single = row["images"] == "1"
        law = f"{100 * row['law']:.2f} %" if is_single else f"at most {100 * row['alpha']:.2f} %"
        case = (row["task"], row["images"], row["precision"].upper(), f"{row['alpha']:.2f}")
        flagged = f"{100 * row['mean']:.2f} ± {100 * row['error']:.2f} %"
        spread = (f"{100 * row['spread']:.2f} %", f"{100 * row['law_spread']:.2f} %" if is_single else "")
        rows.append((*case, flagged, law, *spread, f"{100 * row['patients']:.2f} %"))
    return table_from_rows((*titles, "spread of a reference", "by the law", "patients with any"), rows)
