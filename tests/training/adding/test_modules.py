"""Checkpoints of other libraries become members that predict what the libraries' own models do."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from plurum.errors import MetadataError, OutputError, PlurumError, SettingsError
from plurum.models import model_from_checkpoint
from plurum.run import Run
from plurum.spec import Member
from plurum.training import add_member
from plurum.training.statistics.scoring import predict_logits
from plurum.voting import softmax
from tests.cli.command_line import CommandLine
from tests.sample_runs.fitted_run import CLASSES
from tests.training.adding import member_code
from tests.training.adding.onnx_samples import MEAN, STD, prepared_images, settings

CODE = Path(member_code.__file__)
SIDE = 48


def torchvision_plain(path: Path) -> nn.Module:
    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    torch.save(model.state_dict(), path)
    return model


def torchvision_squeezenet(path: Path) -> nn.Module:
    model: nn.Module = torchvision.models.squeezenet1_1(num_classes=10)
    torch.save({"epoch": 3, "model_state_dict": model.state_dict()}, path)
    return model


def timm_parallel(path: Path) -> nn.Module:
    model: nn.Module = timm.create_model("resnet10t", num_classes=10)
    torch.save({"state_dict": nn.DataParallel(model).state_dict(), "arch": "resnet10t"}, path)
    return model


def timm_averaged(path: Path) -> nn.Module:
    model, averaged = (timm.create_model("resnet10t", num_classes=10) for _ in range(2))
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": averaged.state_dict()}, path)
    return averaged


def compiled(path: Path) -> nn.Module:
    model: nn.Module = timm.create_model("regnetx_002", num_classes=10)
    wrapped: Any = torch.compile(model)
    save_file(wrapped.state_dict(), path)
    return model


def averaged_by_torch(path: Path) -> nn.Module:
    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), path)
    return model


def own_wrapper(path: Path) -> nn.Module:
    model = member_code.Wrapped(10)
    torch.save(nn.DataParallel(model).state_dict(), path)
    return model


def like_fastai(path: Path) -> nn.Module:
    model = member_code.Cut(10)
    torch.save({"model": model.state_dict(), "opt": None}, path)
    return model


def with_a_loss(path: Path) -> nn.Module:
    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": {**weights, "criterion.weight": torch.ones(10)}, "epoch": 1}, path)
    return model


def lightning(path: Path) -> nn.Module:
    lightning = importlib.import_module("lightning")

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 10) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = torchvision.models.resnet18(num_classes=width)
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(10))

    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    task = Task()
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    model: nn.Module = task.net
    return model


def monai(path: Path) -> nn.Module:
    nets = importlib.import_module("monai.networks.nets")
    model: nn.Module = nets.DenseNet121(spatial_dims=2, in_channels=3, out_channels=10)
    torch.save(model.state_dict(), path)
    return model


def transformers(path: Path) -> nn.Module:
    library = importlib.import_module("transformers")
    model: nn.Module = library.ViTForImageClassification(_vit())
    save_file(model.state_dict(), path)
    return model


def _vit() -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return importlib.import_module("transformers").ViTConfig(image_size=SIDE, patch_size=8, num_labels=10, **sizes)


def make_vit() -> nn.Module:
    """Return the transformer as a user's code would."""
    library = importlib.import_module("transformers")
    model: nn.Module = library.ViTForImageClassification(_vit())
    return model


CHECKPOINTS: dict[str, tuple[Callable[[Path], nn.Module], str, str]] = {
    "torchvision": (torchvision_plain, "torchvision:resnet18", "r.pth"),
    "torchvision, in a training state": (torchvision_squeezenet, "torchvision:squeezenet1_1", "r.tar"),
    "timm with DataParallel": (timm_parallel, "resnet10t", "model_best.pth.tar"),
    "timm with EMA": (timm_averaged, "resnet10t", "last.pth"),
    "torch.compile": (compiled, "regnetx_002", "compiled.safetensors"),
    "AveragedModel": (averaged_by_torch, "torchvision.models:resnet18", "swa.pt"),
    "a wrapper of its own": (own_wrapper, f"{CODE}:make_wrapped", "own.pt"),
    "like fastai": (like_fastai, f"{CODE}:with_cut", "stage-1.pth"),
    "a loss beside the model": (with_a_loss, "torchvision:resnet18", "task.ckpt"),
    "lightning": (lightning, "torchvision:resnet18", "epoch=1.ckpt"),
    "monai": (monai, "monai:DenseNet121", "monai.pt"),
    "transformers": (transformers, f"{__file__}:make_vit", "vit.safetensors"),
}
NOTES = {
    "timm with DataParallel": ["removed the prefix 'module.'"],
    "timm with EMA": ["used the averaged weights (EMA) under 'state_dict_ema', not those under 'state_dict'"],
    "torch.compile": ["removed the prefix '_orig_mod.'"],
    "a wrapper of its own": ["the weights' names begin with 'module.model.', the model's with 'model.'"],
    "a loss beside the model": [
        "left out 1 tensors that the model does not have (criterion.weight)",
        "removed the prefix 'model.'",
    ],
}


