"""Grad-CAM: on models with known maps, compared with captum's, and of a run's members."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import Tensor, nn

from plurum.errors import ImageError, MetadataError
from plurum.evidence import ENSEMBLE, Evidence, grad_cam, overlay
from plurum.run import Run
from tests.images.image_files import png_from_pixels


class Quadrant(nn.Module):
    """Model that sees only the top left quarter, where brightness supports one class."""

    feature_info = ({"module": "features"},)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, kernel_size=4, stride=4, bias=False)
        nn.init.constant_(self.features.weight, 1 / 48)
        self.head = nn.Linear(2, 2, bias=False)
        nn.init.constant_(self.head.weight[0], 1.0)
        nn.init.constant_(self.head.weight[1], -1.0)

    def forward(self, pixels: Tensor) -> Tensor:
        seen = torch.zeros_like(pixels)
        seen[..., :16, :16] = pixels[..., :16, :16]
        return self.head(self.features(seen).relu().mean(dim=(2, 3)))  # type: ignore[no-any-return]


def test_the_map_of_a_model_that_uses_one_quarter_lies_in_that_quarter() -> None:
    pixels = torch.ones(1, 3, 32, 32)
    values = grad_cam(Quadrant().eval(), pixels, 0)
    assert values is not None
    assert values.shape == (8, 8)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values[:4, :4], 1)
    assert values.sum() == 16
    # The same brightness is evidence against the other class.
    other = grad_cam(Quadrant().eval(), pixels, 1)
    assert other is not None
    assert not other.any()


def test_the_map_follows_what_the_network_looks_for() -> None:
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., 4:8, 8:12] = 1
    values = grad_cam(Quadrant().eval(), pixels, 0)
    assert values is not None
    assert np.argwhere(values).tolist() == [[1, 2]]


@pytest.mark.parametrize(("arch", "layer"), [("resnet10t", "layer4"), ("test_byobnet", "final_conv")])
def test_of_networks_of_convolutions_captum_has_the_same_map(arch: str, layer: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=3).eval()
    pixels = torch.randn(1, 3, 160, 160)
    # A class with evidence; other classes may have none.
    index = int(model(pixels).argmax())
    ours = grad_cam(model, pixels, index)
    theirs = LayerGradCam(model, model.get_submodule(layer)).attribute(pixels, target=index, relu_attributions=True)
    expected = theirs[0, 0].detach().numpy()
    assert ours is not None
    assert ours.any()
    # captum takes the mean over channels where the paper has the sum; our maps have a maximum of 1.
    np.testing.assert_allclose(ours, expected / expected.max(), atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "side", "places"),
    [
        ("test_vit", 160, (10, 10)),
        ("regnetx_002", 32, (4, 4)),
        # Models with channels last, and with nested layers.
        pytest.param("swin_tiny_patch4_window7_224", 224, (7, 7), marks=pytest.mark.slow),
        pytest.param("densenet121", 64, (4, 4), marks=pytest.mark.slow),
    ],
)
def test_transformers_and_small_images_have_maps_too(arch: str, side: int, places: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model, pixels = timm.create_model(arch, num_classes=3).eval(), torch.randn(1, 3, side, side)
    values = grad_cam(model, pixels, int(model(pixels).argmax()))
    assert values is not None
    assert values.shape == places
    assert values.any()
    assert 0 <= values.min() <= values.max() == 1


def test_a_network_that_keeps_no_places_has_no_map() -> None:
    assert grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval(), torch.ones(1, 3, 2, 2), 0) is None


def test_computing_a_map_leaves_the_model_unchanged() -> None:
    model = Quadrant().eval()
    grad_cam(model, torch.ones(1, 3, 32, 32), 0)
    assert not model.features._forward_hooks
    assert all(weight.grad is None for weight in model.parameters())


def test_an_overlay_is_bright_where_the_map_is() -> None:
    values = np.zeros((4, 4), dtype=np.float32)
    values[0, 3] = 1
    laid = np.asarray(overlay(Image.new("RGB", (64, 48), "grey"), values), dtype=int)
    assert laid.shape == (48, 64, 3)
    assert laid[4, 60].sum() > laid[40, 4].sum() + 200


def test_a_run_has_a_map_for_the_vote_and_each_member(run: Run) -> None:
    evidence = Evidence(run)
    names = [member.name for member in evidence.ensemble.members]
    maps = evidence.maps(png_from_pixels(np.array(run.pixels()[40])), "five")
    assert [one.name for one in maps] == [ENSEMBLE, *names]
    for one in maps:
        assert one.places == (4, 4)
        assert Image.open(io.BytesIO(one.picture)).size == (384, 384)
    assert len({one.picture for one in maps}) == 3


def test_the_votes_map_is_the_members_weighted_as_they_vote(run: Run) -> None:
    evidence = Evidence(run)
    one, other = np.eye(4, dtype=np.float32), np.ones((4, 4), dtype=np.float32)
    vote = evidence._vote([one, other])
    assert vote is not None
    np.testing.assert_allclose(vote, 0.7 * one + 0.3 * other, atol=1e-6)
    alone = evidence._vote([None, other])
    assert alone is not None
    np.testing.assert_allclose(alone, other, atol=1e-6)
    assert evidence._vote([None, None]) is None


def test_another_run_than_the_served_one_is_named(run: Run) -> None:
    evidence = Evidence(run)
    classes = evidence.ensemble.classes
    names = tuple(member.name for member in evidence.ensemble.members)
    weights = tuple(member.sha256 for member in evidence.ensemble.members)
    assert not evidence.mismatch(classes, names, weights)
    assert not evidence.mismatch(classes, names, ())
    assert "its members' weights differ" in evidence.mismatch(classes, names, ("0" * 64, weights[1]))
    assert "classes or members differ" in evidence.mismatch(classes, names[:1], weights[:1])
    assert "classes or members differ" in evidence.mismatch(classes[::-1], names, weights)


def test_an_unavailable_map_gives_one_line(run: Run, fresh_run: Run, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM"):
        Evidence(run).maps(b"no image", "five")
    with pytest.raises(MetadataError, match="got 'eleven'"):
        Evidence(run).maps(png_from_pixels(np.array(run.pixels()[40])), "eleven")
    with pytest.raises(MetadataError, match="is not a run"):
        Evidence(Run(tmp_path))
    shutil.rmtree(fresh_run.member_folder("resnet10t"))
    with pytest.raises(MetadataError, match=r"checkpoint\.safetensors is missing"):
        Evidence(fresh_run)


def test_the_module_brings_torch_only_when_asked() -> None:
    code = "import sys, plurum.evidence; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
