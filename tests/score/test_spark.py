from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from plurum.benchmarks.claims.scoring.jobs import write_images
from plurum.benchmarks.tools.servers import server_of
from plurum.client import EnsembleClient, Prediction
from plurum.score import Scorer
from plurum.score.destination import Destination, PartCounts
from plurum.score.parts import score_part
from plurum.score.plan import open_plan
from plurum.score.scorer import RELEASE

IMAGES = 2000

PROGRAM = """
import sys, warnings
from pyspark.sql import SparkSession
from plurum.score.spark import score_udf
images, repository, out = sys.argv[1:]
spark = (SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    .config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
    .config("spark.sql.execution.arrow.maxRecordsPerBatch", "500").getOrCreate())
score = score_udf(repository, batch_size=64)
answers = spark.read.parquet(images).repartition(2).select("path", score("bytes").alias("a"))
answers.select("path", "a.*").write.parquet(out)
spark.stop()
"""


@pytest.fixture
def archive(tmp_path: Path) -> pa.Table:
    """Images, no two alike and one of them broken, which `images.parquet` holds."""
    write_images(tmp_path / "images.parquet", IMAGES)
    table = parquet.read_table(tmp_path / "images.parquet")
    contents = table.column("bytes").to_pylist()
    contents[5] = b"no image"
    table = pa.table({"path": table.column("path"), "bytes": contents})
    parquet.write_table(table, tmp_path / "images.parquet")
    return table


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_spark_gives_the_answers_of_a_worker_and_of_a_server(
    linear_repository: Path, archive: pa.Table, tmp_path: Path
) -> None:
    words = [tmp_path / "images.parquet", linear_repository, tmp_path / "out"]
    environment = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = {row["path"]: row for row in parquet.read_table(tmp_path / "out").to_pylist()}
    # As a worker of Ray scores a part.
    scorer, out = Scorer(linear_repository), Destination(str(tmp_path / "part"))
    plan = open_plan(out, str(tmp_path / "images.parquet"), "ensemble", IMAGES)
    counts = [score_part(plan.part(number), plan, scorer, out) for number in range(len(plan.parts))]
    scorer.close()
    assert sum(counts, PartCounts()).failed == 1
    expected = [row for name in out.parts() for row in parquet.read_table(tmp_path / "part" / name).to_pylist()]
    assert [row["path"] for row in expected] == archive.column("path").to_pylist()
    assert len(found) == IMAGES
    for row in expected:
        answer = found[row["path"]]
        assert list(answer) == list(row)
        for name, value in row.items():
            joined = "|".join(value) if isinstance(value, list) else value
            assert answer[name] == (
                pytest.approx(joined, rel=1e-5, abs=1e-5) if isinstance(joined, float) else joined
            ), name
        assert answer[RELEASE]
    check_served(linear_repository, archive, found)


def check_served(repository: Path, archive: pa.Table, found: dict[str, dict[str, Any]]) -> None:
    with server_of(repository) as server, EnsembleClient(server.urls.grpc) as client:
        answers = dict(
            zip(archive.column("path").to_pylist(), client.stream(archive["bytes"].to_pylist()), strict=True)
        )
    failed = [path for path, answer in answers.items() if not isinstance(answer, Prediction)]
    assert failed == [path for path, row in found.items() if row["error"]]
    for path, answer in answers.items():
        if isinstance(answer, Prediction):
            row = found[path]
            assert (row["label"], row["review"]) == (answer.label, answer.review)
            named = {name: row[f"p_{name}"] for name in answer.probabilities}
            assert named == pytest.approx(answer.probabilities, abs=1e-5)