def own_probabilities(model: nn.Module, pixels: Any) -> Any:
    with torch.inference_mode():
        found = model.eval()(prepared_images(pixels, SIDE))
    return getattr(found, "logits", found).softmax(dim=1).double().numpy()


def probabilities_of(run: Run, member: Member, pixels: Any) -> Any:
    model = model_from_checkpoint(member, run.checkpoint(member))
    return softmax(predict_logits(model, pixels, np.arange(len(pixels)), member.image))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_becomes_a_member(name: str, fresh_run: Run, tmp_path: Path) -> None:
    make, arch, file = CHECKPOINTS[name]
    if name in {"lightning", "monai", "transformers"}:
        pytest.importorskip(name)
    torch.manual_seed(0)
    model = make(tmp_path / file)
    given = settings(arch=arch, name="theirs", image_size=SIDE, outputs=None)
    added = add_member(fresh_run, [str(tmp_path / file)], given)
    (tmp_path / file).unlink()
    pixels = np.array(fresh_run.pixels()[fresh_run.table().rows("test")[:16]])
    expected = own_probabilities(model, pixels)
    assert np.ptp(expected, axis=0).max() > 1e-4
    np.testing.assert_allclose(probabilities_of(fresh_run, added.member, pixels), expected, atol=1e-5)
    assert added.member.format == ("onnx" if ":" in arch else "timm")
    if name in NOTES:
        assert [note for note in added.notes if "accuracy" not in note] == NOTES[name]


