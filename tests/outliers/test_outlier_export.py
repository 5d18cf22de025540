"""Export of an ensemble with an outlier test: graphs, configs, parity, and the reference of the served graphs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from plurum.errors import MetadataError, ParityError
from plurum.export import Budget, ExportSettings, repository_from_run
from plurum.export.doctor import check_repository
from plurum.export.graphs.member import detector_nodes
from plurum.export.graphs.runtimes import Artefact, outputs_from_artefact
from plurum.export.manifest import is_exported_from
from plurum.export.settings import BUDGETS, Backend, Execution
from plurum.run import Run
from plurum.spec import read_ensemble
from tests.outliers.graphs import BACKENDS, expected_verdict

pytestmark = pytest.mark.slow

_MEMBERS = ("resnet10t", "regnetx_002")


def outputs_of(repository: Path, member: str, pixels: npt.NDArray[np.uint8]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(repository / member / "1" / "model.onnx")
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, {"PIXELS": pixels}), strict=True))


def test_graphs_state_their_novelty(detecting_repository: Path, detected: Run) -> None:
    pixels = np.array(detected.pixels()[:4])
    for member in _MEMBERS:
        novelty = outputs_of(detecting_repository, member, pixels)["NOVELTY"]
        assert (novelty.dtype, novelty.shape) == (np.float32, (4, 1))
        assert "NOVELTY" in (detecting_repository / member / "config.pbtxt").read_text()
    voter = (detecting_repository / "voter" / "config.pbtxt").read_text()
    assert re.findall(r'name: "(NOVELTY_\d|OUTLIER|REVIEW_REASON)"', voter) == [
        *("NOVELTY_0", "NOVELTY_1", "REVIEW_REASON", "OUTLIER")
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_members_with_a_detector_have_novelty(backend: str, int8_repositories: dict[str, Path]) -> None:
    repository = int8_repositories[backend]
    has = ["NOVELTY" in (repository / member / "config.pbtxt").read_text() for member in _MEMBERS]
    assert has == [False, True]
    voter = (repository / "voter" / "config.pbtxt").read_text()
    assert ("NOVELTY_0" in voter, "NOVELTY_1" in voter) == (False, True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_reference_is_that_of_the_graphs(
    backend: Backend, int8_repositories: dict[str, Path], half_detected: Run
) -> None:
    repository = int8_repositories[backend]
    served, fitted = read_ensemble(repository / "ensemble.json"), half_detected.ensemble()
    assert served.outliers is not None
    assert fitted.outliers is not None
    assert served.outliers.reference != fitted.outliers.reference
    artefact = Artefact(_MEMBERS[1], "int8", backend, repository / _MEMBERS[1] / "1" / "model.onnx", has_novelty=True)
    novelty = outputs_from_artefact(artefact, half_detected.pixels(), np.arange(40)).novelty
    assert novelty is not None
    np.testing.assert_allclose(served.outliers.reference, np.sort(novelty), rtol=2e-3, atol=2e-3)
    assert is_exported_from(repository, fitted)


def test_fp32_graphs_give_the_reference_of_the_fit(detecting_repository: Path, detected: Run) -> None:
    served, fitted = read_ensemble(detecting_repository / "ensemble.json").outliers, detected.ensemble().outliers
    assert served is not None
    assert fitted is not None
    np.testing.assert_allclose(served.reference, fitted.reference, rtol=1e-3, atol=1e-3)
    assert (served.patients, served.counts) == (40, None)


def outlier_changes(repository: Path) -> dict[str, float | None]:
    report = json.loads((repository / "parity.json").read_text())["artefacts"]
    return {one["subject"]: one["outlier_change"] for one in report}


def test_p_values_of_fp32_graphs_are_those_of_the_fit(detecting_repository: Path) -> None:
    changes = outlier_changes(detecting_repository)
    assert set(changes) == {*_MEMBERS, "vote", "ensemble_fused"}
    assert max(one for one in changes.values() if one is not None) <= 0.002
    assert not [one for one in check_repository(detecting_repository) if one.state == "error"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_p_values_of_int8_graphs_go_through_the_parity_gate(backend: str, int8_repositories: dict[str, Path]) -> None:
    changes = outlier_changes(int8_repositories[backend])
    assert changes[_MEMBERS[0]] is None
    assert all(0 < (changes[name] or 0) <= 0.15 for name in (_MEMBERS[1], "vote", "ensemble_fused"))
    assert not [one for one in check_repository(int8_repositories[backend]) if one.state == "error"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_detectors_stay_fp32(backend: str, int8_repositories: dict[str, Path]) -> None:
    graph = onnx.load(int8_repositories[backend] / _MEMBERS[1] / "1" / "model.onnx").graph
    inside = {node.op_type for node in detector_nodes(graph)}
    assert {"MatMul", "ReduceMin"} <= inside
    assert not inside & {"QuantizeLinear", "QLinearMatMul"}
    assert "QuantizeLinear" in {node.op_type for node in graph.node}


def test_a_graph_that_ranks_images_otherwise_is_refused(half_detected: Run, tmp_path: Path) -> None:
    strict = BUDGETS["int8"].model_copy(
        update={"outlier_change": 1e-6, "max_difference": 1.0, "nll_increase": 9.0, "ece_increase": 1.0}
        | dict.fromkeys(("flips", "review_flips", "accuracy_loss"), 1.0)
    )
    settings = ExportSettings(precision="int8", budgets={"int8": Budget.model_validate(strict.model_dump())})
    with pytest.raises(ParityError, match="p-values of outliers, or ranks by novelty, change on average by"):
        repository_from_run(half_detected, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_another_detector_than_that_of_the_fit_is_refused(detected: Run, tmp_path: Path) -> None:
    changed = Run(shutil.copytree(detected.path, tmp_path / "run"))
    one, other = (changed.detector(name) for name in _MEMBERS)
    other.write_bytes(one.read_bytes())
    with pytest.raises(MetadataError, match=r"detector\.safetensors: expected the detector that the fit wrote"):
        repository_from_run(changed, tmp_path / "out", ExportSettings())
    other.unlink()
    with pytest.raises(MetadataError, match=r"detector\.safetensors: expected a detector"):
        repository_from_run(changed, tmp_path / "out", ExportSettings())
    assert not (tmp_path / "out").exists()


def test_the_fused_graph_tests_as_the_chain_does(detecting_repository: Path, detected: Run) -> None:
    ensemble = read_ensemble(detecting_repository / "ensemble.json")
    pixels = np.concatenate([np.array(detected.pixels()[40:56]), 255 - np.array(detected.pixels()[40:56])])
    expected = expected_verdict(detecting_repository, ensemble, pixels, Execution("fp32", "onnxruntime"))
    session = onnxruntime.InferenceSession(detecting_repository / "fused" / "1" / "model.onnx")
    outlier, reason, review = session.run(["OUTLIER", "REVIEW_REASON", "REVIEW"], {"PIXELS": pixels})
    np.testing.assert_allclose(outlier[:, 0], expected.outlier, atol=1e-6)
    assert reason[:, 0].tolist() == expected.review_reason.tolist()
    assert review[:, 0].tolist() == expected.review.tolist()
    assert 0 < np.count_nonzero(expected.review_reason & 4) < len(pixels)
