"""`plurum evaluate`, with PyTorch's predictions and a real server's."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest

from plurum.run import Run
from plurum.serving import Server
from plurum.settings.training import EvaluationSettings
from plurum.spec import read_ensemble
from plurum.training import evaluate_run
from plurum.training.statistics.results import Estimate, Evaluation
from tests.cli.command_line import CommandLine


@pytest.fixture(scope="module")
def by_torch(run: Run) -> Evaluation:
    return evaluate_run(run.path, EvaluationSettings(draws=100, corruptions=True))


def test_a_run_is_evaluated_into_its_report_folder(fresh_run: Run, plurum: CommandLine) -> None:
    printed = plurum.said("evaluate", fresh_run.path, "--draws", 100)
    saved = Evaluation.model_validate_json((fresh_run.report_folder / "metrics.json").read_bytes())
    assert (saved.split, saved.images, saved.draws, saved.drawn) == ("test", 40, 100, "images")
    assert f"report: {fresh_run.report_folder / 'report.html'}" in printed
    assert f"{saved.ensemble.metrics['brier'].value:.4f} (" in printed
    assert "resnet10t" in printed
    assert "regnetx_002" in printed


def test_the_evaluation_follows_the_metadata(by_torch: Evaluation, run: Run) -> None:
    from plurum.models import model_from_checkpoint
    from plurum.training.statistics.scoring import predict_logits
    from plurum.voting import decide, softmax

    ensemble, table = run.ensemble(), run.table()
    rows = table.rows("test")
    models = [model_from_checkpoint(member, run.checkpoint(member)) for member in ensemble.members]
    answers = [softmax(predict_logits(model, run.pixels(), rows, ensemble.image)) for model in models]
    verdict = decide(np.stack(answers, axis=1), ensemble.rule)
    assert by_torch.ensemble.metrics["accuracy"].value == pytest.approx((verdict.label == table.labels[rows]).mean())
    assert by_torch.review.share.value == pytest.approx(verdict.review.mean())
    assert by_torch.sets.mean_size == pytest.approx(verdict.prediction_set.sum(axis=1).mean())
    assert by_torch.review.threshold == ensemble.review.threshold
    assert by_torch.sets.wished == pytest.approx(0.9)


def test_figures_on_validation_images_come_with_a_note(run: Run, tmp_path: Path, plurum: CommandLine) -> None:
    options = ("--split", "validation", "--draws", 100, "--seed", 7, "--out", tmp_path / "report")
    printed = plurum.said("evaluate", run.path, *options)
    assert "its figures are too optimistic" in printed
    saved = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert (saved["split"], saved["seed"]) == ("validation", 7)


@pytest.mark.triton
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_predictions_of_a_server_get_the_same_scores_as_pytorchs(
    served: Server, run: Run, by_torch: Evaluation, protocol: str, tmp_path: Path, plurum: CommandLine
) -> None:
    address = getattr(served.urls, protocol).removeprefix("http://").removeprefix("grpc://")
    options = ["--http"] if protocol == "http" else ["--corruptions"]
    printed = plurum.said("evaluate", run.path, "--url", address, *options, "--json", "--draws", 100, "--out", tmp_path)
    found = Evaluation.model_validate_json(printed)
    assert found.answered_by == f"the server at {address}"
    assert found.notes == by_torch.notes
    for one, other in zip(found.judged, by_torch.judged, strict=True):
        assert one.name == other.name
        for metric, figure in one.metrics.items():
            assert_alike(figure, other.metrics[metric])
    assert found.confusion == by_torch.confusion
    assert found.sets.sizes == by_torch.sets.sizes
    assert_alike(found.review.share, by_torch.review.share)
    assert found.best_single == by_torch.best_single
    for corrupted, expected in zip(found.corruptions, by_torch.corruptions, strict=protocol == "grpc"):
        assert_alike(corrupted.wrong_alone, expected.wrong_alone)
        assert corrupted.nll == pytest.approx(expected.nll, abs=2e-3)
    assert (tmp_path / "report.html").is_file()


def assert_alike(one: Estimate, other: Estimate) -> None:
    """Allow for the server's float32 arithmetic and order of operations."""
    assert np.array([one.value, one.low, one.high], float) == pytest.approx(
        np.array([other.value, other.low, other.high], float), abs=2e-3, nan_ok=True
    )


@pytest.mark.triton
def test_a_server_of_other_classes_or_sizes_is_refused(
    served: Server, fresh_run: Run, tmp_path: Path, plurum: CommandLine
) -> None:
    address = served.urls.grpc.removeprefix("grpc://")
    text = fresh_run.ensemble_file.read_text(encoding="utf-8")
    fresh_run.ensemble_file.write_text(text.replace('"zero"', '"null"'), encoding="utf-8")
    line = plurum.refused("evaluate", fresh_run.path, "--url", address, "--out", tmp_path / "out")
    assert "zero, one, two" in line
    assert "null, one, two" in line
    fresh_run.ensemble_file.write_text(text.replace('"height": 32', '"height": 64'), encoding="utf-8")
    line = plurum.refused("evaluate", fresh_run.path, "--url", address, "--out", tmp_path / "out")
    assert "images of 64 × 32 pixels, got 32 × 32 at" in line
    assert not (tmp_path / "out").exists()


