"""Export of checkpoints that Plurum did not train, and messages for invalid ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from plurum.errors import MetadataError
from plurum.export import PixelModel, onnx_from_model
from plurum.export.doctor import check_repository
from plurum.export.repository import assembly as repository
from plurum.export.repository import selection
from plurum.spec import read_ensemble
from plurum.state_dicts import read_state_dict
from tests.cli.command_line import CommandLine

ARCH = "test_resnet"
SIZE = 64


@pytest.fixture(scope="module")
def models() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [timm.create_model(ARCH, num_classes=2).eval() for _ in range(2)]


@pytest.fixture(scope="module")
def checkpoints(models: list[torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write one checkpoint as safetensors, the other as saved by a training loop."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_file(models[0].state_dict(), folder / "first.safetensors")
    wrapped = {f"module.{name}": value for name, value in models[1].state_dict().items()}
    torch.save({"epoch": 7, "state_dict": wrapped}, folder / "second model.pth")
    return [folder / "first.safetensors", folder / "second model.pth"]


@pytest.fixture
def options(tmp_path: Path) -> list[object]:
    return ["--arch", ARCH, "--classes", "CE,LAA", "--image-size", SIZE, "--out", tmp_path / "out"]


@pytest.mark.slow
def test_checkpoints_become_a_repository_with_the_same_predictions(
    checkpoints: list[Path], models: list[torch.nn.Module], options: list[object], tmp_path: Path, plurum: CommandLine
) -> None:
    assert "32 generated images" in plurum.said("export", *checkpoints, *options)
    ensemble = read_ensemble(tmp_path / "out" / "ensemble.json")
    assert [member.name for member in ensemble.members] == ["first", "second_model"]
    assert (ensemble.classes, ensemble.voting.weights) == (("CE", "LAA"), (0.5, 0.5))
    assert [one for one in check_repository(tmp_path / "out") if one.state == "error"] == []
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2))
    for member, model in zip(ensemble.members, models, strict=True):
        session = onnxruntime.InferenceSession(tmp_path / "out" / member.name / "1" / "model.onnx")
        with torch.inference_mode():
            expected = model(normalised).numpy()
        np.testing.assert_allclose(session.run(["LOGITS"], {"PIXELS": pixels})[0], expected, atol=1e-4)
    card = (tmp_path / "out" / "model_card.md").read_text()
    assert "Differences between the exported graphs and PyTorch, on generated images:" in card
    assert "- Figures: the checkpoints come from elsewhere, without a run." in card
    # A repeated export is recognised.
    assert "nothing to do" in plurum.said("export", *checkpoints, *options)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write labelled images, one folder per class."""
    folder, generator = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    for brightness, name in ((60, "LAA"), (180, "CE")):
        (folder / name).mkdir()
        for number in range(24):
            coarse = generator.integers(brightness, brightness + 60, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((SIZE, SIZE)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.slow
def test_with_labelled_images_other_precisions_are_checked_and_calibrated(
    checkpoints: list[Path],
    options: list[object],
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plurum: CommandLine,
) -> None:
    samples: list[selection.ParitySample] = []

    def recording(name: str, model: PixelModel, sample: selection.ParitySample, *rest: Any) -> selection.MemberChoice:
        samples.append(sample)
        return selection.choose_artefact(name, model, sample, *rest)

    monkeypatch.setattr(repository, "choose_artefact", recording)
    words = ["export", checkpoints[0], *options, "--classes", "LAA,CE", "--images", scans, "--precision", "auto"]
    assert "validation images" in plurum.said(*words)
    entry = json.loads((tmp_path / "out" / "export.json").read_text())["artefacts"][0]
    # INT8 was built on these images, and either measured or refused by the parity check.
    assert "int8" in entry["reason"]
    (sample,) = samples
    assert len(sample.calibration) > len(sample.pixels) > 4
    # CE is bright: the first folder, but the second of --classes.
    assert sample.labels.tolist() == (sample.pixels.mean(axis=(1, 2, 3)) > 150).astype(int).tolist()
    assert "nothing to do" in plurum.said(*words)


class Swapped(torch.nn.Module):
    """Model that takes BGR instead of RGB."""

    def __init__(self, model: PixelModel) -> None:
        super().__init__()
        self.model, self.image, self.decoded, self.outputs = model, model.image, model.decoded, model.outputs

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixels.flip(3))
        return logits


def with_half_the_std(model: PixelModel) -> PixelModel:
    red, green, blue = model.image.std
    return PixelModel(model.model, model.image.model_copy(update={"std": (red / 2, green / 2, blue / 2)}))


@pytest.mark.parametrize("wrong", [Swapped, with_half_the_std], ids=["colours", "std"])
def test_a_graph_that_sees_other_colours_is_caught(
    checkpoints: list[Path],
    options: list[object],
    wrong: Callable[[PixelModel], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plurum: CommandLine,
) -> None:
    monkeypatch.setattr(selection, "onnx_from_model", lambda model, path: onnx_from_model(wrong(model), path))
    code, _, error = plurum.ended("export", checkpoints[0], *options)
    assert code == 1
    assert "FP32 graph of first differs from PyTorch on 32 images: probabilities" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "int8"], "--precision: int8 needs labelled images"),
        (["--images", "digits"], "--classes: expected the classes of --images digits, zero, one, two"),
        (["--images", "/nowhere"], "/nowhere does not exist"),
        (["--arch", "vit_nowhere", "--arch", ARCH], "timm has no architecture 'vit_nowhere'"),
        (["--arch", ARCH, "--arch", ARCH], "--arch: expected 1 or 2 for 2 checkpoints, got 3"),
        (["--classes", "CE,LAA,other"], "it has 2 classes (fc.weight is [2, 96]); expected 3"),
        (["--classes", "CE"], "it has 2 classes (fc.weight is [2, 96]); expected 1"),
        (["--classes", "CE,CE"], "these checkpoints do not form an ensemble: a class is named twice"),
        (["--mean", "0.5"], "--mean: expected three numbers"),
        (["--std", "0,0,0"], "std: "),
    ],
)
def test_wrong_use_is_one_line(
    checkpoints: list[Path], options: list[Any], words: list[str], message: str, tmp_path: Path, plurum: CommandLine
) -> None:
    if words[1] == "vit_nowhere":
        options = options[2:]
    assert message in plurum.refused("export", *checkpoints, *options, *words)
    assert not (tmp_path / "out").exists()


