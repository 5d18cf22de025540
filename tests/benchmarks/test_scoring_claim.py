"""Images, tables and jobs of the claim about bulk scoring; its parts take minutes each."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image
from pyarrow import parquet

from plurum.benchmarks.claims.scoring.__main__ import scoring
from plurum.benchmarks.claims.scoring.jobs import BenchJob, write_images
from plurum.benchmarks.claims.scoring.pace import _slopes
from plurum.benchmarks.claims.scoring.page import score_table
from plurum.errors import ServerError, SettingsError
from tests.docs.pages import DOCS


def test_images_are_whole_and_no_two_alike(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_images(tmp_path / f"{seed}.parquet", 1500, seed)
    tables = [parquet.read_table(tmp_path / f"{seed}.parquet") for seed in (0, 1)]
    contents = [content for table in tables for content in table.column("bytes").to_pylist()]
    assert len(set(contents)) == 3000
    assert len({path for table in tables for path in table.column("path").to_pylist()}) == 3000
    for content in contents[::500]:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert (image.size, image.mode) == ((8, 8), "RGB")


def test_growth_has_a_row_for_each_job() -> None:
    job = {"rows": 1000, "parts": 1, "seconds": 2.5, "driver_s": 1.25, "ray_s": 0.5, "driver_mib": 200}
    table = score_table("growth", {"arch": ["a", "b"], "jobs": [job, job | {"rows": 2000}], "start_and_end_s": 2.0})
    assert "| 1,000 | 1 | 2.5 | 1.25 | 0.5 | 200 |\n| 2,000 |" in table
    assert "| arch | a, b |\n| start and end s | 2.0 |" in table


def test_a_part_costs_the_difference_of_two_jobs() -> None:
    least = {
        "rows": 1e6,
        "parts": 1e3,
        "seconds": 60.0,
        "driver_s": 12.0,
        "ray_s": 6.0,
        "driver_mib": 200,
        "plan_bytes": 1e4,
    }
    more = {
        "rows": 1e6,
        "parts": 1e3,
        "seconds": 50.0,
        "driver_s": 10.0,
        "ray_s": 4.0,
        "driver_mib": 1,
        "plan_bytes": 2e4,
    }
    least["result_bytes_per_row"], more["result_bytes_per_row"] = 40.0, 0.0
    found = _slopes(least, {name: value + more[name] for name, value in least.items()})
    assert (found["seconds_per_million_rows"], found["start_and_end_s"]) == (50.0, 10.0)
    assert (found["driver_ms_per_part"], found["ray_ms_per_part"], found["plan_bytes_per_part"]) == (10.0, 4.0, 20.0)
    # 100 parts of 1,000 images a second take all of a core, 62.5 images for each of 1,600 cores.
    assert found["images_per_s_at_which_the_driver_is_full"] == 100_000
    assert found["the_same_for_each_core_of_100_nodes_with_16"] == 62.5
    assert found["driver_mib_more_for_100_million_rows"] == 100


def test_a_job_that_fails_tells_why(tmp_path: Path) -> None:
    said = list[str]()
    job = BenchJob(tmp_path / "none", tmp_path, 1, said.append)
    with pytest.raises(ServerError, match=r"exit code 2: plurum: .*expected a model repository folder, got nothing"):
        job.score(tmp_path / "images.parquet", tmp_path / "out", 10)
    assert set(said) == {"plurum score: 0 of 10 images"}


def test_parts_and_marks_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--part: expected one of faults, pace, overhead, growth, got speed"):
        scoring(part=["speed"])
    page = tmp_path / "page.md"
    with pytest.raises(SettingsError, match="expected a page with the marks <!-- pace -->"):
        scoring(part=["pace"], page=page)
    marks = re.findall("<!-- (.*?) -->", (DOCS / "scoring.md").read_text(encoding="utf-8"))
    assert {"pace", "overhead", "growth", "faults"} <= set(marks)
