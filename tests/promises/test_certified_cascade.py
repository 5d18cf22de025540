"""Export certifies a cascade's exit with the graphs of its stages."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plurum.errors import CertificationError
from plurum.export import ExportSettings, repository_from_run
from plurum.export.graphs.stages import outputs_of_stages, verdict_from_stages
from plurum.export.repository import cascade_certification
from plurum.export.repository.refusals import read_refusals
from plurum.promises.cascades import CascadeTarget, CascadeTest, StagedAnswers, certify_cascade
from plurum.promises.risk_control import patient_losses, risk_p_value
from plurum.run import Run, UnlabelledImages, number_patients
from plurum.spec import read_ensemble
from plurum.training import FitSettings, fit_report
from plurum.training.data.unlabelled import keep_unlabelled
from tests.cli.command_line import CommandLine
from tests.sample_runs.decided_run import build_decided_run

pytestmark = pytest.mark.slow
RISK, CASCADE_RISK = 0.1, 0.12
FIT = {"risk": RISK, "cascade": True, "cascade_risk": CASCADE_RISK, "select": "all", "draws": 100}
FP32 = ExportSettings(max_batch_size=8)


@pytest.fixture(scope="module")
def promised(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fitted run with a provisional cascade, read-only."""
    run = build_decided_run(tmp_path_factory.mktemp("promised") / "run", certification=680)
    fit_report(run.path, FitSettings.model_validate(FIT))
    assert run.ensemble().cascade is not None
    return run


@pytest.fixture(scope="module")
def certified(promised: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repository of that run, read-only."""
    out = tmp_path_factory.mktemp("certified") / "model_repository"
    repository_from_run(promised, out, FP32)
    return out


def test_the_promises_are_those_of_the_graphs_of_the_stages(promised: Run, certified: Path) -> None:
    """Compute them again, from the graphs in the repository."""
    served, table = read_ensemble(certified / "ensemble.json"), promised.table()
    assert served.cascade is not None
    assert served.promise is not None
    promise, rows = served.cascade.promise, table.rows("certification")
    assert promise is not None
    assert (promise.status, promise.precision, promise.risk) == ("certified", "fp32", CASCADE_RISK)
    paths = [certified / "fused" / "1" / f"stage_{index}.onnx" for index in range(2)]
    outputs = outputs_of_stages(paths, promised.pixels(), rows=rows)
    answers, whole = verdict_from_stages(outputs), verdict_from_stages(outputs[1:]).verdict
    labels, groups = table.labels[rows], number_patients([table.patients[row] for row in rows])
    differs = (answers.verdict.label != whole.label) & (whole.label == labels)
    hurt = np.bincount(groups, differs | (whole.review & ~answers.verdict.review)) > 0
    assert (promise.patients, promise.hurt) == (len(hurt), hurt.sum())
    assert promise.p_value == pytest.approx(risk_p_value(hurt.astype(float), CASCADE_RISK))
    assert promise.p_value <= 0.05
    losses = patient_losses(answers.verdict.label != labels, ~answers.verdict.review, groups)
    assert served.promise.status == "certified"
    assert served.promise.errors == pytest.approx(losses.sum())
    (stage,) = served.cascade.stages
    assert stage.share == pytest.approx((answers.stage == 0).mean())
    cost = float((answers.members_used @ np.array(served.cascade.costs)).mean())
    assert served.cascade.cost.value == pytest.approx(cost)


def test_fp32_certifies_what_the_fit_promised(promised: Run, certified: Path) -> None:
    fitted, served = promised.ensemble(), read_ensemble(certified / "ensemble.json")
    assert fitted.cascade is not None
    assert served.cascade is not None
    assert fitted.cascade.promise is not None
    assert fitted.cascade.promise.status == "provisional"
    assert served.cascade.stages[0].leave == pytest.approx(fitted.cascade.stages[0].leave, abs=1e-3)
    assert served.cascade.order == fitted.cascade.order
    assert served.baseline is not None
    assert fitted.baseline is not None
    assert served.baseline.review_share == pytest.approx(fitted.baseline.review_share, abs=0.01)


def test_the_command_and_the_card_state_the_cascade(promised: Run, certified: Path, plurum: CommandLine) -> None:
    printed = plurum.said("export", promised.path, "--out", certified, "--max-batch-size", 8)
    assert "nothing to do" in printed
    assert "of new patients like those tested are hurt, with 95% confidence (certified): " in printed
    assert "**Cascade**: " in (certified / "model_card.md").read_text(encoding="utf-8")


def test_a_refused_exit_writes_nothing(promised: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_other_labels(
        seen: StagedAnswers, new: list[StagedAnswers], target: CascadeTarget, more: Sequence[StagedAnswers]
    ) -> CascadeTest:
        """Test a stage that is wrong about every image, and no review risk."""
        wrong = [replace(one, stage=replace(one.stage, label=1 - one.whole.label)) for one in new]
        certain = [replace(one, may_leave=np.ones_like(one.may_leave), labels=one.whole.label) for one in wrong]
        return certify_cascade(seen, [replace(one, stage=sure(one)) for one in certain], target, more)

    def sure(one: StagedAnswers):  # type: ignore[no-untyped-def]
        return replace(one.stage, probabilities=np.eye(2)[one.stage.label])

    monkeypatch.setattr(cascade_certification, "certify_cascade", with_other_labels)
    with pytest.raises(CertificationError, match="don't keep the promise of plurum fit on the cascade") as caught:
        repository_from_run(promised, tmp_path / "out", FP32)
    assert "--without-cascade" in str(caught.value)
    assert not (tmp_path / "out").exists()
    (refused,) = read_refusals(promised)
    assert refused.promise.what == "fraction of patients that the cascade hurts"
    assert refused.promise.target == CASCADE_RISK
    (promised.report_folder / "refused_exports.json").unlink()


def test_images_without_labels_certify_too(promised: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(promised.path, tmp_path / "run"))
    rows = run.table().rows("test")
    keep_unlabelled(run, UnlabelledImages(np.array(run.pixels()[rows]), np.arange(len(rows))))
    repository_from_run(run, tmp_path / "out", FP32)
    served = read_ensemble(tmp_path / "out" / "ensemble.json")
    assert served.cascade is not None
    assert served.cascade.promise is not None
    assert served.cascade.promise.patients == 340 + len(rows)
    assert served.cascade.promise.p_value <= 0.05


def test_given_up_promises_leave_the_cascade(promised: Run, tmp_path: Path) -> None:
    repository_from_run(promised, tmp_path / "out", FP32.model_copy(update={"without_promise": True}))
    served = read_ensemble(tmp_path / "out" / "ensemble.json")
    assert served.promise is None
    assert served.cascade is not None
    assert served.cascade.promise is None