def test_classes_of_timm_weights_may_be_in_another_order(fresh_run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm_parallel(tmp_path / "model.pt")
    turned = (*CLASSES[4:], *CLASSES[:4])
    given = settings(arch="resnet10t", classes=turned, image_size=SIDE)
    member = add_member(fresh_run, [str(tmp_path / "model.pt")], given).member
    pixels = np.array(fresh_run.pixels()[:8])
    order = [turned.index(name) for name in CLASSES]
    expected = own_probabilities(model, pixels)[:, order]
    np.testing.assert_allclose(probabilities_of(fresh_run, member, pixels), expected, atol=1e-5)


@pytest.mark.slow
def test_a_module_may_return_probabilities(fresh_run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = member_code.make_shares()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    given = settings(arch=f"{CODE}:make_shares", outputs="probabilities", image_size=SIDE)
    member = add_member(fresh_run, [str(tmp_path / "model.pt")], given).member
    pixels = np.array(fresh_run.pixels()[:8])
    with torch.inference_mode():
        expected = model(prepared_images(pixels, SIDE)).double().numpy()
    np.testing.assert_allclose(probabilities_of(fresh_run, member, pixels), expected, atol=1e-5)


def _save(content: Callable[[], object]) -> Callable[[Path], None]:
    return lambda path: torch.save(content(), path)


class _Learner:
    """Pickled as a class of fastai."""


_Learner.__module__, _Learner.__qualname__ = "fastai.learner", "Learner"


def _save_learner(path: Path) -> None:
    fastai = ModuleType("fastai.learner")
    fastai.Learner = _Learner  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fastai", ModuleType("fastai"))
        patch.setitem(sys.modules, "fastai.learner", fastai)
        torch.save(_Learner(), path)


def _save_folder(path: Path) -> None:
    path.mkdir()
    (path / "model.safetensors").touch()


def _resnet(**changes: Any) -> dict[str, torch.Tensor]:
    return dict(torchvision.models.resnet18(num_classes=10).state_dict()) | changes


REFUSALS: dict[str, tuple[Callable[[Path], object], dict[str, Any], type[PlurumError], str]] = {
    "a whole model": (
        _save(lambda: torchvision.models.resnet18(num_classes=10)),
        {},
        MetadataError,
        r"can be read without running its code.*save a state dict: torch\.save\(model\.state_dict\(\)",
    ),
    "hyperparameters with a path": (
        _save(lambda: {"state_dict": _resnet(), "hyper_parameters": {"folder": Path("data")}}),
        {},
        MetadataError,
        "Lightning: .*save_hyperparameters",
    ),
    "a pickled learner": (_save_learner, {}, MetadataError, r"fastai: learn\.save\(FILE, with_opt=False\)"),
    "another number of classes": (
        _save(lambda: torchvision.models.resnet18(num_classes=7).state_dict()),
        {},
        MetadataError,
        r"it has 7 classes \(fc\.weight is \[7, 512\]\); expected 10",
    ),
    "another architecture": (
        _save(lambda: torchvision.models.resnet34(num_classes=10).state_dict()),
        {},
        MetadataError,
        "unexpected",
    ),
    "a renamed head": (
        _save(lambda: {key.replace("fc.", "fc1."): value for key, value in _resnet().items()}),
        {},
        MetadataError,
        r"2 missing \(fc\.weight, nearest: fc1\.weight",
    ),
    "no such torchvision model": (
        torchvision_plain,
        {"arch": "torchvision:resnet81"},
        SettingsError,
        "nearest name is",
    ),
    "no such module": (torchvision_plain, {"arch": "nowhere.models:make"}, SettingsError, "can't be imported"),
    "no such file": (torchvision_plain, {"arch": "nowhere.py:make"}, SettingsError, "which does not exist"),
    "no such function": (torchvision_plain, {"arch": f"{CODE}:make"}, SettingsError, "expected a function 'make'"),
    "no model": (torchvision_plain, {"arch": f"{CODE}:make_nothing"}, SettingsError, "got int"),
    "no architecture": (torchvision_plain, {"arch": None}, SettingsError, "--arch: expected the architecture of"),
    "no size": (torchvision_plain, {"image_size": None}, SettingsError, "--image-size: expected the input size"),
    "a branch on values": (
        _save(lambda: member_code.make_branching().state_dict()),
        {"arch": f"{CODE}:make_branching"},
        MetadataError,
        "can't be exported to ONNX",
    ),
    "no classifier": (
        _save(lambda: member_code.make_body().state_dict()),
        {"arch": f"{CODE}:make_body"},
        MetadataError,
        r"to return logits \[8, 10\], got \[8, 4, 46, 46\]",
    ),
    "probabilities": (
        _save(lambda: member_code.make_shares().state_dict()),
        {"arch": f"{CODE}:make_shares", "outputs": None},
        MetadataError,
        "expected logits, got probabilities, which sum to 1. Use --outputs probabilities",
    ),
    "an option of ONNX files": (
        torchvision_plain,
        {"layout": "NHWC"},
        SettingsError,
        "--layout: expected an ONNX file, got a file of weights",
    ),
    "a folder": (
        _save_folder,
        {},
        SettingsError,
        r"which is not a file\. Name a file in it, such as .*model\.safetensors",
    ),
    "a taken name": (torchvision_plain, {"name": "resnet10t"}, OutputError, "has a member"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_can_not_be_a_member_is_refused_in_one_line(name: str, run: Run, tmp_path: Path) -> None:
    write, changes, kind, message = REFUSALS[name]
    before = sorted((run.path / "members").iterdir())
    write(tmp_path / "weights.pt")
    given = settings(**{"arch": "torchvision:resnet18", "image_size": SIDE} | changes)
    with pytest.raises(kind, match=message) as caught:
        add_member(run, [str(tmp_path / "weights.pt")], given)
    assert "\n" not in str(caught.value)
    assert sorted((run.path / "members").iterdir()) == before


def test_the_command_names_the_member_and_refuses_to_guess(fresh_run: Run, tmp_path: Path, plurum: CommandLine) -> None:
    torchvision_plain(tmp_path / "their.pth")
    mean, std = (",".join(map(str, values)) for values in (MEAN, STD))
    words = ["add", fresh_run.path, f"{CODE}:make_wrapped", tmp_path / "their.pth"]
    options = ["--classes", ",".join(CLASSES), "--mean", mean, "--std", std, "--image-size", SIDE]
    assert "does not fit the architecture" in plurum.refused(*words, *options)
    words[2] = "torchvision:resnet18"
    out = plurum.said(*words, *options)
    assert "their: torchvision:resnet18, ONNX graph, 11,1" in out
    assert "largest difference of a probability from the original model:" in out
    assert f"next: plurum fit {fresh_run.path}" in out
    assert "has a member 'their' already" in plurum.refused(*words, *options)
    assert "--std: expected three numbers" in plurum.refused(*words, *options, "--std", "1")
    assert "--mean" in plurum.ended(*words, "--classes", "a,b", "--std", std)[2]
    assert "is not a run" in plurum.refused("add", tmp_path, tmp_path / "their.pth", *options)
