"""Slides between images: which files are slides, in which order answers come, and where their files go."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tifffile
from PIL import Image

from plurum.client import Answer, EnsembleClient, Failure, Prediction
from plurum.client.connection.requests import pairs
from plurum.client.slides.heat_maps import SLIDE_FILES
from plurum.client.slides.slide_stream import SlideStream, is_slide
from plurum.client.slides.slides import SlideSettings
from plurum.errors import ServerError, SettingsError
from tests.client.slides.painter import Painter, answer_of
from tests.client.slides.slide_writer import PlantedTile, write_slide_file


class Reader(Painter):
    """Also accepts paths, and records the groups of images that it gets together."""

    def __init__(self, drawn: Iterable[str] | None = None) -> None:
        super().__init__(drawn=drawn)
        self.groups: list[list[str]] = []

    def stream(self, images: Iterable[Any], *, patients: Any = None, batch_size: int | None = None) -> Iterator[Answer]:
        self.groups.append([])
        for image, patient in pairs(images, patients):
            if isinstance(image, str | Path):
                self.groups[-1].append(str(image))
                self.patients.append(patient)
                yield answer_of(0.55)
            else:
                yield from super().stream([image], patients=[patient], batch_size=batch_size)


def stream_of(reader: Painter, **more: Any) -> SlideStream:
    return SlideStream(cast("EnsembleClient", reader), SlideSettings(), **more)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide_file(tmp_path / "large" / "slide.tif", 1024, 2, PlantedTile())


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    monkeypatch.setattr("plurum.client.slides.slide_stream.MAX_PIXELS", 1_000_000)
    monkeypatch.setattr("plurum.client.slides.slide_stream._SMALL_BYTES", 1000)


def test_which_files_are_slides(slide: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1024, 1024)).save(tmp_path / "large.png")
    tifffile.imwrite(tmp_path / "small.tif", np.zeros((900, 900, 3), np.uint8))
    (tmp_path / "none.tif").write_bytes(b"no image" * 10_000)
    assert is_slide(slide)
    # Of a scanner, whether it is there or not; other images can't be read by regions.
    assert is_slide("away.SVS")
    assert not any(is_slide(tmp_path / name) for name in ("large.png", "small.tif", "none.tif", "away.tif"))


def test_huge_slide_is_recognised(tmp_path: Path) -> None:
    tiles = (np.full((1024, 1024), 240, np.uint8) for _ in range(196))
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(
        path, tiles, shape=(14_336, 14_336), dtype=np.uint8, tile=(1024, 1024), photometric="minisblack", compression=8
    )
    assert is_slide(path)


def test_answers_come_in_the_order_of_the_images(slide: Path, tmp_path: Path) -> None:
    reader = Reader()
    told: list[tuple[str, int, int]] = []
    stream = stream_of(reader, progress=lambda *now: told.append(now))
    images = ["a.png", "b.png", str(slide), "c.png"]
    answers = list(stream.stream(iter(images)))
    assert [isinstance(answer, Prediction) for answer in answers] == [True] * 4
    assert [answers[index].confidence for index in (0, 1, 3)] == [0.55] * 3  # type: ignore[union-attr]
    assert [group for group in reader.groups if group] == [["a.png", "b.png"], ["c.png"]]
    assert {path for path, _, _ in told} == {str(slide)}
    assert told[-1][1] == told[-1][2] == len(told)
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_patients_stay_with_their_images_and_slides(slide: Path) -> None:
    reader = Reader(drawn=["bob"])
    images, patients = ["a.png", "b.png", str(slide), str(slide), "c.png"], ["ann", None, "bob", "ann", "bob"]
    answers = list(stream_of(reader).stream(images, patients=iter(patients)))
    tiles = sum(patient == "bob" for patient in reader.patients) - 1
    assert tiles > 1
    assert reader.patients == ["ann", "", *["bob"] * tiles, *["ann"] * tiles, "bob"]
    # A slide is drawn with its patient.
    assert [answer.audit for answer in answers[2:4]] == [True, False]  # type: ignore[union-attr]
    (unknown,) = stream_of(Reader(drawn=["bob"])).stream([str(slide)])
    assert isinstance(unknown, Prediction)
    assert unknown.audit is None


def test_patients_are_as_many_as_images() -> None:
    for patients in (["ann"], ["ann", "bob", "cid"]):
        with pytest.raises(SettingsError, match="patients: expected one per image, got"):
            list(stream_of(Reader()).stream(["a.png", "b.png"], patients=patients))


def test_broken_slide_does_not_affect_others(slide: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(slide.read_bytes()[: slide.stat().st_size // 2])
    answers = list(stream_of(Reader(), folder=tmp_path / "out", every=True).stream([str(broken), str(slide)]))
    assert isinstance(answers[0], Failure)
    assert answers[0].name == str(broken)
    assert answers[0].reason.startswith("image is corrupt or truncated: ")
    assert isinstance(answers[1], Prediction)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["slide"]
    assert sorted(path.name for path in (tmp_path / "out" / "slide").iterdir()) == sorted(SLIDE_FILES)


def test_slides_of_the_same_name_have_separate_folders(slide: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "slide.tif"
    other.parent.mkdir()
    other.write_bytes(slide.read_bytes())
    stream = stream_of(Reader(), folder=tmp_path / "out")
    assert is_slide(other)
    for _ in range(2):
        assert all(isinstance(answer, Prediction) for answer in stream.stream([str(slide), str(other)]))
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["other_slide", "slide"]
    # A resumed run gets only what is left, and may get slides in another order.
    for path in (str(other), os.path.relpath(slide), str(slide)):
        list(stream_of(Reader(), folder=tmp_path / "out").stream([path]))
    named = {path.parent.name: json.loads(path.read_text())["path"] for path in tmp_path.glob("out/*/slide.json")}
    assert named == {"other_slide": str(other), "slide": str(slide)}


def test_server_errors_end_the_stream(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="heat_class: expected one of CE, LAA, got 'XX'"):
        list(stream_of(Reader(), heat_class="XX").stream([str(slide)]))
    reader = Reader()

    def away(images: Iterable[Any], **more: Any) -> Iterator[Answer]:
        raise ServerError(f"no server responds {more} {images}")

    monkeypatch.setattr(reader, "stream", away)
    with pytest.raises(ServerError, match="no server responds"):
        list(stream_of(reader).stream([str(slide)]))
