"""Stacked fit with a prior on a real Triton: served predictions equal Python's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plurum.client import EnsembleClient
from plurum.export import ExportSettings, repository_from_run
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.training import FitSettings, ensemble_from_run, fit_run

pytestmark = pytest.mark.triton


def test_a_stacked_and_corrected_vote_is_served(fresh_run: Run, tmp_path: Path) -> None:
    shares = {name: 0.19 if index < 5 else 0.01 for index, name in enumerate(fresh_run.data().classes)}
    fitted = fit_run(fresh_run.path, FitSettings(mode="stack", select="all", prior=shares, risk=0.2, draws=100))
    assert fitted.voting.coefficients is not None
    pixels = np.array(fresh_run.pixels()[40:56])
    expected = ensemble_from_run(fresh_run.path).predict_with_uncertainty(pixels)
    repository_from_run(fresh_run, tmp_path / "repository", ExportSettings(max_batch_size=8))
    with (
        Server(tmp_path / "repository", ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server,
        EnsembleClient(server.urls.grpc) as client,
    ):
        answers = client.predict(list(pixels))
    for name in ("probabilities", "std"):
        served = [[getattr(answer, name)[label] for label in fitted.classes] for answer in answers]
        np.testing.assert_allclose(served, getattr(expected, name), atol=1e-3)
    np.testing.assert_allclose([answer.disagreement for answer in answers], expected.disagreement, atol=1e-3)
    assert [answer.label for answer in answers] == [fitted.classes[index] for index in expected.label]
    assert [answer.review for answer in answers] == expected.review.tolist()
