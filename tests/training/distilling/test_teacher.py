"""The teacher says what the vote says, to the images that the student sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plurum.models import model_from_checkpoint, normalise
from plurum.run import Run
from plurum.training.distilling.teacher import Teacher, predict_vote
from plurum.training.inference.predictions import decide_splits
from plurum.training.statistics.scoring import predict_logits
from plurum.voting import softmax


def normalised(run: Run) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(run.pixels()[run.table().rows("validation")]))
    return normalise(pixels, run.data().image)


def test_it_predicts_the_calibrated_vote(teacher: Run) -> None:
    ensemble = teacher.ensemble()
    found = Teacher(teacher, ensemble, teacher.data().image, 1.0).predict(normalised(teacher))
    whole = decide_splits(teacher, ensemble, ("validation",))["validation"]
    np.testing.assert_allclose(found, whole.probabilities, atol=1e-6)


def test_a_correction_for_other_class_frequencies_is_left_out(teacher: Run) -> None:
    rule = teacher.ensemble().rule
    members = np.full((1, 2, 4), 0.25)
    corrected = replace(rule, prior_ratio=(4.0, 1.0, 1.0, 1.0))
    np.testing.assert_array_equal(predict_vote(members, corrected), predict_vote(members, rule))


def test_members_see_images_in_their_own_size_and_normalisation(teacher: Run) -> None:
    ensemble, image = teacher.ensemble(), teacher.data().image
    own = image.model_copy(update={"height": 48, "width": 40, "mean": (0.5,) * 3, "std": (0.25,) * 3})
    first, second = ensemble.members
    changed = ensemble.model_copy(update={"members": (first.model_copy(update={"image": own}), second)})
    found = Teacher(teacher, changed, image, 1.0).predict(normalised(teacher))
    rows = teacher.table().rows("validation")
    logits = [
        predict_logits(model_from_checkpoint(member, teacher.checkpoint(member)), teacher.pixels(), rows, spec)
        for member, spec in ((first, own), (second, image))
    ]
    np.testing.assert_allclose(found, predict_vote(softmax(np.stack(logits, axis=1)), ensemble.rule), atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_student_that_agrees_with_the_vote_has_nothing_to_learn(teacher: Run, temperature: float) -> None:
    imitated = Teacher(teacher, teacher.ensemble(), teacher.data().image, temperature)
    images = normalised(teacher)
    logits = torch.from_numpy(np.log(imitated.predict(images))).float().requires_grad_()
    labels = torch.zeros_like(logits)
    imitated(images, logits, labels).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-4
    apart = torch.zeros_like(logits, requires_grad=True)
    imitated(images, apart, labels).backward()
    assert apart.grad is not None
    assert apart.grad.abs().max() > 1e-2


def test_a_label_counts_by_the_label_weight_and_its_fraction(teacher: Run) -> None:
    images = normalised(teacher)[:4]
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    # One class, two classes, mixed half with an image without a label, and without a label.
    targets = torch.tensor([[1.0, 0, 0, 0], [0, 0.25, 0, 0.75], [0, 0, 0.5, 0], [0, 0, 0, 0]])
    weights = 0.3 * torch.tensor([1.0, 1, 0.5, 0])

    def losses(label_weight: float) -> torch.Tensor:
        loss = Teacher(teacher, teacher.ensemble(), teacher.data().image, 2.0, label_weight, label_smoothing=0.1)
        found = [loss(images[[row]], logits[[row]], targets[[row]]) for row in range(4)]
        torch.testing.assert_close(loss(images, logits, targets), torch.stack(found).sum())
        return torch.stack(found)

    labels = torch.tensor([[1.0, 0, 0, 0], [0, 0.25, 0, 0.75], [0, 0, 1, 0], [0, 0, 0, 0]])
    on_labels = -((0.9 * labels + 0.1 / 4) * logits.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(losses(0.3), weights * on_labels + (1 - weights) * losses(0.0))
