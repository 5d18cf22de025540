"""Score a column of a Spark DataFrame, by pyspark's `predict_batch_udf`: each executor computes the graph itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.client.bulk.columns import columns_of_images
from plurum.client.bulk.formats import Columnar
from plurum.errors import needs_extra
from plurum.score.repository_model import served_from_repository
from plurum.score.scorer import RELEASE, Scorer

__all__ = ["score_udf"]


def score_udf(repository: str | Path, *, batch_size: int = 64) -> Callable[[Any], Any]:
    """Return a function of Spark from a column of images to a struct of predictions.

    The struct has the columns of `plurum predict --out`, after `release`. Several values, such as those of
    prediction_set, are joined by `|`. The field error has the reason of an image without a prediction.

    Example:
        >>> images = spark.read.format("binaryFile").load("scans/")
        >>> images.select("path", score_udf("model_repository")("content").alias("answer"))

    Args:
        repository: Folder of a repository with a fused graph, at the same path on each executor.
        batch_size: Number of images that are predicted together.

    Raises:
        MissingExtraError: pyspark is not installed.
        RepositoryError: the repository has no fused graph, or can't be read.
    """
    with needs_extra("spark", "pyspark.ml.functions", "pandas", "pyarrow"):
        from pyspark.ml.functions import predict_batch_udf
        from pyspark.sql import types
    served, folder = served_from_repository(Path(repository)), str(Path(repository).absolute())
    has = {name: getattr(served, name) for name in ("has_audit", "has_outliers", "has_cascade")}
    kinds = columns_of_images(served.classes, **has)
    spark_types: dict[str, Any] = {"text": types.StringType(), "texts": types.StringType()}
    spark_types |= {"flag": types.BooleanType(), "float32": types.FloatType()}
    fields = {RELEASE: spark_types["text"]} | {name: spark_types[kind] for name, kind in kinds.items()}
    struct = types.StructType([types.StructField(name, kind) for name, kind in fields.items()])
    # `predict_batch_udf` has no Booleans: they are numbers until the struct is cast.
    flags = {name: types.ByteType() for name, kind in kinds.items() if kind == "flag"}
    numbers = types.StructType([types.StructField(name, kind) for name, kind in (fields | flags).items()])

    def make_predict() -> Callable[[npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
        scorer, form = Scorer(folder), Columnar(kinds)

        def predict(images: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
            answers = scorer.answers([one if isinstance(one, str) else bytes(one or b"") for one in images])
            rows = [[served.metadata_sha256, *map(_number_or_text, form.cells(answer))] for answer in answers]
            return {name: _objects([row[place] for row in rows]) for place, name in enumerate(fields)}

        return predict

    score = predict_batch_udf(make_predict, return_type=numbers, batch_size=batch_size)
    return lambda images: score(images).cast(struct)


def _number_or_text(cell: Any) -> Any:
    return "|".join(cell) if isinstance(cell, tuple) else int(cell) if isinstance(cell, bool) else cell


def _objects(values: list[Any]) -> npt.NDArray[Any]:
    """Return values, some of which may be None, as a column."""
    column = np.empty(len(values), dtype=np.object_)
    column[:] = values
    return column
