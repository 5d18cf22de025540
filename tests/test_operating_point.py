"""An operating point from the fit to every way of asking: all give the same decision."""

from __future__ import annotations

import csv
import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from PIL import Image

from plurum.client import EnsembleClient, Prediction, patients_from_answers
from plurum.errors import MetadataError
from plurum.export import ExportSettings, repository_from_run
from plurum.export.graphs.fused import verdict_from_fused
from plurum.predictions.prediction import verdict_from_predictions
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.spec import Ensemble, read_ensemble
from plurum.training import FitReport, FitSettings, fit_report
from plurum.training.inference.predictions import predict_members
from plurum.voting import Verdict, decide, decide_groups
from tests.cli.command_line import CommandLine
from tests.client.ui.browser import page_at
from tests.sample_runs.decided_run import build_decided_run
from tests.serving.gateway.gateways import gateway, wait_until_ready
from tests.serving.voter_counts import wait_for_counts

# One that decides otherwise than the most probable class.
SETTINGS = FitSettings(positive="CE", sensitivity=0.97, risk=0.1, select="all", draws=100)
IMAGES = 24
Fitted = Literal["validation", "test"]


@pytest.fixture(scope="module")
def unfitted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_decided_run(tmp_path_factory.mktemp("decided") / "run")


@pytest.fixture(scope="module")
def fitted(unfitted: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, FitReport]:
    run = Run(shutil.copytree(unfitted.path, tmp_path_factory.mktemp("fitted") / "run"))
    return run, fit_report(run.path, SETTINGS)


def verdict_on(run: Run, ensemble: Ensemble, split: Fitted) -> Verdict:
    return decide(predict_members(run, ensemble.members, (split,))[split], ensemble.rule)


def test_a_fit_states_the_point_and_its_figures(fitted: tuple[Run, FitReport]) -> None:
    """Compute the figures again, from the members' own predictions."""
    run, report = fitted
    ensemble = read_ensemble(run.ensemble_file)
    assert ensemble == report.ensemble
    point = ensemble.operating_point
    assert point is not None
    assert (ensemble.version, point.positive, point.criterion, point.value) == (2, "CE", "sensitivity", 0.97)
    assert report.decisions is not None
    table = run.table()
    for split, found in report.decisions.items():
        rows = table.rows(split)
        verdict = verdict_on(run, ensemble, split)
        is_ce, said = table.labels[rows] == 0, verdict.label == 0
        np.testing.assert_array_equal(said, verdict.probabilities[:, 0] >= (point.threshold or 0))
        assert found.images is not None
        assert found.unreviewed is not None
        assert found.images.sensitivity.value == pytest.approx(said[is_ce].mean())
        assert found.images.specificity.value == pytest.approx(1 - said[~is_ce].mean())
        assert found.images.ppv.value == pytest.approx(is_ce[said].mean())
        kept = ~verdict.review
        assert found.unreviewed.number == kept.sum()
        assert found.unreviewed.npv.value == pytest.approx((~is_ce)[kept & ~said].mean())
        assert report.ensemble.scores[split].accuracy == pytest.approx((said == is_ce).mean())
        assert found.patients is not None
        pooled = verdict.probabilities.reshape(-1, 2, 2).mean(axis=1)
        by_patient = decide_groups("mean", pooled, ensemble.rule.point) == 0
        assert found.patients.sensitivity.value == pytest.approx(by_patient[is_ce[::2]].mean())
    assert report.decisions["validation"].images is not None
    assert (report.decisions["validation"].images.sensitivity.value or 0) > 0.97


def test_the_baseline_is_of_decisions(fitted: tuple[Run, FitReport]) -> None:
    run, report = fitted
    ensemble, baseline = report.ensemble, report.ensemble.baseline
    verdict = verdict_on(run, ensemble, "validation")
    confidence = verdict.probabilities[np.arange(len(verdict.label)), verdict.label]
    assert baseline is not None
    assert baseline.class_shares[0] == pytest.approx((verdict.label == 0).mean())
    assert sum(baseline.confidence_shares[:5]) == pytest.approx((confidence <= 0.5).mean())
    assert sum(baseline.confidence_shares[:5]) > 0


