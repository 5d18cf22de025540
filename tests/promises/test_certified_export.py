"""Export certifies the promise of the fit with the predictions of the graphs that it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from plurum.benchmarks.tune.repository import read_artefacts
from plurum.benchmarks.tune.variant import AS_IS
from plurum.errors import CertificationError, ParityError
from plurum.export import Budget, ExportSettings, repository_from_onnx, repository_from_run
from plurum.export.graphs.fused import verdict_from_fused
from plurum.export.manifest import is_exported_from, read_manifest
from plurum.export.repository.certification import ServedGraphs, certification_images, certify_ensemble
from plurum.export.repository.refusals import read_refusals
from plurum.export.settings import BUDGETS, Precision
from plurum.promises.review import promise_text
from plurum.promises.risk_control import patient_losses, risk_p_value
from plurum.run import Run, number_patients
from plurum.spec import Ensemble, ReviewPromise, read_ensemble
from plurum.training import FitSettings, fit_report
from plurum.voting import Verdict, decide, softmax
from tests.cli.command_line import CommandLine
from tests.sample_runs.decided_run import build_decided_run

pytestmark = pytest.mark.slow
RISK = 0.1
FIT = {"risk": RISK, "select": "all", "draws": 100}
FP32 = ExportSettings(max_batch_size=8, fused=True)
# These members have hardly learnt, so rounding changes more than a budget allows.
ANY = Budget(
    max_difference=1, flips=1, accuracy_loss=1, nll_increase=100, ece_increase=1, review_flips=1, outlier_change=1
)
LOOSE: dict[Precision, Budget] = {**BUDGETS, "int8": ANY}


@pytest.fixture(scope="module")
def promised(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fitted run with a provisional promise, read-only."""
    run = build_decided_run(tmp_path_factory.mktemp("promised") / "run", certification=600)
    fit_report(run.path, FitSettings.model_validate(FIT))
    return run


