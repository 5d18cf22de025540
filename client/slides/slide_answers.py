"""Pool the predictions of a slide's tiles into one for the slide, as the images of a patient are pooled.

Legend: `[tiles]` arrays are in the order of classification; C classes and M members.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plurum.client.bulk.columns import COLUMNS, cells_by_class
from plurum.client.bulk.patients import PatientAnswer, PatientPool
from plurum.client.connection.predictions import Answer, Failure, Prediction, Served
from plurum.errors import ImageError, ServerError, needs_extra
from plurum.predictions.arrays import Bytes
from plurum.predictions.outputs import OUTPUTS
from plurum.predictions.prediction import numbers_from_prediction
from plurum.spec import PatientRule
from plurum.voting import needs_review_at

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SlideAnswers", "SlidePrediction", "TileGrid", "Tiles"]

Floats = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]
# All tiles are pooled as one patient's images.
_SLIDE = "slide"
# Numbers of an image that are not by class; a slide gets their mean over the tiles.
_SCALARS = [output.field for output in COLUMNS if output.datatype == "FP32" and output.is_scalar]


@dataclass(frozen=True)
class TileGrid:
    """Position of a slide's tiles; see `SlidePrediction`."""

    level: int
    scale: float
    microns_per_pixel: float | None
    width: int
    height: int
    lefts: tuple[int, ...] = field(repr=False)
    tops: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class Tiles(TileGrid):
    """Layout of a slide's tiles.

    Attributes:
        boxes: x, y, width and height of the tiles with tissue, in pixels of the level.
        tiles_skipped: Number of tiles with too little tissue.
    """

    boxes: tuple[Box, ...]
    tiles_skipped: int