def test_an_unavailable_server_gives_one_line_and_no_report(run: Run, tmp_path: Path, plurum: CommandLine) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        line = plurum.refused("evaluate", run.path, "--url", f"127.0.0.1:{port}", "--out", tmp_path / "out")
    assert f"127.0.0.1:{port}" in line
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_is_one_line_and_leaves_nothing(fresh_run: Run, tmp_path: Path, plurum: CommandLine) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file; name a folder" in plurum.refused("evaluate", fresh_run.path, "--out", tmp_path / "file")
    checkpoint = fresh_run.checkpoint(read_ensemble(fresh_run.ensemble_file).members[1])
    checkpoint.write_bytes(b"broken")
    assert "its SHA-256 differs" in plurum.refused("evaluate", fresh_run.path)
    fresh_run.ensemble_file.unlink()
    assert "has no ensemble.json. Fit the run: plurum fit" in plurum.refused("evaluate", fresh_run.path)
    assert not fresh_run.report_folder.exists()


def test_a_fit_on_other_images_is_refused(fresh_run: Run, plurum: CommandLine) -> None:
    text = fresh_run.ensemble_file.read_text(encoding="utf-8")
    fingerprint = fresh_run.ensemble().data.fingerprint
    fresh_run.ensemble_file.write_text(text.replace(fingerprint, "0" * 64), encoding="utf-8")
    assert "was fitted on other images" in plurum.refused("evaluate", fresh_run.path)


def test_a_run_without_images_of_a_split_is_refused(fresh_run: Run, plurum: CommandLine) -> None:
    items = fresh_run.data_folder / "items.csv"
    items.write_text(items.read_text(encoding="utf-8").replace(",test", ",train"), encoding="utf-8")
    assert "has no test images" in plurum.refused("evaluate", fresh_run.path)


def test_a_positive_class_and_its_prevalence(run: Run, tmp_path: Path, plurum: CommandLine) -> None:
    options = ("--positive", "two", "--prevalence", 0.2, "--draws", 100, "--out", tmp_path / "report")
    printed = plurum.said("evaluate", run.path, *options)
    saved = Evaluation.model_validate_json((tmp_path / "report" / "metrics.json").read_bytes())
    assert (saved.positive, saved.prevalence) == ("two", 0.2)
    assert [(one.positive, one.answers) for one in saved.diagnoses] == [("two", "all"), ("two", "unreviewed")]
    assert saved.diagnoses[0].figures["sensitivity"].value == saved.ensemble.per_class["two"]["recall"].value
    assert "PPV at the prevalence" in printed
    assert "deciding two by its probability, at a prevalence of 0.200" in printed
    assert "PPV" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--positive", "Two"), "eight, nine, got 'Two'. Name a class."),
        (("--prevalence", "0.2"), "--prevalence: expected together with --positive"),
        (("--positive", "two", "--prevalence", "1.5"), "--prevalence: expected a number less than 1, got 1.5"),
    ],
)
def test_a_wrong_positive_class_is_refused(
    fresh_run: Run, plurum: CommandLine, options: tuple[str, ...], said: str
) -> None:
    assert said in plurum.refused("evaluate", fresh_run.path, *options)
    assert not fresh_run.report_folder.exists()


def test_groups_of_a_column(fresh_run: Run, plurum: CommandLine) -> None:
    line = plurum.refused("evaluate", fresh_run.path, "--by", "site")
    assert "--by: expected a column of the manifest (none, because the run was not trained on a manifest" in line
    items = fresh_run.data_folder / "items.csv"
    header, *rows = items.read_text(encoding="utf-8").splitlines()
    sites = ["north", "south", "", "south"]
    lines = [f"{header},manifest:site", *(f"{row},{sites[number % 4]}" for number, row in enumerate(rows))]
    items.write_text("\n".join([*lines, ""]), encoding="utf-8")
    printed = plurum.said("evaluate", fresh_run.path, "--by", "site", "--draws", 100)
    saved = Evaluation.model_validate_json((fresh_run.report_folder / "metrics.json").read_bytes())
    (column,) = saved.by_group
    assert [(one.name, one.images, one.is_judged) for one in column.groups] == [
        ("north", 10, False),
        ("south", 20, True),
        ("unknown", 10, False),
    ]
    assert "south (20 patients)" in printed
    assert "site: Not judged, because of fewer than 20 patients: north, unknown." in printed
    assert "(site), got 'Site'" in plurum.refused("evaluate", fresh_run.path, "--by", "Site")
