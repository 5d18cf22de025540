from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
from fsspec.implementations.local import LocalFileSystem

from plurum.client import Failure, Prediction
from plurum.errors import DataError, PlurumError, RepositoryError, SettingsError
from plurum.repository.configs import read_config
from plurum.score import Scorer
from plurum.score.repository_model import identity_of
from tests.cascades.linear_cascade import CLASSES, ENSEMBLES, PIXELS, expected_verdict

pytestmark = pytest.mark.slow


def column(*values: object) -> npt.NDArray[Any]:
    cells = np.empty(len(values), dtype=np.object_)
    cells[:] = values
    return cells


@pytest.fixture
def scorer(linear_repository: Path) -> Any:
    one = Scorer(linear_repository)
    yield one
    one.close()


def test_answers_equal_the_reference(scorer: Scorer, pictures: list[str]) -> None:
    verdict = expected_verdict(ENSEMBLES["three stages with detectors"], PIXELS).verdict
    found = [one for one in scorer.answers(pictures) if isinstance(one, Prediction)]
    assert [one.label for one in found] == [CLASSES[label] for label in verdict.label]
    np.testing.assert_allclose([list(one.probabilities.values()) for one in found], verdict.probabilities, atol=1e-5)
    assert [one.review for one in found] == verdict.review.tolist()


def test_a_batch_becomes_a_row_per_image(scorer: Scorer, pictures: list[str], linear_repository: Path) -> None:
    batch = {
        "path": column(pictures[0], "none.png", pictures[1]),
        "patient": column("ann", None, float("nan")),
        "label": column("CE", "LAA", ""),
        "site": column(1, 2, 3),
    }
    rows = scorer(batch).to_pylist()
    assert list(rows[0])[:5] == ["path", "patient", "expected", "release", "label"]
    assert [(row["path"], row["patient"], row["expected"]) for row in rows] == [
        (pictures[0], "ann", "CE"), ("none.png", "", "LAA"), (pictures[1], "", ""),
    ]  # fmt: skip
    text = read_config(linear_repository / "ensemble").parameters["contract"].string_value
    assert {row["release"] for row in rows} == {hashlib.sha256(text.encode()).hexdigest()}
    first, broken, last = rows
    assert broken["error"] == "can't be read: No such file or directory"
    assert {broken[name] for name in broken if name not in {*batch, "expected", "release", "error"}} == {None}
    assert (first["error"], last["error"]) == (None, None)
    again = scorer({"bytes": column(*(Path(path).read_bytes() for path in (pictures[0], pictures[1])))})
    assert again.column("p_CE").to_pylist() == [first["p_CE"], last["p_CE"]]
    assert again.column_names == list(first)[3:]


def test_an_address_is_read_like_a_path(scorer: Scorer, pictures: list[str], tmp_path: Path) -> None:
    found = scorer.answers([f"file://{pictures[0]}", f"file://{tmp_path}/none.png", pictures[0]])
    assert found[0] == found[2]
    assert isinstance(found[1], Failure)
    assert found[1].reason.startswith("can't be read: FileNotFoundError")


class WaitingFiles(LocalFileSystem):  # type: ignore[misc]
    """Local files at `waiting://`; tells which are being read."""

    protocol = "waiting"
    opened: ClassVar[dict[str, threading.Event]] = {}

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        WaitingFiles.opened[Path(path).name].set()
        return super().open(path, mode, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("waiting://"))


def test_images_of_the_next_batch_are_read_meanwhile(
    scorer: Scorer, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("waiting", WaitingFiles, clobber=True)
    WaitingFiles.opened = {Path(path).name: threading.Event() for path in pictures}
    answers, model = scorer._model.answers, scorer._model
    nexts = iter([*pictures[1:3], None])

    def answer_later(images: Any, patients: Any) -> Any:
        # Nobody but this waits for the next image, which is read all the same.
        assert (following := next(nexts)) is None or WaitingFiles.opened[Path(following).name].wait(60)
        return answers(images, patients)

    monkeypatch.setattr(model, "answers", answer_later)
    batches = [{"path": column(f"waiting://{path}")} for path in pictures[:3]]
    tables = [table.to_pylist() for table in scorer.tables(batches)]
    monkeypatch.undo()
    expected = scorer({"path": column(*pictures[:3])}).to_pylist()
    assert [row["p_CE"] for (row,) in tables] == [row["p_CE"] for row in expected]


def test_bad_arguments_are_named(scorer: Scorer, linear_repository: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a column bytes or path, got image"):
        scorer({"image": column(b"")})
    cases: list[tuple[dict[str, Any], type[PlurumError], str]] = [
        ({}, SettingsError, "expected either --repository or --url"),
        ({"repository": linear_repository, "url": "x:1"}, SettingsError, "expected either --repository or --url"),
        ({"repository": tmp_path}, RepositoryError, "is not a model repository"),
    ]
    for arguments, error, reason in cases:
        with pytest.raises(error, match=reason):
            Scorer(**arguments)


def test_an_old_repository_is_told_what_to_do(linear_repository: Path, tmp_path: Path) -> None:
    old = shutil.copytree(linear_repository, tmp_path / "old")
    (old / "fused" / "1" / "stage_1.onnx").unlink()
    for _ in range(2):
        with pytest.raises(RepositoryError, match=r"expected a fused graph in fused/1, got none\. Export it again"):
            Scorer(old)
        shutil.rmtree(old / "fused", ignore_errors=True)


def test_the_identity_follows_the_graphs(linear_repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(linear_repository, tmp_path / "copy")
    assert identity_of(copy) == identity_of(linear_repository)
    with (copy / "fused" / "1" / "stage_1.onnx").open("ab") as file:
        file.write(b"\0")
    assert identity_of(copy) != identity_of(linear_repository)
