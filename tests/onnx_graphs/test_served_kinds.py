"""Members of every kind are served with the predictions of their own libraries, and compared like any other.

The members are the work of torch's old and new exporters, a colleague's graph in FP16, and weights of timm that only
arguments of the architecture describe, as those of a model hub are.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from plurum.benchmarks.compare.architectures import compare_architectures
from plurum.benchmarks.compare.contenders import contenders_from_checkpoints, contenders_from_run, model_from_contender
from plurum.client import EnsembleClient, Prediction
from plurum.errors import MetadataError, SettingsError
from plurum.export import ExportSettings, repository_from_run
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.settings.benchmarks import CompareSettings
from plurum.spec import ImageSpec, read_member, write_metadata
from plurum.training import FitSettings, add_member, fit_run
from plurum.voting import softmax
from tests.sample_runs.build_once import build_once
from tests.sample_runs.fitted_run import CLASSES, IMAGE
from tests.sample_runs.members import write_member
from tests.training.adding.onnx_samples import expected_probabilities, prepared_images, settings, write_graph

SIDE = 48
# timm's tiny transformer for 160 x 160, made for other images and without its class token: only arguments say so.
ARGS: dict[str, Any] = {"img_size": [32, 32], "class_token": False, "global_pool": "avg"}


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.GELU(), nn.AvgPool2d(3), nn.Flatten())
    return nn.Sequential(body, nn.Linear(72, len(CLASSES))).eval()


def _vit() -> nn.Module:
    torch.manual_seed(7)
    model: nn.Module = timm.create_model("test_vit", num_classes=len(CLASSES), **ARGS)
    return model.eval()


def _export_old(path: Path) -> None:
    torch.onnx.export(_net(1), (torch.zeros(1, 3, SIDE, SIDE),), str(path), dynamo=False, opset_version=13)


def _export_new(path: Path) -> None:
    torch.onnx.export(_net(2), (torch.zeros(1, 3, SIDE, SIDE),), str(path), dynamo=True, verbose=False)


def _build(run: Run, folder: Path) -> None:
    shutil.copytree(run.path, folder)
    shutil.rmtree(folder / "members")
    mixed = Run(folder)
    write_member(mixed, _vit(), "test_vit", CLASSES, IMAGE, {"model_args": ARGS})
    with warnings.catch_warnings():
        # Both exporters warn about themselves.
        warnings.simplefilter("ignore")
        _export_old(folder / "old.onnx")
        _export_new(folder / "new.onnx")
    write_graph(folder / "half.onnx", half=True, layout="NHWC", batch=1, softmax=True)
    for name, outputs in (("old", "logits"), ("new", "logits"), ("half", "probabilities")):
        add_member(mixed, [str(folder / f"{name}.onnx")], settings(outputs=outputs))
    fit_run(folder, FitSettings(select="all", no_outliers=True, draws=100))


def _own(model: nn.Module) -> Callable[[Any], Any]:
    def predict(pixels: Any) -> Any:
        with torch.inference_mode():
            return model(prepared_images(pixels, SIDE)).softmax(dim=1).double().numpy()

    return predict


def _vit_probabilities(pixels: Any) -> Any:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        logits = _vit()((images - torch.tensor(IMAGE.mean).view(3, 1, 1)) / torch.tensor(IMAGE.std).view(3, 1, 1))
    return logits.softmax(dim=1).double().numpy()


EXPECTED: dict[str, tuple[Callable[[Any], Any], float]] = {
    "half": (expected_probabilities, 5e-3),
    "new": (_own(_net(2)), 1e-4),
    "old": (_own(_net(1)), 1e-4),
    "test_vit": (_vit_probabilities, 1e-4),
}


@pytest.fixture(scope="module")
def mixed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(build_once(tmp_path_factory, "mixed", lambda folder: _build(run, folder)))


@pytest.fixture
def pixels(mixed: Run) -> Any:
    return np.array(mixed.pixels()[mixed.table().rows("test")[:12]])


@pytest.fixture(scope="module")
def server(mixed: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    def export(out: Path) -> None:
        repository_from_run(mixed, out, ExportSettings(max_batch_size=8))

    repository = build_once(tmp_path_factory, "mixed_repository", export)
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as running:
        yield running


@pytest.mark.slow
@pytest.mark.triton
def test_each_is_served_as_its_own_library_predicts(server: Server, pixels: Any) -> None:
    with EnsembleClient(server.urls.grpc, model="ensemble_pixels") as client:
        answers = [one for one in client.predict(list(pixels)) if isinstance(one, Prediction)]
    assert set(answers[0].member_probabilities) == set(EXPECTED)
    for name, (predict, tolerance) in EXPECTED.items():
        found = [[*(one.member_probabilities[name] or {}).values()] for one in answers]
        np.testing.assert_allclose(found, predict(pixels), atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_each_is_a_contender_with_its_own_size_and_normalisation(mixed: Run, pixels: Any) -> None:
    contenders = contenders_from_run(mixed, [])
    assert [(one.name, one.format, one.image.height) for one in contenders] == [
        ("half", "onnx", 48),
        ("new", "onnx", 48),
        ("old", "onnx", 48),
        ("test_vit", "timm", 32),
    ]
    folders = contenders_from_checkpoints(mixed, [str(one.source) for one in contenders])
    for one in (*contenders, *folders):
        predict, tolerance = EXPECTED[one.name]
        with torch.inference_mode():
            logits = model_from_contender(one)(torch.from_numpy(pixels)).double().numpy()
        np.testing.assert_allclose(softmax(logits), predict(pixels), atol=tolerance, err_msg=one.name)
    assert [one.name for one in contenders_from_run(mixed, ["old", "test_vit"])] == ["old", "test_vit"]


@pytest.mark.slow
def test_a_graph_has_scores_costs_and_speed_in_every_column(mixed: Run, tmp_path: Path) -> None:
    chosen = CompareSettings(rounds=1, seconds=0.02, draws=100)
    comparison = compare_architectures(mixed, contenders_from_run(mixed, ["old"]), tmp_path, chosen, lambda _: None)
    (old,) = comparison.compared
    assert (old.format, old.arch, old.epochs) == ("onnx", "ONNX file", None)
    assert old.accuracy["pytorch"] == old.accuracy["onnx_fp32"]
    # 11 x 11 results of a convolution, the linear layer, and two resizing products over three channels.
    multiply_adds = 8 * 11 * 11 * 75 + 72 * 10 + 3 * 48 * 32 * (32 + 48)
    assert old.costs.gflops == pytest.approx(2e-9 * multiply_adds)
    # The exporter folds the normalisation of batches into the convolution.
    assert old.costs.parameters == 8 * 75 + 8 + 72 * 10 + 10
    assert min(spread.latency_ms.median for spread in old.speed.values()) > 0
    trained, graph = (note for note in comparison.notes if note.startswith("old: "))
    assert "trained elsewhere" in trained
    assert "an ONNX graph, without PyTorch weights" in graph


@pytest.mark.parametrize(
    "changes", [{"classes": ("a", "b")}, {"image": ImageSpec.model_validate(IMAGE.model_dump() | {"colour": "grey"})}]
)
def test_a_member_of_other_classes_or_images_is_refused(changes: dict[str, Any], run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.member_folder("resnet10t"), tmp_path / "other"))
    write_metadata(folder / "member.json", read_member(folder / "member.json").model_copy(update=changes))
    with pytest.raises(MetadataError, match=r"other was trained on other classes than .*Compare models of the same"):
        contenders_from_checkpoints(run, [str(folder)])


def test_the_weights_of_a_source_are_compared_by_their_folder(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"got local-dir:nowhere\. Name the member's folder"):
        contenders_from_checkpoints(run, [f"local-dir:nowhere={tmp_path / 'x.pt'}"])
