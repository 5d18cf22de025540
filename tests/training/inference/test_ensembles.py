"""Ensembles in Python, against their members and their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from plurum.errors import DataError, MetadataError, SettingsError
from plurum.models import model_from_checkpoint, normalise
from plurum.run import Run
from plurum.spec import ImageSpec
from plurum.training import ensemble_from_checkpoints, ensemble_from_models, ensemble_from_run
from plurum.voting import decide, softmax

IMAGE = ImageSpec(height=8, width=8, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


class Constant(nn.Module):
    """Model with the same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(pixels), -1)


def some_pixels(run: Run) -> npt.NDArray[np.uint8]:
    return np.array(run.pixels()[:5])


def test_the_ensemble_of_a_run_predicts_as_its_metadata_states(run: Run) -> None:
    ensemble, pixels = run.ensemble(), some_pixels(run)
    whole = ensemble_from_run(run.path)
    with torch.inference_mode():
        batch = normalise(torch.from_numpy(pixels), ensemble.image)
        logits = [model_from_checkpoint(one, run.checkpoint(one))(batch).numpy() for one in ensemble.members]
    expected = decide(softmax(np.stack(logits, axis=1)), ensemble.rule)
    verdict = whole.predict_with_uncertainty(pixels)
    np.testing.assert_allclose(verdict.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_array_equal(verdict.prediction_set, expected.prediction_set)
    np.testing.assert_array_equal(verdict.review, expected.review)
    answers = whole(torch.from_numpy(pixels))
    assert answers.dtype == torch.float32
    np.testing.assert_allclose(answers, verdict.probabilities, atol=1e-6)
    assert whole.classes == ensemble.classes


def test_checkpoints_vote_with_the_weights_they_are_given(run: Run, tmp_path: Path) -> None:
    """Member folders, safetensors and both kinds of .pt files give the same member."""
    one, other = run.ensemble().members
    folder, file = run.member_folder(one.name), run.checkpoint(other)
    torch.save(load_file(file), tmp_path / "plain.pt")
    wrapped = {f"module.{name}": value for name, value in load_file(file).items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "trained.pth")
    pixels, weights = some_pixels(run), (0.4, 0.6)
    alone = [ensemble_from_checkpoints([run.member_folder(member.name)])(pixels).numpy() for member in (one, other)]
    for source in (run.member_folder(other.name), file, tmp_path / "plain.pt", str(tmp_path / "trained.pth")):
        vote = ensemble_from_checkpoints(
            [folder, source], arch=other.arch, classes=one.classes, image=one.image, weights=weights
        )
        np.testing.assert_allclose(vote(pixels), 0.4 * alone[0] + 0.6 * alone[1], atol=1e-5)


def test_models_of_ones_own_vote_softly_or_by_count() -> None:
    models = [Constant(0.0, 2.0), Constant(0.0, 2.0), Constant(9.0, 0.0)]
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    soft = ensemble_from_models(models, classes=("CE", "LAA"), image=IMAGE)
    hard = ensemble_from_models(models, classes=("CE", "LAA"), image=IMAGE, voting="hard", weights=[0.2, 0.4, 0.4])
    sure = 1 / (1 + np.exp(-2))
    assert soft(pixels)[0].tolist() == pytest.approx(
        [(2 * (1 - sure) + 1 / (1 + np.exp(-9))) / 3, 1 - (2 * (1 - sure) + 1 / (1 + np.exp(-9))) / 3]
    )
    assert hard(pixels)[0].tolist() == pytest.approx([0.4, 0.6])
    verdict = hard.predict_with_uncertainty(torch.zeros((2, 8, 8, 3), dtype=torch.uint8))
    assert verdict.label.tolist() == [1, 1]
    assert (verdict.disagreement > 0.1).all()
    assert len(list(soft.parameters())) == 3
    assert soft.to("cpu") is soft


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [0.5, 0.5, 0.0]}, "weights: expected 2, one per model, got 3"),
        ({"weights": [0.5, 0.4]}, r"weights: expected numbers of at least 0 with a sum of 1, got \[0.5, 0.4\]"),
        ({"weights": [1.5, -0.5]}, "weights: expected numbers of at least 0"),
        ({"voting": "stack"}, "voting: expected soft or hard, got 'stack'"),
        ({"classes": ("CE", "CE")}, "expected at least 1 model and 2 distinct classes"),
    ],
)
def test_members_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"classes": ("CE", "LAA"), "image": IMAGE} | changes
    with pytest.raises(SettingsError, match=message):
        ensemble_from_models([Constant(0.0, 1.0), Constant(1.0, 0.0)], **arguments)


def test_pixels_and_models_of_another_shape_are_refused() -> None:
    ensemble = ensemble_from_models([Constant(0.0, 1.0, 2.0)], classes=("CE", "LAA"), image=IMAGE)
    with pytest.raises(MetadataError, match=r"model 0: expected logits \[1, 2\] for the classes CE, LAA, got \[1, 3\]"):
        ensemble(np.zeros((1, 8, 8, 3), np.uint8))
    for wrong in (np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), np.uint8)):
        with pytest.raises(DataError, match=r"pixels: expected uint8 \[batch, 8, 8, 3\], got "):
            ensemble(wrong)


def test_files_that_are_not_checkpoints_are_refused(run: Run, tmp_path: Path) -> None:
    one, other = run.ensemble().members
    known: dict[str, Any] = {"classes": one.classes, "image": one.image}
    with pytest.raises(SettingsError, match="is a file of weights without metadata; pass arch, classes and image"):
        ensemble_from_checkpoints([run.checkpoint(one)])
    with pytest.raises(SettingsError, match="timm has no architecture 'resnet0'"):
        ensemble_from_checkpoints([run.checkpoint(one)], arch="resnet0", **known)
    with pytest.raises(MetadataError, match=f"does not fit the architecture '{other.arch}'"):
        ensemble_from_checkpoints([run.checkpoint(one)], arch=other.arch, **known)
    with pytest.raises(MetadataError, match="another image spec than"):
        ensemble_from_checkpoints(
            [run.member_folder(one.name), run.checkpoint(one)],
            arch=one.arch,
            classes=one.classes,
            image=one.image.model_copy(update={"colour": "grey"}),
        )
    torch.save(Constant(1.0), tmp_path / "whole.pt")
    (tmp_path / "text.pt").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in {
        "whole.pt": "is not a checkpoint",
        "text.pt": "is not a checkpoint",
        "list.pt": r"has no state dict; save model\.state_dict",
        "none.pt": "is not a file .*; name a checkpoint",
    }.items():
        with pytest.raises(MetadataError, match=message) as caught:
            ensemble_from_checkpoints([tmp_path / name], arch=one.arch, **known)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        SettingsError, match="arch: expected a name or a list of 2, one per checkpoint, got a list of 1"
    ):
        ensemble_from_checkpoints([run.checkpoint(one)] * 2, arch=[one.arch], **known)
    with pytest.raises(SettingsError, match="expected at least 1 checkpoint, got 0"):
        ensemble_from_checkpoints([])
