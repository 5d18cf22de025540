"""The vote of a run as the teacher of a student (Hinton, Vinyals & Dean, arXiv 1503.02531, section 2).

Teacher and student see the same augmented view of an image (Beyer et al., arXiv 2106.05237).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from plurum.models import model_from_checkpoint, normalise
from plurum.predictions.arrays import Floats
from plurum.run import Run
from plurum.spec import Ensemble, ImageSpec
from plurum.training.learning.precision import training_device
from plurum.voting import VotingRule, decide, softmax, temper

__all__ = ["Teacher", "predict_vote"]


class Teacher:
    """Loss of a student: how far it is from the calibrated vote of a run and, if weighted, from the labels.

    Args:
        run: Run of the members.
        ensemble: Ensemble of the run.
        image: Image spec by which the student's images are normalised.
        temperature: Temperature of the vote and of the student beside it.
        label_weight: Weight of the labels in the loss, 0 to below 1; the rest is that of the vote.
        label_smoothing: Label smoothing, 0 to below 1.

    Raises:
        MetadataError: a member is invalid.
    """

    def __init__(
        self,
        run: Run,
        ensemble: Ensemble,
        image: ImageSpec,
        temperature: float,
        label_weight: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        device = training_device()
        self._members = [
            (model_from_checkpoint(member, run.checkpoint(member)).to(device).eval(), member.image)
            for member in ensemble.members
        ]
        self._rule = ensemble.rule
        self._image = image
        self._temperature = temperature
        self._label_weight = label_weight
        self._label_smoothing = label_smoothing

    def __call__(self, images: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean of both cross-entropies for each image, summed over the batch, in nats.

        In that with the vote, both predictions have the temperature T. It is multiplied by T², so that gradients keep
        their size. An image without a label only imitates the vote; a mixed image counts by its labelled fraction.

        Args:
            images: Normalised images, `[batch, 3, height, width]`.
            logits: Logits of the student, float32 `[batch, classes]`.
            targets: Class fractions of the labels, float32 `[batch, classes]`; all 0 for an image without a label.
        """
        vote = torch.from_numpy(temper(self.predict(images), self._temperature)).to(logits)
        imitated = functional.cross_entropy(logits / self._temperature, vote, reduction="none")
        labelled = targets.sum(dim=1, keepdim=True)
        fractions = targets / labelled.where(labelled > 0, 1)
        learnt = functional.cross_entropy(logits, fractions, label_smoothing=self._label_smoothing, reduction="none")
        weights = self._label_weight * labelled[:, 0]
        return (weights * learnt + (1 - weights) * self._temperature**2 * imitated).sum()

    def predict(self, images: torch.Tensor) -> Floats:
        """Return the probabilities of the vote for normalised images, `[batch, classes]`."""
        with torch.inference_mode():
            logits = [model(self._view(images, image)).double().cpu().numpy() for model, image in self._members]
        return predict_vote(softmax(np.stack(logits, axis=1)), self._rule)

    def _view(self, images: torch.Tensor, image: ImageSpec) -> torch.Tensor:
        """Return images as a member takes them; members may differ in size, mean and standard deviation."""
        if image == self._image:
            return images
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (self._image.mean, self._image.std))
        return normalise((255 * (images * std + mean)).permute(0, 2, 3, 1), image)


def predict_vote(members: Floats, rule: VotingRule) -> Floats:
    """Return the calibrated probabilities of the vote, `[batch, classes]`, for classes as frequent as in the labels.

    Args:
        members: Probabilities of the members, `[batch, members, classes]`.
        rule: Rule of the vote; a correction for other class frequencies and the outlier test are left out.
    """
    return decide(members, replace(rule, prior_ratio=None, outliers=None)).probabilities
