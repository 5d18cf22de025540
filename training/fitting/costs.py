"""Costs of decisions, read from a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plurum.errors import SettingsError
from plurum.regular_files import read_regular

__all__ = ["Costs", "read_costs"]

_COLUMNS = ("true", "decided", "cost")
_REVIEW = "review"


@dataclass(frozen=True)
class Costs:
    """Costs of decisions, in any unit.

    Attributes:
        matrix: Cost of each decision, `[true class][decided class]`.
        review: Cost of a review; None if the file has none.
    """

    matrix: tuple[tuple[float, ...], ...]
    review: float | None


def read_costs(path: Path, classes: Sequence[str]) -> Costs:
    """Return the costs in a CSV file with the columns `true`, `decided` and `cost`.

    A correct decision costs 0 unless the file has a row for it. A row with an empty `true` and the decision `review`
    states the cost of a review.

    Raises:
        SettingsError: the file can't be read, names an unknown class or a pair twice, or lacks a pair.
    """
    costs: dict[tuple[str, str], float] = {}
    for line, row in _rows(path):
        pair = row["true"], row["decided"]
        if pair != ("", _REVIEW):
            if pair[1] == _REVIEW and _REVIEW not in classes:
                raise _fault(path, f"line {line}: expected no true class for a review, got {pair[0]!r}")
            for name in pair:
                if name not in classes:
                    raise _fault(path, f"line {line} names the unknown class {name!r}; available: {', '.join(classes)}")
        if pair in costs:
            raise _fault(path, f"line {line} states the cost of {_named(pair)} a second time")
        costs[pair] = _cost(path, line, row["cost"])
    found = {(name, name): 0.0 for name in classes} | costs
    missing = [(true, decided) for true in classes for decided in classes if (true, decided) not in found]
    if missing:
        more = f" and of {len(missing) - 1} more pairs" if len(missing) > 1 else ""
        raise _fault(path, f"expected a cost of {_named(missing[0])}{more}, got none. Add a row for each pair")
    matrix = tuple(tuple(found[true, decided] for decided in classes) for true in classes)
    return Costs(matrix, costs.get(("", _REVIEW)))


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        text = read_regular(path).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restval="")
        rows = [(reader.line_num, {str(key): str(value).strip() for key, value in row.items()}) for row in reader]
    except OSError as error:
        raise _fault(path, f"can't be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _fault(path, f"is not a CSV file in UTF-8: {error}") from error
    if set(reader.fieldnames or ()) != set(_COLUMNS):
        got = ", ".join(reader.fieldnames or ()) or "no columns"
        raise _fault(path, f"expected the columns {', '.join(_COLUMNS)}, got {got}")
    return rows


def _cost(path: Path, line: int, text: str) -> float:
    try:
        cost = float(text)
    except ValueError:
        cost = math.nan
    if not 0 <= cost <= 1e100:
        raise _fault(path, f"line {line}: expected a cost of at least 0, got {text!r}")
    return cost


def _named(pair: tuple[str, str]) -> str:
    true, decided = pair
    return f"deciding {decided!r} for {true!r}" if true else "a review"


def _fault(path: Path, text: str) -> SettingsError:
    return SettingsError(f"--costs: {path}: {text}.")
