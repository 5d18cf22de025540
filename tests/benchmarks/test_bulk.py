"""The bulk benchmark with few images: all of it runs, and it counts correctly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plurum.benchmarks.bench.perf_analyzer import find_perf_analyzer, set_up_perf_analyzer
from plurum.benchmarks.claims import bulk
from plurum.errors import ServerError


def test_images_are_all_different(tmp_path: Path) -> None:
    bulk.write_digits(tmp_path, 120, 32)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == 120
    assert len({file.read_bytes() for file in files}) == 120


def test_lost_and_repeated_images_are_counted(tmp_path: Path) -> None:
    bulk.write_digits(tmp_path / "scans", 4, 32)
    files = sorted((tmp_path / "scans").rglob("*.jpg"))
    rows = [f"{files[0]},", f"{files[1]},", f"{files[1]},", f"{files[2]},no answer"]
    (tmp_path / "out.csv").write_text("\n".join(["path,error", *rows]))
    assert bulk.count_lost(tmp_path / "scans", tmp_path / "out.csv") == (2, 1)


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(600)
def test_it_runs(report_of: Callable[..., Any], repository: Path) -> None:
    try:
        _ = find_perf_analyzer() or set_up_perf_analyzer()
    except ServerError as error:
        pytest.skip(str(error))
    report = report_of(bulk.bulk, repository=repository, images=400, rounds=1, seconds=1, batch_size=[8], in_flight=[4])
    assert report["ratio_predict"] > 0
    assert report["ratio_predict_started"] > report["ratio_predict"]
    assert [one["fault"] for one in report["faults"]] == [
        "Triton killed",
        "server ended and started again",
        "client killed and started again",
    ]
    assert all((one["lost"], one["repeated"]) == (0, 0) for one in report["faults"])