@pytest.fixture(scope="module")
def certified(promised: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repository of that run, read-only."""
    out = tmp_path_factory.mktemp("certified") / "model_repository"
    repository_from_run(promised, out, FP32)
    return out


def copy_of(run: Run, folder: Path) -> Run:
    return Run(shutil.copytree(run.path, folder / "run"))


def provisional(run: Run) -> ReviewPromise:
    promise = run.ensemble().promise
    assert promise is not None
    return promise


def served_losses(run: Run, verdict: Verdict) -> Any:
    """Return the losses of the certification patients, from the verdict on their images."""
    table = run.table()
    rows = table.rows("certification")
    groups = number_patients([table.patients[row] for row in rows])
    return patient_losses(verdict.label != table.labels[rows], ~verdict.review, groups)


def verdict_of(repository: Path, run: Run) -> Verdict:
    """Return the vote on certification images over the members' graphs as ONNX Runtime runs them."""
    ensemble = read_ensemble(repository / "ensemble.json")
    pixels = np.array(run.pixels()[run.table().rows("certification")])
    found = []
    for member in ensemble.members:
        session = onnxruntime.InferenceSession(repository / member.name / "1" / "model.onnx")
        found.append(session.run(["LOGITS", "NOVELTY"], {"PIXELS": pixels}))
    logits, novelty = (np.stack(outputs, axis=1) for outputs in zip(*found, strict=True))
    return decide(softmax(logits), ensemble.rule, novelty[..., 0])


def mislabel_certain_patients(run: Run, repository: Path, share: float) -> None:
    """State another label for some of the certification patients that the ensemble is certain about."""
    verdict, table = verdict_of(repository, run), run.table()
    rows = table.rows("certification")
    certain = np.argsort(-verdict.probabilities.max(axis=1))[: int(share * len(rows))]
    patients = {table.patients[row] for row in rows[certain]}
    items = run.data_folder / "items.csv"
    lines = items.read_text(encoding="utf-8").splitlines()
    other = {"CE": "LAA", "LAA": "CE"}
    for place, line in enumerate(lines[1:], 1):
        index, source, label, patient, split = line.split(",")
        if patient in patients:
            lines[place] = ",".join((index, source, other[label], patient, split))
    items.write_text("\n".join([*lines, ""]), encoding="utf-8")


def test_the_promise_is_that_of_the_served_graphs(promised: Run, certified: Path) -> None:
    """Compute it again, from the graphs in the repository: as a chain and fused."""
    fitted, served = promised.ensemble(), read_ensemble(certified / "ensemble.json")
    assert provisional(promised).status == "provisional"
    promise = served.promise
    assert promise is not None
    assert (promise.status, promise.risk, promise.confidence) == ("certified", RISK, 0.95)
    fused = verdict_from_fused(
        certified / "fused" / "1" / "model.onnx", promised.pixels(), rows=promised.table().rows("certification")
    )
    for verdict in (verdict_of(certified, promised), fused):
        losses = served_losses(promised, verdict)
        assert promise.patients == len(losses)
        assert promise.errors == pytest.approx(losses.sum())
        assert promise.p_value == pytest.approx(risk_p_value(losses, RISK))
    assert promise.p_value <= 0.05
    # FP32 differs from PyTorch by rounding, and nothing but the review limit, its promise and the reference changes.
    assert served.review.threshold == pytest.approx(fitted.review.threshold, abs=1e-4)
    assert served.baseline is not None
    assert fitted.baseline is not None
    assert served.baseline.review_share == pytest.approx(fitted.baseline.review_share, abs=0.01)
    kept = {name: getattr(fitted, name) for name in ("promise", "review", "baseline", "outliers")}
    assert served.model_copy(update=kept) == fitted


def test_a_second_export_has_nothing_to_do_and_states_the_promise(promised: Run, certified: Path) -> None:
    made = (certified / "ensemble.json").stat().st_mtime_ns
    exported = repository_from_run(promised, certified, FP32)
    assert exported.unchanged
    assert exported.promise == read_ensemble(certified / "ensemble.json").promise
    assert (certified / "ensemble.json").stat().st_mtime_ns == made


def test_a_certified_repository_is_known_as_that_of_its_run(promised: Run, certified: Path) -> None:
    ensemble = promised.ensemble()
    assert read_artefacts(AS_IS, certified).ensemble != ensemble
    assert is_exported_from(certified, ensemble)
    calmer = ensemble.voting.model_copy(update={"temperature": 1.3})
    assert not is_exported_from(certified, ensemble.model_copy(update={"voting": calmer}))


def test_a_repository_without_a_promise_has_the_manifest_of_before(repository: Path, run: Run) -> None:
    assert "ensemble" not in json.loads((repository / "export.json").read_text(encoding="utf-8"))
    assert read_manifest(repository).ensemble is None
    assert is_exported_from(repository, run.ensemble())


def test_the_command_prints_the_promise_and_the_doctor_is_content(
    promised: Run, certified: Path, plurum: CommandLine
) -> None:
    words = ("export", promised.path, "--out", certified, "--max-batch-size", 8, "--fused")
    printed = plurum.said(*words)
    promise = read_ensemble(certified / "ensemble.json").promise
    assert promise is not None
    assert promise_text(promise) in printed
    assert "with 95% confidence (certified): " in printed
    report = json.loads(
        plurum.said("export", promised.path, "--out", certified, "--max-batch-size", 8, "--fused", "--json")
    )
    assert report["promise"]["status"] == "certified"
    assert ", 0 errors" in plurum.said("doctor", certified)


def test_graphs_that_break_the_promise_are_not_written(
    promised: Run, certified: Path, plurum: CommandLine, tmp_path: Path
) -> None:
    run, out = copy_of(promised, tmp_path), tmp_path / "out"
    mislabel_certain_patients(run, certified, 0.3)
    code, _, err = plurum.ended("export", run.path, "--out", out)
    assert code == CertificationError.exit_code == ParityError.exit_code
    fitted = provisional(run)
    assert (
        f"the FP32 graphs don't keep the promise of plurum fit ({fitted.errors:g} errors in {fitted.patients:,} "
        f"patients): review risk: no promise of 10.00% with 95% confidence: the first threshold tested has"
    ) in err
    assert "To export, fit with a larger --risk, or give up the promise: --without-promise" in err
    assert len(err.strip().splitlines()) == 1
    assert not out.exists()
    (refused,) = read_refusals(run)
    assert (refused.precision, refused.is_fused, refused.promise.what) == ("fp32", True, "review risk")
    assert refused.promise.errors is not None
    assert refused.promise.p_value is not None
    assert f"has {refused.promise.errors:g} errors in {refused.promise.patients:,} patients" in err
    assert refused.promise.p_value > 0.05
    recorded = (run.report_folder / "refused_exports.json").read_bytes()
    # The same export again is the same look.
    assert plurum.ended("export", run.path, "--out", out)[0] == CertificationError.exit_code
    assert (run.report_folder / "refused_exports.json").read_bytes() == recorded
    printed = plurum.said("export", run.path, "--out", out, "--without-promise")
    assert "review risk" not in printed
    card = (out / "model_card.md").read_text(encoding="utf-8")
    failed = f"{refused.promise.errors:g} errors in {refused.promise.patients:,} patients, p = "
    assert "**Refused**: an export of FP32 graphs, also fused: review risk of 10.00% with 95% confidence; the " in card
    assert failed in card
    assert "less certain than it states" not in card
    ensemble, served = run.ensemble(), read_ensemble(out / "ensemble.json")
    assert served.promise is None
    assert served.review == ensemble.review
    assert is_exported_from(out, ensemble)


def test_another_precision_certifies_a_limit_of_its_own_or_is_refused(promised: Run, tmp_path: Path) -> None:
    """INT8 is hardly better than chance here: it keeps the promise with far more reviews, and no stricter one."""
    run, out = copy_of(promised, tmp_path), tmp_path / "out"
    coarse = ExportSettings(precision="int8", budgets=LOOSE, calibration_images=16)
    exported = repository_from_run(run, out, coarse)
    assert exported.promise is not None
    assert exported.promise.status == "certified"
    assert exported.promise.patients < provisional(run).patients / 2
    fitted, served = run.ensemble(), read_ensemble(out / "ensemble.json")
    assert served.review.threshold > fitted.review.threshold + 0.1
    assert served.baseline is not None
    assert fitted.baseline is not None
    assert served.baseline.review_share > fitted.baseline.review_share + 0.1
    kept = (out / "ensemble.json").read_bytes()
    fit_report(run.path, FitSettings.model_validate({**FIT, "risk": 0.05}))
    provisional(run)
    with pytest.raises(CertificationError, match=r"the INT8 graphs don't keep .* To export, choose --precision fp32, "):
        repository_from_run(run, out, coarse)
    assert (out / "ensemble.json").read_bytes() == kept
    # The card of what is certified afterwards names the look before it.
    assert [one.precision for one in read_refusals(run)] == ["int8"]
    repository_from_run(run, out, ExportSettings())
    card = (out / "model_card.md").read_text(encoding="utf-8")
    assert "**Refused**: an export of INT8 graphs, also fused: review risk of 5.00% with 95% confidence; " in card
    assert "A promise that was certified afterwards on the same patients is less certain than it states." in card
    # Another fit is another promise.
    fit_report(run.path, FitSettings.model_validate(FIT))
    assert read_refusals(run) == ()


@pytest.mark.parametrize(
    "settings",
    [
        {"risk": "auto", "select": "all", "draws": 100},
        {**FIT, "positive": "CE", "sensitivity": 0.9},
        {**FIT, "risk": 0.15, "risk_by_class": True},
        {**FIT, "mode": "stack", "risk": 0.15},
    ],
)
def test_other_fits_are_certified_alike(promised: Run, tmp_path: Path, settings: dict[str, Any]) -> None:
    run = copy_of(promised, tmp_path)
    fit_report(run.path, FitSettings.model_validate(settings))
    repository_from_run(run, tmp_path / "out", ExportSettings())
    fitted, served = run.ensemble(), read_ensemble(tmp_path / "out" / "ensemble.json")
    before, promise = fitted.promise, served.promise
    assert before is not None
    assert promise is not None
    assert (promise.status, promise.method) == ("certified", before.method)
    assert (promise.method == "bound") == (settings["risk"] == "auto")
    assert promise.risk == pytest.approx(before.risk, rel=0.2)
    assert served.review.risk == promise.risk
    verdict = verdict_of(tmp_path / "out", run)
    losses = served_losses(run, verdict)
    assert promise.patients == len(losses)
    assert promise.errors == pytest.approx(losses.sum())
    assert promise.p_value <= 0.05 + 1e-9
    assert (promise.decision is None) == ("positive" not in settings)
    assert (promise.by_class is None) == ("risk_by_class" not in settings)
    rows = run.table().rows("certification")
    labels, patients = run.table().labels[rows], number_patients([run.table().patients[row] for row in rows])
    for label, one in enumerate(promise.by_class or ()):
        losses = patient_losses(verdict.label != labels, ~verdict.review & (labels == label), patients)
        assert (one.name, one.patients) == (served.classes[label], len(losses))
        assert one.p_value == pytest.approx(risk_p_value(losses, promise.risk))
        assert one.p_value <= 0.05
    if promise.decision is not None and served.operating_point is not None and fitted.operating_point is not None:
        assert served.operating_point.threshold == fitted.operating_point.threshold
        assert served.review.threshold == fitted.review.threshold
        rows = run.table().rows("certification")
        is_ce = run.table().labels[rows] == 0
        patients = number_patients([run.table().patients[row] for row in rows])
        missed = patient_losses(verdict.label != 0, is_ce, patients)
        assert promise.decision.patients == len(missed)
        assert promise.decision.errors == pytest.approx(missed.sum())
        assert max(promise.p_value, promise.decision.p_value) <= 0.05


def certify(ensemble: Ensemble, run: Run | None, folder: Path, **settings: Any) -> Ensemble:
    """Certify an ensemble without graphs, which fails if they are needed."""
    images = None if run is None else certification_images(run.table(), run.pixels())
    return certify_ensemble(
        ensemble, ServedGraphs([], None, folder), images, ExportSettings.model_validate(settings), lambda _: None
    )


def test_a_promise_stays_provisional_where_nothing_can_certify_it(
    promised: Run, certified: Path, tmp_path: Path
) -> None:
    """Without certification images, and for TensorRT, even if a certified file of other graphs was copied."""
    ensemble = promised.ensemble()
    copied = read_ensemble(certified / "ensemble.json")
    for run, settings in ((None, {}), (promised, {"target": "gpu"})):
        assert certify(ensemble, run, tmp_path, **settings) == ensemble
        promise = certify(copied, run, tmp_path, **settings).promise
        assert promise is not None
        assert promise.status == "provisional"
    assert certify(copied, promised, tmp_path, without_promise=True).promise is None


def test_existing_graphs_certify_nothing(certified: Path, tmp_path: Path) -> None:
    ensemble = read_ensemble(certified / "ensemble.json")
    graphs = {member.name: certified / member.name / "1" / "model.onnx" for member in ensemble.members}
    repository_from_onnx(ensemble, graphs, tmp_path / "out")
    promise = read_ensemble(tmp_path / "out" / "ensemble.json").promise
    assert promise is not None
    assert ensemble.promise == promise.model_copy(update={"status": "certified"}) != promise
