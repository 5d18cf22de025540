"""Members from elsewhere, of another size and normalisation, are fitted, exported and served as any other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from plurum.client import EnsembleClient, Prediction
from plurum.evidence import Evidence
from plurum.export import ExportSettings, repository_from_run
from plurum.export.graphs.runtimes import onnx_session
from plurum.models import model_from_checkpoint
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.spec import Ensemble
from plurum.training import FitSettings, add_member, ensemble_from_run, fit_run
from plurum.training.statistics.scoring import predict_logits
from plurum.voting import softmax
from tests.images.image_files import png_from_pixels
from tests.sample_runs.build_once import build_once
from tests.training.adding.onnx_samples import expected_probabilities, settings, write_graph

ADDED = "theirs"


def _build(run: Run, folder: Path) -> None:
    shutil.copytree(run.path, folder)
    write_graph(folder / f"{ADDED}.onnx", layout="NHWC", batch=1, softmax=True)
    add_member(Run(folder), [str(folder / f"{ADDED}.onnx")], settings(outputs="probabilities"))
    fit_run(folder, FitSettings(select="all", outlier_alpha=0.1))


@pytest.fixture(scope="module")
def added(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(build_once(tmp_path_factory, "added", lambda folder: _build(run, folder)))


@pytest.fixture(scope="module")
def repository(added: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = ExportSettings(max_batch_size=8, form="chain", fused=True)
    return build_once(tmp_path_factory, "added_repository", lambda out: repository_from_run(added, out, chosen))


@pytest.fixture
def pixels(added: Run) -> Any:
    return np.array(added.pixels()[added.table().rows("test")[:12]])


def test_the_fit_takes_it_with_its_own_size_and_features(added: Run) -> None:
    ensemble = added.ensemble()
    sizes = {member.name: (member.format, member.image.height) for member in ensemble.members}
    assert sizes == {"regnetx_002": ("timm", 32), "resnet10t": ("timm", 32), ADDED: ("onnx", 48)}
    assert ensemble.image.height == 32
    assert ensemble.outliers is not None
    assert ensemble.outliers.members == (True, True, True)
    assert Ensemble.model_validate_json(added.ensemble_file.read_bytes()) == ensemble
    assert b'"format"' not in added.member_folder("resnet10t").joinpath("member.json").read_bytes()


def test_python_predicts_as_the_members_do(added: Run, pixels: Any) -> None:
    verdict = ensemble_from_run(added.path).predict_with_uncertainty(pixels)
    names = [member.name for member in added.ensemble().members]
    np.testing.assert_allclose(
        verdict.member_probabilities[:, names.index(ADDED)], expected_probabilities(pixels), atol=1e-5
    )
    for member in added.ensemble().members:
        logits = predict_logits(
            model_from_checkpoint(member, added.checkpoint(member)), pixels, np.arange(len(pixels)), member.image
        )
        found = verdict.member_probabilities[:, names.index(member.name)]
        np.testing.assert_allclose(found, softmax(logits), atol=1e-5)


def test_the_exported_graph_takes_decoded_pixels(repository: Path, pixels: Any) -> None:
    path = repository / ADDED / "1" / "model.onnx"
    graph = onnx.load(path).graph
    assert [size.dim_value for size in graph.input[0].type.tensor_type.shape.dim[1:]] == [32, 32, 3]
    assert [one.name for one in graph.output] == ["LOGITS", "NOVELTY"]
    (logits,) = onnx_session(path).run(["LOGITS"], {"PIXELS": pixels})
    np.testing.assert_allclose(softmax(logits.astype(np.float64)), expected_probabilities(pixels), atol=1e-5)


def test_maps_are_of_the_members_that_have_gradients(added: Run, pixels: Any) -> None:
    maps = {one.name: one for one in Evidence(added).maps(png_from_pixels(pixels[0]), "one")}
    assert maps[ADDED].places is None
    assert "ONNX" in maps[ADDED].note
    assert maps["resnet10t"].places is not None
    assert maps["the ensemble"].places is not None


@pytest.mark.slow
def test_int8_and_openvino_keep_the_resizing(added: Run, pixels: Any, tmp_path: Path) -> None:
    repository_from_run(added, tmp_path / "out", ExportSettings(precision="auto", max_batch_size=8))
    (logits,) = onnx_session(tmp_path / "out" / ADDED / "1" / "model.onnx").run(["LOGITS"], {"PIXELS": pixels})
    np.testing.assert_allclose(softmax(logits.astype(np.float64)), expected_probabilities(pixels), atol=0.1)


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as running:
        yield running


@pytest.mark.triton
@pytest.mark.parametrize("model", ["ensemble_pixels", "ensemble_fused"])
def test_it_is_served_as_the_file_predicts(model: str, server: Server, added: Run, pixels: Any) -> None:
    with EnsembleClient(server.urls.grpc, model=model) as client:
        answers = client.predict(list(pixels))
    found = [[*(one.member_probabilities[ADDED] or {}).values()] for one in answers if isinstance(one, Prediction)]
    np.testing.assert_allclose(found, expected_probabilities(pixels), atol=1e-4)
    verdict = ensemble_from_run(added.path).predict_with_uncertainty(pixels)
    assert [one.review for one in answers if isinstance(one, Prediction)] == verdict.review.tolist()