def test_the_command_chooses_a_point_by_cost_and_prints_it(unfitted: Run, plurum: CommandLine, tmp_path: Path) -> None:
    run = Run(shutil.copytree(unfitted.path, tmp_path / "run"))
    costs = tmp_path / "costs.csv"
    costs.write_text("true,decided,cost\nCE,LAA,9\nLAA,CE,1\n,review,0.5\n")
    printed = plurum.said("fit", run.path, "--positive", "CE", "--costs", costs, "--draws", 100)
    assert "operating point: CE from a probability of 0.1000 on, where both decisions cost the same" in printed
    assert f"review: at a probability of CE from {0.5 / 9:.4f} to 0.5000: " in printed
    assert "all test images (200): sensitivity " in printed
    assert "test: a decision costs 0." in printed
    ensemble = run.ensemble()
    assert ensemble.operating_point is not None
    assert np.array_equal(ensemble.operating_point.costs or (), [[0, 9], [1, 0]])
    assert ensemble.review.risk is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--positive", "ce", "--sensitivity", "0.95"), "--positive: unknown class 'ce'; available: CE, LAA."),
        (("--positive", "CE", "--sensitivity", "1.5"), "--sensitivity: expected a number less than 1, got 1.5"),
        (("--positive", "CE", "--costs", "nowhere.csv"), "--costs: nowhere.csv: can't be read: No such file"),
    ],
)
def test_bad_use_gets_one_line(unfitted: Run, plurum: CommandLine, words: tuple[str, ...], message: str) -> None:
    assert message in plurum.refused("fit", unfitted.path, *words)
    assert not unfitted.ensemble_file.exists()


