"""From the answers to a slide's tiles to one for the slide, by the arithmetic that makes one of a patient's images.

Legend: `[tiles]` in the order in which they are asked about; C classes and M members.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plurum.client.bulk.patients import PatientAnswer, PatientPool
from plurum.client.connection.predictions import Answer, Failure, Prediction, Served
from plurum.errors import ImageError, ServerError, needs_extra
from plurum.spec import PatientRule

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SlideAnswers", "SlidePrediction", "Tiles"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tiles:
    """How a slide was cut.

    Attributes:
        level: Of the slide's pyramid, where tiles are read; 0 is the largest.
        scale: How many of level 0's pixels one of that level is wide.
        microns_per_pixel: Of level 0; None where nobody knows.
        lefts: Where the columns of tiles begin, in pixels of level 0.
        tops: Where the rows begin, likewise.
        boxes: x, y, width and height of those with tissue, in pixels of the level.
        skipped: How many show too little.
    """

    level: int
    scale: float
    microns_per_pixel: float | None
    lefts: tuple[int, ...]
    tops: tuple[int, ...]
    boxes: tuple[Box, ...]
    skipped: int


@dataclass(frozen=True)
class SlidePrediction:
    """What a slide's tiles say together.

    Attributes:
        path: The slide.
        answer: Label, confidence and probabilities by `rule`; entropy, disagreement, std and the members' probabilities
            of a tile on average; in the prediction set the winner and what at least half of the tiles can't rule out.
            A person should look when at least half of the tiles ask for it, when a tile has no answer, or when the
            slide is less sure than every tile that asks for nothing.
        rule: How the tiles' answers became one; see `plurum.voting.pool_groups`.
        tiles_asked: How many tiles show tissue.
        tiles_skipped: How many show too little, and were not asked about.
        tiles_review: How many of the asked a person should look at.
        tiles_failed: How many of the asked have no answer.
        level: Where tiles were read; 0 is the slide's largest.
        scale: How many of level 0's pixels one of that level is wide.
        microns_per_pixel: Of level 0; None where nobody knows.
        width: Of the slide, in pixels of level 0.
        height: Likewise.
        lefts: Where the columns of tiles begin, with and without tissue; likewise.
        tops: Where the rows begin.
        tiles: A row per tile that was asked about: x, y, width, height (pixels of level 0), level, label, confidence,
            `p_CLASS`, entropy, disagreement, review, error (missing for an answer; alone for a failure).
        thumbnail: The slide made small, uint8 `[height, width]` or `[height, width, samples]`.
    """

    path: Path
    answer: Prediction
    rule: PatientRule
    tiles_asked: int
    tiles_skipped: int
    tiles_review: int
    tiles_failed: int
    level: int
    scale: float
    microns_per_pixel: float | None
    width: int
    height: int
    lefts: tuple[int, ...] = field(repr=False)
    tops: tuple[int, ...] = field(repr=False)
    tiles: pd.DataFrame = field(repr=False, compare=False)
    thumbnail: Bytes = field(repr=False, compare=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the outputs."""
        return tuple(self.answer.probabilities)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the tiles, where they lie, and the thumbnail as what JSON can hold."""
        left_out = {"path", "answer", "lefts", "tops", "tiles", "thumbnail"}
        kept = {name: value for name, value in vars(self).items() if name not in left_out}
        return {"path": str(self.path)} | self.answer.to_dict() | kept


class SlideAnswers:
    """Takes the answers to a slide's tiles, in their order, and keeps their numbers alone.

    Args:
        served: Whose answers.
        tiles: What is asked about.

    Raises:
        MissingExtraError: pandas is not installed.
    """

    def __init__(self, served: Served, tiles: Tiles) -> None:
        with needs_extra("slides", "pandas"):
            self._served, self._tiles = served, tiles
        asked, classes, members = len(tiles.boxes), len(served.classes), len(served.members)
        self.count = 0
        self._probabilities: Floats = np.full((asked, classes), np.nan, dtype=np.float32)
        # Confidence, entropy and disagreement.
        self._numbers: Floats = np.full((asked, 3), np.nan, dtype=np.float32)
        self._winners = np.full(asked, -1, dtype=np.int32)
        self._review = np.zeros(asked, dtype=np.bool_)
        self._errors: dict[int, Failure] = {}
        # Added up: std, how often a class is in the set, and what each member says.
        self._std, self._inside, self._members = np.zeros(classes), np.zeros(classes), np.zeros((members, classes))

    def add(self, answer: Answer) -> None:
        """Take the answer to the next tile."""
        row = self.count
        self.count += 1
        if isinstance(answer, Failure):
            self._errors[row] = answer
            return
        self._probabilities[row] = list(answer.probabilities.values())
        self._numbers[row] = answer.confidence, answer.entropy, answer.disagreement
        self._winners[row] = self._served.classes.index(answer.label)
        self._review[row] = answer.review
        self._std += list(answer.std.values())
        self._inside += [name in answer.prediction_set for name in self._served.classes]
        self._members += [list(one.values()) for one in answer.member_probabilities.values()]

    def prediction(self, path: Path, size: tuple[int, int], thumbnail: Bytes, rule: PatientRule) -> SlidePrediction:
        """Return what they say together.

        Args:
            path: The slide.
            size: Its width and height, in pixels of level 0.
            thumbnail: The slide made small.
            rule: How they become one.

        Raises:
            ImageError: no tile has an answer; the first says why.
            ServerError: likewise, and it is not the images' fault.
        """
        if len(self._errors) == self.count:
            first = self._errors[0]
            fault = ImageError if first.fault == "image" else ServerError
            raise fault(f"{path}: none of its {self.count:,} tiles has an answer; the first: {first.reason}")
        whole, tiles = self._pooled(rule), self._tiles
        return SlidePrediction(
            path=path,
            answer=self._answer(whole),
            rule=rule,
            tiles_asked=self.count,
            tiles_skipped=tiles.skipped,
            tiles_review=whole.review,
            tiles_failed=whole.failed,
            level=tiles.level,
            scale=tiles.scale,
            microns_per_pixel=tiles.microns_per_pixel,
            width=size[0],
            height=size[1],
            lefts=tiles.lefts,
            tops=tiles.tops,
            tiles=self._frame(),
            thumbnail=thumbnail,
        )

    def _pooled(self, rule: PatientRule) -> PatientAnswer:
        names = self._served.classes
        pool = PatientPool(names, rule)
        rows = self._probabilities.astype(np.float64)
        for winner, row, review in zip(self._winners, rows, self._review, strict=True):
            pool.add("slide", names[winner] if winner >= 0 else None, row, review=bool(review))
        return pool.answers()[0]

    def _answer(self, whole: PatientAnswer) -> Prediction:
        names, count = self._served.classes, whole.images
        _, entropy, disagreement = np.nanmean(self._numbers, axis=0, dtype=np.float64)
        inside = tuple(
            name for name, often in zip(names, self._inside, strict=True) if name == whole.label or 2 * often >= count
        )
        return Prediction(
            label=whole.label,
            confidence=whole.confidence,
            probabilities=whole.probabilities,
            entropy=float(entropy),
            disagreement=float(disagreement),
            std=dict(zip(names, (self._std / count).tolist(), strict=True)),
            member_probabilities={
                member: dict(zip(names, (row / count).tolist(), strict=True))
                for member, row in zip(self._served.members, self._members, strict=True)
            },
            prediction_set=inside,
            review=self._needs_a_person(whole),
        )

    def _needs_a_person(self, whole: PatientAnswer) -> bool:
        sure = self._numbers[(self._winners >= 0) & ~self._review, 0]
        # Where tiles contradict each other each may be sure, and the slide is not. The server alone knows from where
        # on it is sure; no tile that it lets pass is below.
        least = float(sure.min()) if len(sure) else math.inf
        # Not `confidence <`: NaN is never sure of itself.
        return 2 * whole.review >= whole.images or whole.failed > 0 or not whole.confidence >= least - 1e-6

    def _frame(self) -> pd.DataFrame:
        import pandas as pd

        tiles, classes = self._tiles, self._served.classes
        boxes = np.rint(np.asarray(tiles.boxes, dtype=np.float64) * tiles.scale).astype(np.int64)
        columns: dict[str, Any] = dict(zip(("x", "y", "width", "height"), boxes.T, strict=True))
        columns["level"] = np.full(len(boxes), tiles.level, dtype=np.int64)
        names = [*classes, None]
        columns["label"] = pd.array([names[winner] for winner in self._winners], dtype="string")
        columns["confidence"] = self._numbers[:, 0]
        columns |= {f"p_{name}": self._probabilities[:, index] for index, name in enumerate(classes)}
        columns |= {"entropy": self._numbers[:, 1], "disagreement": self._numbers[:, 2]}
        review = pd.array(self._review, dtype="boolean")
        review[self._winners < 0] = pd.NA
        columns["review"] = review
        reasons = [self._errors[row].reason if row in self._errors else None for row in range(len(boxes))]
        return pd.DataFrame(columns | {"error": pd.array(reasons, dtype="string")})
