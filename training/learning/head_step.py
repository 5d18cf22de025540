"""Train a classifying layer step by step, on features instead of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from plurum.predictions.arrays import Ints
from plurum.training.data.examples import Examples
from plurum.training.learning.optimizer_step import Learner

__all__ = ["FeatureExamples", "HeadLearner", "rows_of_features"]


def rows_of_features(examples: Examples) -> tuple[Ints, Ints]:
    """Return the images whose features a training needs, and those whose augmented versions it needs, in order.

    Members of different folds need the same, so that they share the features.
    """
    rows = np.union1d(examples.train, examples.validation)
    return rows, rows if examples.is_fold else examples.train


@dataclass(frozen=True)
class FeatureExamples(Examples):
    """Labelled features of images.

    Attributes:
        features: Features of all versions, float32 `[versions, features]`: of each training and validation image
            itself, then of each further version of those that are augmented, as `rows_of_features` lists them.
        views: Number of versions of each training image.
    """

    features: npt.NDArray[np.float32] = field(kw_only=True)
    views: int = field(kw_only=True)

    @cached_property
    def _places(self) -> tuple[Ints, Ints, int]:
        """Row of each image in `features`, and of its second version, -1 without; and the rows of a version."""
        places = np.full((2, len(self.labels)), -1, dtype=np.int64)
        rows, augmented = rows_of_features(self)
        places[0, rows] = np.arange(len(rows))
        places[1, augmented] = len(rows) + np.arange(len(augmented))
        return places[0], places[1], len(augmented)

    def select(self, rows: Ints, views: Ints | None = None) -> torch.Tensor:
        """Return features, float32 `[rows, features]`, of the images or of a version of each, from 0."""
        itself, second, size = self._places
        places: Ints = itself[rows]
        if views is not None:
            places = np.where(views == 0, places, second[rows] + (views - 1) * size)
        return torch.from_numpy(np.array(self.features[places]))


class HeadLearner(Learner):
    """Learner of a layer that takes features; each step draws one version of each image."""

    examples: FeatureExamples

    @property
    def has_images(self) -> bool:
        """False: inputs are features."""
        return False

    def inputs(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return features, float32 `[rows, features]`, of a random version of each image."""
        views = torch.randint(self.examples.views, (len(rows),)).numpy() if self.examples.views > 1 else None
        return self.examples.select(rows, views).to(self.device)

    def predict(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the logits of the images `rows`, `[rows, classes]`, computed in float32."""
        head = self.validated_model
        head.eval()
        with torch.inference_mode():
            logits: npt.NDArray[np.float64] = head(self.examples.select(rows).to(self.device)).double().cpu().numpy()
        return logits