def test_a_pickle_of_more_than_tensors_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": timm.create_model(ARCH)}, tmp_path / "whole.pt")
    with pytest.raises(MetadataError, match="can be read without running its code"):
        read_state_dict(tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(MetadataError, match="has no state dict"):
        read_state_dict(tmp_path / "list.pt")
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(MetadataError, match="is not a checkpoint"):
        read_state_dict(tmp_path / "text.safetensors")
    with pytest.raises(MetadataError, match="is not a file"):
        read_state_dict(tmp_path / "absent.pt")


def test_averaged_weights_are_exported_and_said(
    models: list[torch.nn.Module],
    options: list[object],
    tmp_path: Path,
    plurum: CommandLine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.save(
        {"state_dict": models[0].state_dict(), "state_dict_ema": models[1].state_dict()}, tmp_path / "_best of all.pt"
    )
    assert plurum.ended("export", tmp_path / "_best of all.pt", *options)[0] == 0
    assert "_best of all.pt: used the averaged weights (EMA) under 'state_dict_ema'" in caplog.text
    (member,) = read_ensemble(tmp_path / "out" / "ensemble.json").members
    assert member.name == "best_of_all"
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "out" / member.name / "1" / "model.onnx")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        expected = models[1](normalised).numpy()
    np.testing.assert_allclose(session.run(["LOGITS"], {"PIXELS": pixels})[0], expected, atol=1e-4)


def test_two_files_of_one_name_are_refused(
    models: list[torch.nn.Module], options: list[object], tmp_path: Path, plurum: CommandLine
) -> None:
    files = [tmp_path / name / "best.pt" for name in "ab"]
    for file in files:
        file.parent.mkdir()
        torch.save(models[0].state_dict(), file)
    refusal = plurum.refused("export", *files, *options)
    assert f"{files[0]} and {files[1]} give the same member name 'best'" in refusal
