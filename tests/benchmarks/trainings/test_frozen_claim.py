"""The comparison of frozen and full training: both sides learn from the same weights, and features are reused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plurum.benchmarks.claims.frozen import _examples, compare_sides


def test_later_frozen_members_take_less_time_than_full_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digits = _examples("digits", 300)
    assert len(digits.train) + len(digits.validation) == pytest.approx(300, abs=2)
    assert len(digits.labels) == len(digits.pixels)
    found = compare_sides("test_byobnet", digits, replace(digits, train=digits.train[:64]), 2, 2, tmp_path)
    assert found["ratio"] == found["later_frozen_s"] / found["full_s"]
    assert found["ratio"] < 1
    assert len(list((tmp_path / "cache" / "plurum" / "features").iterdir())) == 1
    assert set(found) >= {"full_nll", "frozen_nll", "full_accuracy", "frozen_accuracy", "first_frozen_s"}