@dataclass(frozen=True)
class SlidePrediction(TileGrid):
    """Pooled prediction for a slide.

    Attributes:
        path: Path of the slide.
        answer: Prediction for the slide. Label, confidence and probabilities follow from `rule`. Entropy, disagreement,
            std and the members' probabilities are means over the tiles. The prediction set holds the label and
            every class in at least half of the tiles' prediction sets. The slide needs review if at least half of its
            tiles do, if a tile failed, or if its confidence is below that of every tile that needs no review. At an
            operating point that states what needs review, this applies to the slide's probabilities instead of that
            confidence.
        rule: Rule that pooled the tiles' predictions; see `plurum.voting.pool_groups`.
        tiles_asked: Number of tiles with enough tissue, which were sent to the server.
        tiles_skipped: Number of tiles with too little tissue.
        tiles_review: Number of tiles whose prediction needs review.
        tiles_failed: Number of tiles that were sent and have no prediction.
        level: Level of the slide's pyramid from which tiles were read; 0 is the largest.
        scale: Width of a pixel of that level, in pixels of level 0.
        microns_per_pixel: Size of a pixel of level 0, microns; None if unknown.
        width: Width of the slide, in pixels of level 0.
        height: Height of the slide, in pixels of level 0.
        lefts: Left edges of all tile columns, in pixels of level 0.
        tops: Top edges of all tile rows, in pixels of level 0.
        tiles: Table with a row per tile that was sent: x, y, width, height (pixels of level 0), level, label,
            confidence, `p_CLASS`, entropy, disagreement, review, error (missing for a prediction; the only result of a
            failure).
        thumbnail: Thumbnail of the slide, uint8 `[height, width]` or `[height, width, samples]`.
    """

    path: Path
    answer: Prediction
    rule: PatientRule
    tiles_asked: int
    tiles_skipped: int
    tiles_review: int
    tiles_failed: int
    tiles: pd.DataFrame = field(repr=False, compare=False)
    thumbnail: Bytes = field(repr=False, compare=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the outputs."""
        return tuple(self.answer.probabilities)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values, without the tiles, their positions and the thumbnail."""
        left_out = {"path", "answer", "lefts", "tops", "tiles", "thumbnail"}
        kept = {name: value for name, value in vars(self).items() if name not in left_out}
        return {"path": str(self.path)} | self.answer.to_dict() | kept


class SlideAnswers:
    """Collects the predictions of a slide's tiles, in order, as arrays of numbers.

    Args:
        served: Description of the served ensemble.
        tiles: Layout of the tiles.
        rule: Rule that pools the tiles' predictions.

    Attributes:
        count: Number of results.
        audit: True if the server drew the latest tile for audit; None if it draws none.

    Raises:
        MissingExtraError: pandas is not installed.
    """

    def __init__(self, served: Served, tiles: Tiles, rule: PatientRule) -> None:
        with needs_extra("slides", "pandas"):
            self._served, self._tiles = served, tiles
        self._pool = PatientPool(served.classes, rule, served.point)
        asked, classes, members = len(tiles.boxes), len(served.classes), len(served.members)
        self.count = 0
        self.audit: bool | None = None
        self._probabilities: Floats = np.full((asked, classes), np.nan, dtype=np.float32)
        self._numbers: Floats = np.full((asked, len(_SCALARS)), np.nan, dtype=np.float32)
        self._winners = np.full(asked, -1, dtype=np.int32)
        self._review = np.zeros(asked, dtype=np.bool_)
        self._errors: dict[int, Failure] = {}
        # Sums over tiles: std, number of prediction sets with each class, and members' probabilities.
        self._std, self._inside, self._members = np.zeros(classes), np.zeros(classes), np.zeros((members, classes))
        # Number of tiles that each member ran for: a cascade settles some tiles without all members.
        self._ran = np.zeros(members, dtype=np.int64)

    def add(self, answer: Answer) -> None:
        """Add the result of the next tile."""
        row = self.count
        self.count += 1
        if isinstance(answer, Failure):
            self._errors[row] = answer
            self._pool.add(_SLIDE, None)
            return
        self.audit = answer.audit
        numbers = numbers_from_prediction(answer, self._served.classes)
        self._probabilities[row] = numbers["probabilities"]
        self._numbers[row] = [getattr(answer, name) for name in _SCALARS]
        self._winners[row], self._review[row] = numbers["label"], numbers["review"]
        self._pool.add(_SLIDE, answer.label, numbers["probabilities"], review=answer.review)
        self._std += numbers["std"]
        self._inside += numbers["prediction_set"]
        self._members += numbers["member_probabilities"]
        self._ran += [row is not None for row in answer.member_probabilities.values()]

    def prediction(self, path: Path, thumbnail: Bytes) -> SlidePrediction:
        """Return the pooled prediction.

        Args:
            path: Path of the slide.
            thumbnail: Thumbnail of the slide.

        Raises:
            ImageError: all tiles failed, and the first because of its image.
            ServerError: all tiles failed, and the first because of the server.
        """
        if len(self._errors) == self.count:
            first = self._errors[0]
            fault = ImageError if first.fault == "image" else ServerError
            raise fault(f"{path}: all {self.count:,} tiles failed, the first with: {first.reason}")
        (whole,) = self._pool.answers()
        return SlidePrediction(
            **{one.name: getattr(self._tiles, one.name) for one in fields(TileGrid)},
            path=path,
            answer=self._answer(whole),
            rule=self._pool.rule,
            tiles_asked=self.count,
            tiles_skipped=self._tiles.tiles_skipped,
            tiles_review=whole.review,
            tiles_failed=whole.failed,
            tiles=self._frame(),
            thumbnail=thumbnail,
        )

    def _answer(self, whole: PatientAnswer) -> Prediction:
        names, count = self._served.classes, whole.images
        inside = tuple(
            name for name, often in zip(names, self._inside, strict=True) if name == whole.label or 2 * often >= count
        )
        numbers = dict(zip(_SCALARS, self._numbers.T, strict=True))
        # An older server sends no newer output.
        means: dict[str, Any] = {
            name: float(np.nanmean(one, dtype=np.float64)) for name, one in numbers.items() if not np.isnan(one).all()
        }
        return Prediction(
            **means | {"confidence": whole.confidence},
            label=whole.label,
            probabilities=whole.probabilities,
            std=dict(zip(names, (self._std / count).tolist(), strict=True)),
            member_probabilities={
                member: dict(zip(names, (row / ran).tolist(), strict=True)) if ran else None
                for member, row, ran in zip(self._served.members, self._members, self._ran, strict=True)
            },
            prediction_set=inside,
            review=self._needs_review(whole),
        )

    def _needs_review(self, whole: PatientAnswer) -> bool:
        uncertain = 2 * whole.review >= whole.images or whole.failed > 0
        point = self._served.point
        if point is not None and self._pool.rule != "majority":
            at_point = needs_review_at(np.array([list(whole.probabilities.values())]), point)
            if at_point is not None:
                return uncertain or bool(at_point[0])
        confident = self._numbers[(self._winners >= 0) & ~self._review, _SCALARS.index("confidence")]
        # If confident tiles contradict each other, the slide is uncertain. The server does not state its review
        # threshold, but every tile that needs no review is at or above it.
        least = float(confident.min()) if len(confident) else math.inf
        # Written as a negation so that NaN needs review.
        return uncertain or not whole.confidence >= least - 1e-6

    def _frame(self) -> pd.DataFrame:
        import pandas as pd

        tiles, classes = self._tiles, self._served.classes
        boxes = np.rint(np.asarray(tiles.boxes, dtype=np.float64) * tiles.scale).astype(np.int64)
        columns: dict[str, Any] = dict(zip(("x", "y", "width", "height"), boxes.T, strict=True))
        columns["level"] = np.full(len(boxes), tiles.level, dtype=np.int64)
        names = [*classes, None]
        columns["label"] = pd.array([names[winner] for winner in self._winners], dtype="string")
        scalars = dict(zip(_SCALARS, self._numbers.T, strict=True))
        columns["confidence"] = scalars.pop("confidence")
        columns |= cells_by_class(OUTPUTS["PROBABILITIES"], dict(zip(classes, self._probabilities.T, strict=True)))
        # An older server sends no newer output.
        columns |= {name: values for name, values in scalars.items() if not np.isnan(values).all()}
        review = pd.array(self._review, dtype="boolean")
        review[self._winners < 0] = pd.NA
        columns["review"] = review
        reasons = [self._errors[row].reason if row in self._errors else None for row in range(len(boxes))]
        return pd.DataFrame(columns | {"error": pd.array(reasons, dtype="string")})
