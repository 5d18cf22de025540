from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from plurum.score import Scorer
from plurum.score.scorer import RELEASE

PROGRAM = """
import sys, warnings
from pyspark.sql import SparkSession
from plurum.score.spark import score_udf
images, repository, out = sys.argv[1:]
spark = (SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    .config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
    .config("spark.sql.execution.arrow.maxRecordsPerBatch", "50").getOrCreate())
score = score_udf(repository, batch_size=16)
answers = spark.read.parquet(images).repartition(2).select("path", score("content").alias("a"))
answers.select("path", "a.*").write.parquet(out)
spark.stop()
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_spark_gives_the_same_answers(linear_repository: Path, pictures: list[str], tmp_path: Path) -> None:
    contents = [Path(path).read_bytes() for path in pictures]
    contents[5] = b"no image"
    parquet.write_table(pa.table({"path": pictures, "content": contents}), tmp_path / "images.parquet")
    words = [tmp_path / "images.parquet", linear_repository, tmp_path / "out"]
    environment = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = {row["path"]: row for row in parquet.read_table(tmp_path / "out").to_pylist()}
    scorer = Scorer(linear_repository)
    table = pa.table({"path": pictures, "bytes": contents})
    expected = scorer({name: table.column(name).to_numpy() for name in table.column_names}).to_pylist()
    scorer.close()
    assert len(found) == len(pictures)
    for row in expected:
        answer = found[row["path"]]
        assert list(answer) == list(row)
        for name, value in row.items():
            joined = "|".join(value) if isinstance(value, list) else value
            assert answer[name] == (pytest.approx(joined, abs=1e-6) if isinstance(joined, float) else joined), name
        assert answer[RELEASE]
