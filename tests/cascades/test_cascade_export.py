"""Export writes, checks and lists the stages of a cascade, or leaves it out on request."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from plurum.benchmarks.claims.releases.rollouts import ReleaseServer, probabilities_of, release_clients
from plurum.client import EnsembleClient
from plurum.errors import SettingsError
from plurum.export import Budget, ExportSettings, member_latencies, repository_from_run
from plurum.export.doctor import check_repository
from plurum.export.graphs.runtimes import Artefact, outputs_from_artefact
from plurum.export.graphs.stages import outputs_of_stages, verdict_from_stages
from plurum.export.manifest import MANIFEST, is_exported_from, read_manifest
from plurum.export.repository.configs import stage_files
from plurum.export.settings import BUDGETS, EXECUTIONS, Execution
from plurum.run import Run
from plurum.serving import Server
from plurum.serving.triton.staging import read_config
from plurum.spec import CascadeCost, CascadeRule, EarlyStage, Ensemble, Voting, read_ensemble, write_metadata
from plurum.voting import decide_cascade, softmax
from tests.cascades.linear_cascade import cascade_of
from tests.cascades.stage_models import run_on_cpu
from tests.serving.servers import FREE

FP32 = ExportSettings(max_batch_size=8)
FP32_GPU = ExportSettings(target="gpu", max_batch_size=8)
# These members have hardly learnt, so rounding changes more than a budget allows.
ANY = Budget(max_difference=1, flips=1, accuracy_loss=1, nll_increase=100, ece_increase=1, review_flips=1)


def with_cascade(ensemble: Ensemble) -> Ensemble:
    """Return the ensemble of the shared run with a cascade whose first stage is its second member."""
    stage = EarlyStage(
        members=1,
        voting=Voting(weights=(1.0,), temperature=1.2),
        conformal=None,
        leave=float(np.float32(0.35)),
        share=0.5,
    )
    cost = CascadeCost(value=0.6, low=0.5, high=0.7)
    return ensemble.with_cascade(CascadeRule(order=(1, 0), stages=(stage,), costs=(0.7, 0.3), cost=cost))


@pytest.fixture(scope="module")
def cascaded(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    copy = Run(shutil.copytree(run.path, tmp_path_factory.mktemp("cascaded") / "run"))
    write_metadata(copy.path / "ensemble.json", with_cascade(run.ensemble()))
    return copy


@pytest.fixture(scope="module")
def exported(cascaded: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cascade") / "model_repository"
    result = repository_from_run(cascaded, out, FP32)
    assert [one.subject for one in result.parities][2:] == ["vote", "ensemble_fused", "stage 1"]
    assert result.parities[-1].max_difference <= 1e-4
    assert repository_from_run(cascaded, out, FP32).unchanged
    return out


def test_all_public_models_run_the_stages(exported: Path, cascaded: Run) -> None:
    ensemble = cascaded.ensemble()
    assert read_ensemble(exported / "ensemble.json") == ensemble
    for name, before in (("ensemble", ["preprocess"]), ("ensemble_pixels", []), ("ensemble_fused", [])):
        config = read_config(exported / name)
        assert [step.model_name for step in config.ensemble_scheduling.step] == [*before, "fused", "labels"]
        assert "MEMBERS_USED" in {one.name for one in config.output}
    stated = read_config(exported / "fused").parameters["stages"].string_value.split()
    assert stated == stage_files(ensemble) == ["stage_0.onnx", "stage_1.onnx"]
    assert {f"fused/1/{name}" for name in stated} <= set(read_manifest(exported).files or ())


def test_the_stages_answer_as_the_members_do(exported: Path, cascaded: Run) -> None:
    ensemble, pixels = cascaded.ensemble(), np.array(cascaded.pixels()[40:104])
    artefacts = (
        Artefact(one.name, "fp32", "onnxruntime", exported / one.name / "1" / "model.onnx") for one in ensemble.members
    )
    members = np.stack([softmax(outputs_from_artefact(one, pixels).logits) for one in artefacts], axis=1)
    expected = decide_cascade(members, cascade_of(ensemble))
    assert set(expected.stage.tolist()) == {0, 1}
    paths = [exported / "fused" / "1" / name for name in stage_files(ensemble)]
    found = verdict_from_stages(outputs_of_stages(paths, pixels))
    np.testing.assert_array_equal(found.stage, expected.stage)
    np.testing.assert_allclose(found.verdict.probabilities, expected.verdict.probabilities, atol=1e-4)
    np.testing.assert_allclose(found.verdict.member_probabilities, expected.verdict.member_probabilities, atol=1e-4)


def test_the_doctor_finds_a_missing_stage(exported: Path, tmp_path: Path) -> None:
    def errors(repository: Path) -> dict[str, str]:
        return {one.check: one.detail for one in check_repository(repository) if one.state == "error"}

    assert errors(exported) == {}
    copy = shutil.copytree(exported, tmp_path / "repository")
    (copy / "fused" / "1" / "stage_0.onnx").unlink()
    config = copy / "fused" / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace("stage_0.onnx ", ""), encoding="utf-8")
    found = errors(copy)
    assert "stages: expected stage_0.onnx stage_1.onnx in config.pbtxt, got stage_1.onnx" in found["cascade"]
    assert "stage_0.onnx: " in found["cascade"]
    assert "fused/1/stage_0.onnx is missing" in found["files"]


def test_members_have_the_times_that_export_measured_or_new_ones(
    exported: Path, for_gpus: Path, tmp_path: Path
) -> None:
    names = [member.name for member in read_ensemble(exported / "ensemble.json").members]
    told = list[str]()
    found = member_latencies(exported, told.append)
    assert list(found) == names
    assert all(time_ms > 0 for time_ms in found.values())
    assert told == [f"{name}: latency of one image" for name in names]
    copy = tmp_path / "repository"
    copy.mkdir()
    shutil.copy(exported / "ensemble.json", copy)
    manifest = read_manifest(exported)
    measured = {name: {"fp32 onnxruntime": 7.0 + index, "int8 openvino": 1.0} for index, name in enumerate(names)}
    artefacts = tuple(one.model_copy(update={"latency_ms": measured.get(one.model, {})}) for one in manifest.artefacts)
    write_metadata(copy / MANIFEST, manifest.model_copy(update={"artefacts": artefacts}))
    assert member_latencies(copy) == {names[0]: 7.0, names[1]: 8.0}
    with pytest.raises(SettingsError, match="--cascade-costs: expected a repository for CPUs, got one for GPUs"):
        member_latencies(for_gpus)


def test_a_cascade_can_be_left_out(cascaded: Run, tmp_path: Path) -> None:
    out = tmp_path / "model_repository"
    settings = FP32.model_copy(update={"without_cascade": True})
    repository_from_run(cascaded, out, settings)
    assert read_ensemble(out / "ensemble.json") == cascaded.ensemble().with_cascade(None)
    assert not list((out / "fused" / "1").glob("stage_*"))
    assert is_exported_from(out, cascaded.ensemble())
    assert repository_from_run(cascaded, out, settings).unchanged
    assert not repository_from_run(cascaded, out, FP32).unchanged


@pytest.fixture(scope="module")
def for_gpus(cascaded: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository for GPUs, of which ONNX Runtime serves the graphs."""
    out = tmp_path_factory.mktemp("gpus") / "model_repository"
    result = repository_from_run(cascaded, out, FP32_GPU)
    assert [one.subject for one in result.parities][2:] == ["vote", "ensemble_fused", "stage 1"]
    assert repository_from_run(cascaded, out, FP32_GPU).unchanged
    names = [member.name for member in cascaded.ensemble().members]
    assert {one.model: one.reason for one in result.artefacts[2:]} == {
        "stage_0": f"{names[1]} in fp32",
        "stage_1": f"{names[0]} in fp32",
    }
    assert read_manifest(out).plans >= {"stage_0/1/model.plan", "stage_1/1/model.plan"}
    assert read_config(out / "stage_1").platform == "tensorrt_plan"
    return run_on_cpu(out)


