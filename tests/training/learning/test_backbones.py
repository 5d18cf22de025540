"""Models of the hub and of folders become members that need neither afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from plurum.errors import MetadataError, SettingsError
from plurum.models import model_from_checkpoint
from plurum.run import Run
from plurum.settings.training import TrainSettings
from plurum.spec import read_member, write_metadata
from plurum.training import train_run
from plurum.training.learning.architectures import check_architectures, member_names, model_from_arch
from plurum.training.learning.backbones import backbone_from_arch, normalisation_of, short_name

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.25, 0.25)
# timm's tiny transformer for 160 x 160, made for smaller images and without its class token: only arguments say so.
ARGS: dict[str, Any] = {"img_size": [32, 32], "class_token": False, "global_pool": "avg"}


def save_model(folder: Path, arch: str = "test_vit", **args: Any) -> Path:
    torch.manual_seed(5)
    model = timm.create_model(arch, num_classes=7, **args)
    timm.models.save_for_hf(model, str(folder), model_args=args, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"].update(mean=MEAN, std=STD)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "my model", **ARGS)


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("resnet18", "resnet18"),
        ("hf-hub:timm/vit_small.dino", "vit_small.dino"),
        ("hf-hub:owner/name@main", "name"),
        ("local-dir:/some/my model/", "my_model"),
        ("local-dir:.hidden", "hidden"),
        ("hf-hub:owner/ensemble", "ensemble_member"),
    ],
)
def test_members_are_named_after_the_last_part_of_their_source(arch: str, name: str) -> None:
    assert short_name(arch) == name


def test_equal_names_of_different_sources_are_numbered() -> None:
    assert member_names(["hf-hub:a/x", "local-dir:b/x", "resnet18"]) == ("x", "x-2", "resnet18")


def test_weights_come_from_the_folder_and_the_head_from_the_seed(folder: Path) -> None:
    arch = f"local-dir:{folder}"
    saved = load_file(folder / "model.safetensors")
    one, other = (model_from_arch(arch, 3, seed, pretrained=True).state_dict() for seed in (1, 2))
    for name, tensor in saved.items():
        if not name.startswith("head."):
            assert torch.equal(one[name], tensor), name
            assert torch.equal(other[name], tensor), name
    assert one["head.weight"].shape[0] == 3
    assert not torch.equal(one["head.weight"], other["head.weight"])
    random = model_from_arch(arch, 3, 1).state_dict()
    assert not torch.equal(random["patch_embed.proj.weight"], saved["patch_embed.proj.weight"])


def test_a_member_is_rebuilt_without_its_folder(folder: Path, archive: Path, tmp_path: Path) -> None:
    settings = TrainSettings(archs=(f"local-dir:{folder}",), pretrained=True, epochs=1, batch_size=16, image_size=32)
    training = train_run(str(archive), settings, tmp_path / "run")
    shutil.rmtree(folder)
    run = Run(tmp_path / "run")
    (member,) = run.members()
    assert training.members == (member,)
    assert (member.name, member.arch, member.model_args) == ("my_model", "test_vit", ARGS)
    assert (member.image.mean, member.image.std) == (MEAN, STD)
    # Only timm itself, with the same arguments, tells whether the model is the right one.
    twin = timm.create_model("test_vit", num_classes=len(member.classes), **ARGS).eval()
    twin.load_state_dict(load_file(run.checkpoint(member)))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model_from_checkpoint(member, run.checkpoint(member))(images), twin(images))


def test_the_hub_is_read_from_its_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--owner--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arch = "hf-hub:owner/tiny"
    assert backbone_from_arch(arch).model_args == ARGS
    weights = model_from_arch(arch, 3, 0, pretrained=True).state_dict()["patch_embed.proj.weight"]
    assert torch.equal(weights, load_file(folder / "model.safetensors")["patch_embed.proj.weight"])


def test_an_unreachable_hub_gives_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match="--arch: 'hf-hub:someone/model' can't be read from the Hugging Face Hub"):
        check_architectures(["hf-hub:someone/model"])


def test_a_broken_folder_gives_one_line(folder: Path, tmp_path: Path) -> None:
    arch = f"local-dir:{folder}"
    with pytest.raises(
        SettingsError, match=r"expected a folder with config.json .* without config.json and model.safe"
    ):
        check_architectures([f"local-dir:{tmp_path / 'missing'}"])
    config = json.loads((folder / "config.json").read_text())
    for content, message in (
        ("{", r"whose config.json can't be used"),
        (json.dumps({**config, "architecture": "resnet19"}), "timm has no architecture"),
        (json.dumps({**config, "model_args": {"checkpoint_path": "x.pt"}}), r"model_args: expected .* got checkpoint"),
        (json.dumps({**config, "model_args": [1]}), r"whose config.json can't be used"),
        (json.dumps({**config, "model_args": {"in_chans": 1}}), "expected a model of images with 3 channels, got 1"),
        (json.dumps({**config, "model_args": {**ARGS, "wrong": 3}}), "timm can't make 'test_vit' for 3 classes"),
    ):
        (folder / "config.json").write_text(content)
        with pytest.raises(SettingsError, match=message):
            model_from_arch(arch, 3, 0, pretrained=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(SettingsError, match=r"--arch: the weights of .* can't be used"):
        model_from_arch(arch, 3, 0, pretrained=True)


def test_weights_of_different_normalisation_are_refused(folder: Path) -> None:
    assert normalisation_of([f"local-dir:{folder}"]) == (MEAN, STD)
    with pytest.raises(SettingsError, match="expected pretrained weights with the same mean and std"):
        normalisation_of([f"local-dir:{folder}", "resnet18"])


def test_arguments_in_member_json_load_no_other_file(folder: Path, archive: Path, tmp_path: Path) -> None:
    settings = TrainSettings(archs=(f"local-dir:{folder}",), epochs=1, batch_size=16, image_size=32)
    train_run(str(archive), settings, tmp_path / "run")
    run = Run(tmp_path / "run")
    (member,) = run.members()
    save_file({"a": torch.zeros(1)}, tmp_path / "evil.safetensors")
    hostile = member.model_copy(update={"model_args": {"checkpoint_path": str(tmp_path / "evil.safetensors")}})
    write_metadata(run.member_folder(member.name) / "member.json", hostile)
    with pytest.raises(MetadataError, match="expected arguments of the architecture 'test_vit', got checkpoint_path"):
        model_from_checkpoint(read_member(run.member_folder(member.name) / "member.json"), run.checkpoint(member))


def test_member_json_of_a_registered_architecture_has_no_new_key(trained: Run) -> None:
    content = json.loads((trained.member_folder("test_resnet") / "member.json").read_text())
    assert "model_args" not in content
