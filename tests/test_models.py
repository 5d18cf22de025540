from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from plurum.errors import MetadataError
from plurum.files import sha256_of
from plurum.models import model_from_checkpoint, normalise
from plurum.spec import ImageSpec, Member
from tests.sample_runs.member_samples import member

IMAGE = ImageSpec(height=32, width=32, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


@pytest.fixture(scope="module")
def trained() -> Any:
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=2)


@pytest.fixture
def checkpoint(trained: Any, tmp_path: Path) -> Path:
    save_file(trained.state_dict(), tmp_path / "checkpoint.safetensors")
    return tmp_path / "checkpoint.safetensors"


def member_of(checkpoint: Path, arch: str = "resnet10t", classes: tuple[str, ...] = ("CE", "LAA")) -> Member:
    content = member("one", arch=arch, sha256=sha256_of(checkpoint), classes=classes, image=IMAGE)
    return Member.model_validate(content)


def test_a_model_comes_back_with_its_weights_and_in_evaluation_mode(trained: Any, checkpoint: Path) -> None:
    model = model_from_checkpoint(member_of(checkpoint), checkpoint)
    pixels = torch.rand(2, 3, 32, 32)
    assert not model.training
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), trained.eval()(pixels))


def test_a_missing_checkpoint_is_named(checkpoint: Path) -> None:
    metadata = member_of(checkpoint)
    checkpoint.unlink()
    with pytest.raises(MetadataError, match=r"checkpoint\.safetensors is missing; train the member 'one' again"):
        model_from_checkpoint(metadata, checkpoint)


def test_another_file_than_the_metadata_names_is_refused(checkpoint: Path) -> None:
    metadata = member_of(checkpoint)
    with checkpoint.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(MetadataError, match="its SHA-256 differs"):
        model_from_checkpoint(metadata, checkpoint)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("regnetx_002", "does not fit the architecture 'regnetx_002': of "),
        ("no_such_arch", "is of no known architecture: timm has no architecture 'no_such_arch'"),
        ("hf-hub:somebody/something", "timm has no architecture 'hf-hub:somebody/something'"),
    ],
)
def test_another_architecture_is_refused_in_one_line(checkpoint: Path, arch: str, message: str) -> None:
    with pytest.raises(MetadataError, match=message) as caught:
        model_from_checkpoint(member_of(checkpoint, arch), checkpoint)
    assert "\n" not in str(caught.value)


def test_another_number_of_classes_is_refused(checkpoint: Path) -> None:
    with pytest.raises(MetadataError, match="does not fit the architecture"):
        model_from_checkpoint(member_of(checkpoint, classes=("CE", "LAA", "other")), checkpoint)


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"\x80\x04no weights")
    with pytest.raises(MetadataError, match="is not a checkpoint: its safetensors are corrupt"):
        model_from_checkpoint(member_of(path), path)


def test_normalisation_is_that_of_the_metadata() -> None:
    pixels = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    pixels[0, 3, 5] = (255, 51, 102)
    answer = normalise(torch.from_numpy(pixels), IMAGE)
    assert answer.shape == (1, 3, 32, 32)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer[0, :, 3, 5], torch.tensor([1.0, -0.2, 0.4]))
    torch.testing.assert_close(answer[0, :, 0, 0], torch.tensor([-1.0, -1.0, 0.0]))


@pytest.mark.parametrize("size", [(48, 17), (32, 90), (11, 40), (96, 96)])
def test_pixels_of_another_size_are_resized_as_pillow_does(size: tuple[int, int]) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), dtype=np.uint8))
    image = IMAGE.model_copy(update={"height": size[0], "width": size[1]})
    images = torch.nn.functional.interpolate(
        pixels.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True, align_corners=False
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE.mean, IMAGE.std))
    torch.testing.assert_close(normalise(pixels, image), (images / 255 - mean) / std, atol=1e-4, rtol=1e-5)
