"""Messages for unknown architectures, unsupported sizes and unavailable weights."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plurum.errors import SettingsError
from plurum.spec import ImageSpec
from plurum.training.learning.architectures import check_architectures, check_input, member_names, model_from_arch

SMALL = ImageSpec(height=32, width=32, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet19", r"timm has no architecture 'resnet19'; did you mean .*resnet18"),
        ("ResNet18", r"'ResNet18'; did you mean resnet18,"),
        ("densenet", r"'densenet'; this is a family of architectures: densenet121, "),
        ("qqqqqqqqq", r"timm.list_models\(\) lists all"),
        ("resnet18.nobody_in1k", r"no weights 'resnet18.nobody_in1k'.*resnet18.a1_in1k"),
    ],
)
def test_an_unknown_architecture_is_refused_with_near_ones(arch: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_architectures(["resnet18", "resnet18.a1_in1k", arch])


def test_members_of_one_architecture_are_numbered() -> None:
    assert member_names(["resnet18", "regnetx_002", "resnet18", "resnet18"]) == (
        "resnet18",
        "regnetx_002",
        "resnet18-2",
        "resnet18-3",
    )


def test_weights_come_from_the_seed_alone() -> None:
    one = model_from_arch("test_byobnet", 3, 1).state_dict()
    torch.rand(7)
    again, other = (model_from_arch("test_byobnet", 3, seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_size_that_a_model_does_not_take_is_refused() -> None:
    check_input(model_from_arch("test_byobnet", 3, 0), "test_byobnet", 3, SMALL)
    arch = "vit_tiny_patch16_224"
    with pytest.raises(SettingsError, match=rf"{arch} can't take images of 32 x 32.*Try --image-size 224"):
        check_input(model_from_arch(arch, 3, 0), arch, 3, SMALL)


def test_a_model_with_another_number_of_classes_is_refused() -> None:
    with pytest.raises(SettingsError, match="does not return one logit per class"):
        check_input(model_from_arch("test_byobnet", 3, 0), "test_byobnet", 4, SMALL)


def test_a_failed_download_of_weights_gives_one_line() -> None:
    code = (
        "from plurum.training.learning.architectures import model_from_arch\n"
        "model_from_arch('resnet18', 3, 0, pretrained=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SettingsError: timm's weights for 'resnet18' can't be downloaded" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("level", [logging.NOTSET, logging.INFO])
def test_an_unreachable_hub_gets_one_request_and_logs_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, level: int
) -> None:
    asked: list[str] = []

    class Away:
        def head(self, url: str, timeout: float) -> None:
            asked.append(url)
            assert 0 < timeout <= 10
            logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
            raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.get_session", Away)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logger, "level", level)
    with pytest.raises(
        SettingsError, match=r"weights for 'resnet18' can't be downloaded .*\(the hub can't be reached: no route\)"
    ):
        model_from_arch("resnet18", 3, 0, pretrained=True)
    assert len(asked) == 1
    assert caplog.text == ""
    assert logger.level == level