@pytest.fixture(scope="module")
def exported(fitted: tuple[Run, FitReport], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, _ = fitted
    out = tmp_path_factory.mktemp("exported") / "model_repository"
    repository_from_run(run, out, ExportSettings(max_batch_size=8, fused=True))
    return out


class Sample(NamedTuple):
    """Test images by row and as files, and PyTorch's verdict on them."""

    rows: list[int]
    files: list[Path]
    verdict: Verdict


@pytest.fixture(scope="module")
def sample(fitted: tuple[Run, FitReport], tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Test images of which some are decided otherwise than by the most probable class, and PyTorch's verdict."""
    run, report = fitted
    rows = run.table().rows("test")
    verdict = verdict_on(run, report.ensemble, "test")
    changed = verdict.label != verdict.probabilities.argmax(axis=1)
    # Both images of a patient, those with changed decisions first.
    first = np.argsort(~changed.reshape(-1, 2).any(axis=1), kind="stable")[: IMAGES // 2]
    places = (first[:, None] * 2 + np.arange(2)).ravel()
    part = {name: values[places] for name, values in vars(verdict).items()}
    assert changed[places].sum() >= 4
    folder = tmp_path_factory.mktemp("images")
    files = [folder / f"{row}.png" for row in rows[places]]
    for row, file in zip(rows[places], files, strict=True):
        Image.fromarray(np.array(run.pixels()[row])).save(file)
    return Sample(rows[places].tolist(), files, Verdict(**part))


@pytest.mark.slow
def test_the_fused_graph_decides_as_the_chain(fitted: tuple[Run, FitReport], exported: Path, sample: Sample) -> None:
    run, _ = fitted
    rows, _, expected = sample
    verdict = verdict_from_fused(exported / "fused" / "1" / "model.onnx", np.array(run.pixels()[rows]))
    np.testing.assert_array_equal(verdict.label, expected.label)
    np.testing.assert_array_equal(verdict.review, expected.review)


@pytest.fixture(scope="module")
def server(exported: Path) -> Iterator[Server]:
    with Server(exported, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


def check_predictions(predictions: list[Any], expected: Verdict, ensemble: Ensemble) -> None:
    assert all(isinstance(one, Prediction) for one in predictions)
    found = verdict_from_predictions(predictions, ensemble.classes)
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.review, expected.review)
    np.testing.assert_array_equal(found.prediction_set, expected.prediction_set)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-3)
    for one in predictions:
        assert one.confidence == one.probabilities[one.label]


@pytest.mark.triton
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("model", ["ensemble", "ensemble_pixels", "ensemble_fused"])
def test_the_client_gets_the_decision(
    server: Server, fitted: tuple[Run, FitReport], sample: Sample, protocol: Any, model: str
) -> None:
    run, report = fitted
    url = server.urls.grpc if protocol == "grpc" else server.urls.http
    pixels = [np.array(run.pixels()[row]) for row in sample.rows]
    with EnsembleClient(url, protocol, model=model) as client:
        assert client.served.point == report.ensemble.rule.point
        found = client.predict(sample.files if model == "ensemble" else pixels)
    check_predictions(found, sample.verdict, report.ensemble)


@pytest.mark.triton
def test_the_table_of_predict_has_the_decision(
    server: Server, fitted: tuple[Run, FitReport], sample: Sample, plurum: CommandLine, tmp_path: Path
) -> None:
    expected, classes = sample.verdict, fitted[1].ensemble.classes
    code, _, err = plurum.ended("predict", *sample.files, "--url", server.urls.grpc, "--out", tmp_path / "answers.csv")
    assert (code, err) == (0, f"{len(sample.files)} classified, {int(expected.review.sum())} to review, 0 failed\n")
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(path) for path in sample.files]
    assert [row["label"] for row in rows] == [classes[index] for index in expected.label]
    assert [row["review"] for row in rows] == [str(one).lower() for one in expected.review.tolist()]
    sets = [
        "|".join(name for name, is_in in zip(classes, one, strict=True) if is_in) for one in expected.prediction_set
    ]
    assert [row["prediction_set"] for row in rows] == sets
    assert [row["confidence"] for row in rows] == [row[f"p_{row['label']}"] for row in rows]


@pytest.mark.triton
def test_gateway_page_and_patients_get_the_decision(
    server: Server, fitted: tuple[Run, FitReport], sample: Sample, tmp_path: Path
) -> None:
    ensemble, expected = fitted[1].ensemble, sample.verdict
    with gateway(server.urls.grpc) as one:
        wait_until_ready(one)
        replies = [one.predict(image.read_bytes()).json for image in sample.files]
        with EnsembleClient(one.http) as client:
            assert client.served.point == ensemble.rule.point
            assert client.served.patient_rule == "mean"
            found = client.predict(sample.files)
            check_predictions(found, expected, ensemble)
            names = [f"patient {place // 2}" for place in range(len(sample.files))]
            patients = patients_from_answers(names, found, client.served.classes, "mean", client.served.point)
    assert [reply["label"] for reply in replies] == [ensemble.classes[index] for index in expected.label]
    assert [reply["confidence"] for reply in replies] == [reply["probabilities"][reply["label"]] for reply in replies]
    pooled = expected.probabilities.reshape(-1, 2, 2).mean(axis=1)
    decided = dict(zip(names[::2], decide_groups("mean", pooled, ensemble.rule.point).tolist(), strict=True))
    assert {one.patient: one.label for one in patients} == {name: ensemble.classes[at] for name, at in decided.items()}
    assert (pooled.argmax(axis=1) != np.array(list(decided.values()))).any()
    changed = next(at for at, label in enumerate(expected.label) if expected.probabilities[at, label] < 0.5)
    with page_at("--url", server.urls.grpc, "--store", tmp_path / "reviews") as page:
        served = json.loads(urllib.request.urlopen(f"{page}/served").read())["line"]
        request = urllib.request.Request(
            f"{page}/answers", sample.files[changed].read_bytes(), {"x-file-name": "a.png"}
        )
        html = urllib.request.urlopen(request).read().decode()
    assert f"; decides CE from {ensemble.operating_point.threshold:.1%}" in served  # type: ignore[union-attr]
    assert '<article class="answer" data-label="CE">' in html
    assert "Decided at the ensemble’s operating point; LAA is more probable." in html


@pytest.mark.triton
def test_metrics_count_the_decisions(server: Server, fitted: tuple[Run, FitReport], sample: Sample) -> None:
    expected = sample.verdict

    def counts() -> tuple[float, float]:
        samples = wait_for_counts(server.urls.metrics)
        ce = sum(
            n for name, n in samples.items() if name.startswith("plurum_predictions_total") and 'class="CE"' in name
        )
        low = sum(
            n for name, n in samples.items() if name.startswith("plurum_confidence_bucket") and 'le="0.5"' in name
        )
        return ce, low

    before = counts()
    with EnsembleClient(server.urls.grpc) as client:
        client.predict(sample.files)
    after = counts()
    assert after[0] - before[0] == (expected.label == 0).sum()
    confidence = expected.probabilities[np.arange(len(sample.files)), expected.label]
    assert after[1] - before[1] == (confidence <= 0.5).sum()
    assert len(fitted[1].ensemble.members) == 2


def test_an_older_reader_refuses_a_point(fitted: tuple[Run, FitReport], tmp_path: Path) -> None:
    """A reader of version 1 would decide for the most probable class."""
    content = json.loads(fitted[0].ensemble_file.read_text())
    (tmp_path / "ensemble.json").write_text(json.dumps(content | {"version": 1}))
    with pytest.raises(MetadataError, match="version: expected 2 for these keys, got 1"):
        read_ensemble(tmp_path / "ensemble.json")
