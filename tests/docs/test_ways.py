"""Fit, evaluate, export and serve members from every source, and compare served predictions with PyTorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plurum.client import EnsembleClient
from plurum.export import ExportSettings, repository_from_run
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.training import (
    EvaluationSettings,
    FitSettings,
    TrainSettings,
    ensemble_from_run,
    evaluate_run,
    fit_run,
    train_run,
    write_report,
)
from tests.training.data_files import digit_arrays, save_npz

pytestmark = [pytest.mark.slow, pytest.mark.triton]

WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "snapshots": ({"archs": ("test_resnet",), "snapshots": 2, "ema": 0.9}, 2),
    # Seeds with snapshots are in training's own tests; each member here costs an export.
    "architectures and seeds": ({"archs": ("test_byobnet", "test_resnet"), "seeds": 2}, 4),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_members_ends_in_served_answers(way: str, tmp_path: Path) -> None:
    values, members = WAYS[way]
    run = Run(tmp_path / "run")
    settings = TrainSettings(**values, epochs=3, learning_rate=5e-3, precision="fp32")
    save_npz(tmp_path / "digits.npz", digit_arrays())
    assert len(train_run(str(tmp_path / "digits.npz"), settings, run.path).members) == members
    # Keep all members: the fit's own tests cover selection.
    ensemble = fit_run(run.path, FitSettings(select="all", draws=100))
    assert len(ensemble.members) == members
    evaluation = evaluate_run(run.path, EvaluationSettings(draws=100))
    assert write_report(evaluation, run.report_folder).is_file()
    repository_from_run(run, run.path / "model_repository", ExportSettings())
    images = np.array(run.pixels()[run.table().rows("test")[:40]])
    expected = ensemble_from_run(run.path).predict_with_uncertainty(images)
    with (
        Server(run.path / "model_repository", ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server,
        EnsembleClient(server.urls.grpc) as client,
    ):
        answers = client.predict(list(images))
    assert [answer.label for answer in answers] == [ensemble.classes[label] for label in expected.label]
    served = np.array([list(answer.probabilities.values()) for answer in answers])
    assert np.abs(served - expected.probabilities).max() < 1e-4
    assert [answer.disagreement for answer in answers] == pytest.approx(expected.disagreement, abs=1e-4)
