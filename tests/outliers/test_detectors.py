from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from plurum.detectors import KIND, Detector, FeatureModel, read_detector, write_detector
from plurum.errors import MetadataError, NoFeaturesError
from plurum.onnx_graphs.export import onnx_from_module
from tests.outliers.detector_samples import detector_tensors, random_detector

# The classifying layers are linear, inside a head, a convolution, and two.
ARCHS = (
    "resnet10t",
    "efficientnet_b0",
    "test_convnext",
    "test_vit",
    "mobilenetv3_small_050",
    "dla46_c",
    "deit_tiny_distilled_patch16_224",
)


@pytest.mark.parametrize("arch", ARCHS)
def test_features_come_from_the_same_pass_as_the_model_s_own_logits(arch: str) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(arch, num_classes=5).eval()
    size = 224 if "224" in arch else 64
    images = torch.randn(2, 3, size, size) if arch != "test_vit" else torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        logits, features = FeatureModel(model)(images)
        assert torch.equal(logits, model(images))
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert features.shape == (2, model.head_hidden_size if hasattr(model, "head_hidden_size") else model.num_features)
    if "distilled" not in arch:
        torch.testing.assert_close(features, pooled.flatten(1))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.top = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.top(self.body(images))
        return logits


def test_a_module_of_any_origin_gives_the_input_of_its_last_linear_layer() -> None:
    model = Plain().eval()
    images = torch.randn(3, 3, 8, 8)
    logits, features = FeatureModel(model)(images)
    assert torch.equal(logits, model(images))
    assert torch.equal(features, model.body(images))
    assert not model.top._forward_pre_hooks


class PerPixel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.top(images.permute(0, 2, 3, 1)).mean(dim=(1, 2))
        return logits


class Inner(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([super().forward(images)] * 2, dim=1)


@pytest.mark.parametrize(
    ("model", "message"),
    [(PerPixel(), "does not take one vector per image"), (Inner(), "returns 2 values, not 4 logits")],
)
def test_a_linear_layer_that_does_not_classify_gives_no_features(model: nn.Module, message: str) -> None:
    with pytest.raises(NoFeaturesError, match=message):
        FeatureModel(model)(torch.randn(2, 3, 8, 8))


def test_a_model_without_a_linear_layer_gives_no_features() -> None:
    with pytest.raises(NoFeaturesError, match="has no linear layer"):
        FeatureModel(nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten()))


class Detecting(nn.Module):
    def __init__(self, model: nn.Module, detector: Detector) -> None:
        super().__init__()
        self.model = FeatureModel(model)
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.model(images)
        return logits, self.detector(features)


def test_an_exported_graph_has_logits_and_novelty(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=3).eval()
    both = Detecting(model, random_detector(512)).eval()
    images = torch.randn(3, 3, 32, 32)
    onnx_from_module(both, (images[:2],), tmp_path / "graph.onnx", ("IMAGES",), ("LOGITS", "NOVELTY"))
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    logits, novelty = session.run(None, {"IMAGES": images.numpy()})
    with torch.inference_mode():
        expected = both(images)
    np.testing.assert_allclose(logits, expected[0].numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(novelty, expected[1].numpy(), rtol=1e-3)
    assert novelty.shape == (3, 1)


def test_novelty_is_the_standardised_distance_from_the_nearest_class() -> None:
    one, two = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([-3.0, 0.0, 0.0])
    detector = Detector(
        centre=torch.ones(3),
        axes=torch.eye(3)[:, :1],
        means=torch.stack([one, two])[:, :1],
        deviations=torch.tensor([2.0]),
        residual=torch.tensor(0.5),
        shift=torch.tensor(1.0),
        scale=torch.tensor(4.0),
    )
    novelty = detector(1 + torch.stack([one, two, torch.tensor([5.0, 1.0, 0.0]), one * torch.nan]))
    assert novelty[:, 0].tolist()[:3] == [-0.25, -0.25, (1.0 + 4.0 - 1.0) / 4.0]
    assert novelty[3].isnan()


def test_novelty_equals_the_distance_by_the_inverse_of_the_covariance() -> None:
    tensors = detector_tensors()
    axes, deviations, residual = (tensors[name].double() for name in ("axes", "deviations", "residual"))
    rest = torch.eye(6, dtype=torch.float64) - axes @ axes.T
    covariance = axes @ deviations.square().diag() @ axes.T + residual.square() * rest
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    centres = tensors["centre"].double() + tensors["means"].double() @ axes.T
    apart = features.double().unsqueeze(1) - centres
    distances = torch.einsum("icj,jk,ick->ic", apart, covariance.inverse(), apart).amin(dim=1, keepdim=True)
    expected = (distances - tensors["shift"]) / tensors["scale"]
    torch.testing.assert_close(random_detector()(features).double(), expected, rtol=1e-4, atol=1e-4)


def test_a_detector_comes_back_as_it_was_written(tmp_path: Path) -> None:
    detector, features = random_detector(), torch.randn(5, 6)
    for name in ("one", "two"):
        write_detector(tmp_path / name, detector)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = read_detector(tmp_path / "one")
    assert not found.training
    assert torch.equal(found(features), detector(features))


def header_of(path: Path) -> dict[str, dict[str, str]]:
    data = path.read_bytes()
    content: dict[str, dict[str, str]] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return content


def test_the_file_states_the_kind_of_detector(tmp_path: Path) -> None:
    write_detector(tmp_path / "detector.safetensors", random_detector())
    assert header_of(tmp_path / "detector.safetensors")["__metadata__"] == {"detector": KIND}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.tensor(0.0)}, "got scale with values that are not above 0"),
        ({"deviations": torch.tensor([1.0, 0.0, 1.0, 1.0])}, "got deviations with values that are not above 0"),
        ({"means": torch.zeros(3, 5)}, r"got means of the shape \[3, 5\]"),
        ({"means": torch.zeros(0, 4)}, r"got means of the shape \[0, 4\]"),
        ({"axes": torch.zeros(6)}, r"got axes of the shape \[6\]"),
        ({"other": torch.zeros(1)}, "got tensors axes, centre, deviations"),
        ({"centre": torch.full((6,), torch.nan)}, "not finite"),
    ],
)
def test_another_content_is_refused_in_one_line(tmp_path: Path, change: dict[str, Tensor], message: str) -> None:
    path = tmp_path / "detector.safetensors"
    save_file(random_detector().state_dict() | change, path, {"detector": KIND})
    with pytest.raises(MetadataError, match=message) as caught:
        read_detector(path)
    assert "\n" not in str(caught.value)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    with pytest.raises(MetadataError, match="no file that can be read"):
        read_detector(path)
    save_file(random_detector().state_dict(), path)
    with pytest.raises(MetadataError, match="got another file"):
        read_detector(path)
    path.write_bytes(b"\x01")
    with pytest.raises(MetadataError, match="corrupt"):
        read_detector(path)
