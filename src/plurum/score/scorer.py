"""Predictions for a batch of rows: the class that Ray Data, Spark or a loop of your own calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from plurum.client import EnsembleClient
from plurum.client.bulk.columns import columns_of_images
from plurum.client.bulk.formats import Columnar, arrow_schema, arrow_text, table_from_columns
from plurum.client.connection.predictions import Answer, Failure, Served
from plurum.errors import DataError, SettingsError, needs_extra
from plurum.score.reading import ImageReader
from plurum.score.repository_model import RepositoryModel

__all__ = ["RELEASE", "SUBJECTS", "Scorer"]

# Column of the SHA-256 of the metadata that made a prediction, or the release's tag if the server states one.
RELEASE = "release"
# Columns of a batch that are kept, by their name in the result.
SUBJECTS = {"path": "path", "patient": "patient", "label": "expected"}


class _Model(Protocol):
    @property
    def served(self) -> Served: ...

    def answers(self, images: Sequence[bytes], patients: Sequence[str]) -> list[Answer]: ...

    def close(self) -> None: ...


class _StartedBatch(NamedTuple):
    """A batch whose images are being read: columns of `SUBJECTS`, contents, and number of rows."""

    subjects: dict[str, list[str]]
    contents: Iterator[bytes | Failure]
    rows: int


class Scorer:
    """Computes predictions in this process, or requests them from servers; for `Dataset.map_batches` of Ray Data.

    Example:
        >>> images = ray.data.read_binary_files("scans/", include_paths=True)
        >>> compute = ray.data.ActorPoolStrategy(min_size=1, max_size=8)
        >>> images.map_batches(Scorer, fn_constructor_args=["model_repository"], compute=compute, num_cpus=1)

    Args:
        repository: Folder of a repository with a fused graph, as each worker sees it; not with `url`.
        url: Addresses of servers, as for `EnsembleClient`; not with `repository`.
        threads: Threads per inference, with `repository`.
        timeout_s: Time limit of one request with its retries, seconds, with `url`.

    Raises:
        MissingExtraError: pyarrow, or the library that computes the graph, is not installed.
        RepositoryError: the repository has no fused graph, or can't be read.
        SettingsError: expected either `repository` or `url`.
    """

    def __init__(
        self,
        repository: str | Path | None = None,
        *,
        url: str | Sequence[str] | None = None,
        threads: int = 1,
        timeout_s: float = 60.0,
    ) -> None:
        if (repository is None) == (not url):
            raise SettingsError("--repository: expected either --repository or --url, got both or neither.")
        with needs_extra("parquet", "pyarrow"):
            self._model: _Model = (
                RepositoryModel(Path(repository), threads) if repository is not None else _Fleet(url, timeout_s)
            )
        served = self.served
        has = {name: getattr(served, name) for name in ("has_audit", "has_outliers", "has_cascade")}
        self._kinds = columns_of_images(served.classes, **has)
        self._form = Columnar(self._kinds)
        self._reader = ImageReader()

    @property
    def served(self) -> Served:
        """Description of the ensemble.

        Raises:
            ServerError: no server responds, or it serves no ensemble.
        """
        return self._model.served

    def schema(self, subjects: Iterable[str]) -> Any:
        """Return the Arrow schema of the results: `subjects` (values of `SUBJECTS`), release, predictions."""
        return arrow_schema([*subjects, RELEASE], self._kinds)

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> Any:
        """Return a row per image as an Arrow table.

        Its columns are path, patient and expected, as far as the batch has path, patient and label; then release; then
        those of `plurum predict --out`. The column error has the reason of an image without a prediction.

        Args:
            batch: Columns `[rows]`: `bytes`, encoded images, or `path`, files and addresses; optionally `patient` and
                `label`. Other columns are ignored.

        Raises:
            DataError: the batch has neither bytes nor paths.
            ServerError: no server responds.
        """
        (table,) = self.tables([batch])
        return table

    def tables(self, batches: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Iterator[Any]:
        """Yield the table of each batch, as a call returns it; reads the images of the next batch meanwhile.

        Raises:
            DataError: a batch has neither bytes nor paths.
            ServerError: no server responds.
        """
        before: _StartedBatch | None = None
        for batch in batches:
            after = self._start(batch)
            if before is not None:
                yield self._table(before)
            before = after
        if before is not None:
            yield self._table(before)

    def answers(self, images: Sequence[str | bytes], patients: Sequence[str] = ()) -> list[Answer]:
        """Return one prediction or failure per image, in order.

        Args:
            images: Paths, addresses, or encoded images.
            patients: Patient of each image, empty if unknown; may be empty if all are.

        Raises:
            ServerError: no server responds.
        """
        return self._answer(self._reader.start(list(map(_content, images))), list(patients) or [""] * len(images))

    def _start(self, batch: Mapping[str, npt.NDArray[Any]]) -> _StartedBatch:
        if "bytes" not in batch and "path" not in batch:
            raise DataError(f"expected a column bytes or path, got {', '.join(batch)}.")
        subjects = {name: list(map(_text, batch[name])) for name in SUBJECTS if name in batch}
        images = list(map(_content, batch["bytes" if "bytes" in batch else "path"]))
        return _StartedBatch(subjects, self._reader.start(images), len(images))

    def _table(self, batch: _StartedBatch) -> Any:
        subjects = batch.subjects
        answers = self._answer(batch.contents, subjects.get("patient", [""] * batch.rows))
        columns = [list(map(arrow_text, values)) for values in subjects.values()]
        columns.append(list(map(self._release_of, answers)))
        schema = self.schema(SUBJECTS[name] for name in subjects)
        if not answers:
            return schema.empty_table()
        return table_from_columns([*columns, *zip(*map(self._form.cells, answers), strict=True)], schema)

    def _answer(self, contents: Iterator[bytes | Failure], patients: Sequence[str]) -> list[Answer]:
        found: list[Answer | bytes] = list(contents)
        readable = [place for place, one in enumerate(found) if isinstance(one, bytes)]
        sent = [one for one in found if isinstance(one, bytes)]
        for place, answer in zip(readable, self._model.answers(sent, [patients[one] for one in readable]), strict=True):
            found[place] = answer
        return [one for one in found if not isinstance(one, bytes)]

    def close(self) -> None:
        """End threads and processes, and close connections."""
        self._reader.close()
        self._model.close()

    def _release_of(self, answer: Answer) -> str:
        stated = None if isinstance(answer, Failure) else answer.release
        return stated or self.served.metadata_sha256


class _Fleet:
    """Servers that are asked for predictions."""

    def __init__(self, url: str | Sequence[str] | None, timeout_s: float) -> None:
        self._client = EnsembleClient(url, timeout_s=timeout_s)

    @property
    def served(self) -> Served:
        return self._client.served

    def answers(self, images: Sequence[bytes], patients: Sequence[str]) -> list[Answer]:
        return list(self._client.stream(_each(images), patients=_each(patients) if any(patients) else None))

    def close(self) -> None:
        self._client.close()


def _each(values: Sequence[Any]) -> Iterator[Any]:
    yield from values


def _text(value: object) -> str:
    """Return a cell as text; a missing one, of any library, as an empty text."""
    return "" if value is None or value != value or value is np.ma.masked else str(value)  # noqa: PLR0124 - NaN


def _content(image: object) -> str | bytes:
    return (
        image
        if isinstance(image, str)
        else bytes(image)
        if isinstance(image, bytes | bytearray | memoryview)
        else str(image)
    )