def test_for_gpus_each_stage_is_a_model(for_gpus: Path, cascaded: Run, tmp_path: Path) -> None:
    assert read_ensemble(for_gpus / "ensemble.json") == cascaded.ensemble()
    config = read_config(for_gpus / "fused")
    assert (config.backend, config.parameters["stages"].string_value) == ("python", "stage_0 stage_1")
    assert not (for_gpus / "fused" / "1" / "model.onnx").exists()
    assert [one for one in check_repository(for_gpus) if one.state == "error"] == []
    copy = shutil.copytree(for_gpus, tmp_path / "repository")
    (copy / "stage_0" / "1" / "model.onnx").unlink()
    shutil.rmtree(copy / "stage_1")
    found = {(one.check, one.subject) for one in check_repository(copy) if one.state == "error"}
    assert found >= {("hash", "stage_0"), ("config", "stage_1"), ("cascade", "fused")}


def test_a_member_can_have_no_name_of_a_stage(cascaded: Run, tmp_path: Path) -> None:
    ensemble = cascaded.ensemble()
    first = ensemble.members[0].model_copy(update={"name": "stage_1"})
    changed = ensemble.model_copy(update={"members": (first, *ensemble.members[1:])})
    copy = Run(shutil.copytree(cascaded.path, tmp_path / "run"))
    write_metadata(copy.path / "ensemble.json", changed)
    with pytest.raises(
        SettingsError, match="--target: expected cpu for a cascade with a member named stage_1, got gpu"
    ):
        repository_from_run(copy, tmp_path / "out", FP32_GPU)
    assert not (tmp_path / "out").exists()


