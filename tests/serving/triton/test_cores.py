"""How many cores affinity and quotas leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plurum.serving import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def version_2(folder: Path, own: str, quotas: dict[str, str]) -> tuple[Path, Path]:
    cgroups, process = folder / "cgroup", folder / "own"
    process.write_text(f"0::{own}\n")
    for group, text in quotas.items():
        (cgroups / group).mkdir(parents=True, exist_ok=True)
        (cgroups / group / "cpu.max").write_text(text + "\n")
    return cgroups, process


def test_without_quota_affinity_decides(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 8
    assert usable_cores(*version_2(tmp_path, "/", {".": "max 100000"})) == 8


@pytest.mark.parametrize(("quota", "cores"), [("300000 100000", 3), ("350000 100000", 3), ("50000 100000", 1)])
def test_a_quota_is_taken_in_whole_cores(tmp_path: Path, quota: str, cores: int) -> None:
    assert usable_cores(*version_2(tmp_path, "/", {".": quota})) == cores


def test_the_tightest_quota_above_counts(tmp_path: Path) -> None:
    quotas = {"a": "200000 100000", "a/b": "500000 100000", "other": "100000 100000"}
    assert usable_cores(*version_2(tmp_path, "/a/b", quotas)) == 2


@pytest.mark.parametrize(("quota", "cores"), [("400000", 4), ("-1", 8)])
def test_quotas_of_cgroups_version_1_count(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert usable_cores(tmp_path, tmp_path / "none") == cores