@pytest.mark.triton
@pytest.mark.parametrize("form", ["exported", "for_gpus"])
def test_a_cascade_is_rolled_out_and_back_without_a_lost_request(
    form: str, cascaded: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # A chain, as earlier versions wrote it.
    exported, full = request.getfixturevalue(form), tmp_path / "full"
    repository_from_run(cascaded, full, FP32.model_copy(update={"without_cascade": True, "form": "chain"}))
    pixels = np.array(cascaded.pixels()[40:56])
    expected = {"cascade": probabilities_of(exported, pixels), "full": probabilities_of(full, pixels)}
    # Images that leave early tell the two apart.
    tells = np.flatnonzero(np.abs(expected["cascade"] - expected["full"]).max(axis=(1, 2)) > 1e-3)[:4]
    pixels, expected = pixels[tells], {name: values[tells] for name, values in expected.items()}
    assert len(tells) == 4
    with (
        ReleaseServer(tmp_path / "live", exported) as live,
        release_clients(live.urls["http"], pixels, expected, clients=2, pause_s=0.02) as clients,
    ):
        for arguments in ((full,), ("--back",)):
            done = live.rollout(*arguments)
            assert done.returncode == 0, done.stderr
        assert live.rollout(full, "--percent", 50).returncode == 0
        # The front model of a trial passes the parameter on.
        with EnsembleClient(live.urls["http"], full=True) as client:
            for answer in client.predict([pixels[0]] * 8, batch_size=1):
                assert all(values is not None for values in answer.member_probabilities.values())
    assert clients.failures == []
    assert set(clients.counts) == {"cascade", "full"}


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_stages_are_served_as_they_were_exported(
    cascaded: Run, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXECUTIONS, "cpu", (EXECUTIONS["cpu"][0], Execution("int8", backend)))  # type: ignore[arg-type]
    out, ensemble, pixels = tmp_path / "repository", cascaded.ensemble(), np.array(cascaded.pixels()[40:56])
    repository_from_run(
        cascaded, out, FP32.model_copy(update={"precision": "int8", "budgets": {**BUDGETS, "int8": ANY}})
    )
    assert read_config(out / "fused").backend == backend
    paths = [out / "fused" / "1" / name for name in stage_files(ensemble)]
    expected = verdict_from_stages(outputs_of_stages(paths, pixels, backend))  # type: ignore[arg-type]
    assert set(expected.stage.tolist()) == {0, 1}
    with Server(out, FREE) as server, EnsembleClient(server.urls.grpc, model="ensemble_fused") as client:
        for size in (1, 5, 8):
            found = client.predict(list(pixels), batch_size=size)
            names = np.array([member.name for member in ensemble.members])
            assert [one.members_used for one in found] == [tuple(names[used]) for used in expected.members_used]
            served = np.array([list(one.probabilities.values()) for one in found])
            np.testing.assert_allclose(served, expected.verdict.probabilities, atol=1e-4)
