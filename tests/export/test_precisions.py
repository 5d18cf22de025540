"""Members in other precisions: choice, parity check and serving."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from plurum.errors import ParityError, SettingsError
from plurum.export import Budget, ExportSettings, int8_from_onnx, member_parity, repository_from_run
from plurum.export.graphs.runtimes import Artefact
from plurum.export.repository import selection
from plurum.export.repository.assembly import select_passing_choices
from plurum.export.repository.selection import MemberCandidate, MemberChoice
from plurum.export.settings import BUDGETS, Backend, Execution, Precision
from plurum.onnx_graphs import sessions
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.training import settings_from
from tests.cli.command_line import CommandLine

# The shared run's members have hardly learnt, so small changes flip their predictions.
EVEN = np.full((4, 2), 0.5)
ANY = Budget(max_difference=1, flips=1, accuracy_loss=1, nll_increase=100, ece_increase=1, review_flips=1)
LOOSE: dict[Precision, Budget] = {**BUDGETS, "int8": ANY, "bf16": ANY, "fp16": ANY}


def config_of(repository: Path, model: str) -> Any:
    text = (repository / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def int8_backend(request: pytest.FixtureRequest) -> Backend:
    """Backend on which INT8 is fastest."""
    backend: Backend = request.param
    return backend


@pytest.fixture(scope="module")
def mixed(run: Run, tmp_path_factory: pytest.TempPathFactory, int8_backend: Backend) -> Path:
    """Export one member in INT8 and the other in BF16, as `auto` chooses if these are fastest."""
    out = tmp_path_factory.mktemp("mixed") / "model_repository"
    with pytest.MonkeyPatch.context() as patch:
        fast = {f"resnet10t int8 {int8_backend}", "regnetx_002 bf16 openvino"}
        patch.setattr(selection, "latency_ms", lambda one, _: 1.0 if f"{one.member} {one.execution}" in fast else 10.0)
        settings = ExportSettings(max_batch_size=8, precision="auto", fused=True, budgets=LOOSE, calibration_images=16)
        exported = repository_from_run(run, out, settings)
    assert {one.model: one.precision for one in exported.artefacts} == {
        "resnet10t": "int8",
        "regnetx_002": "bf16",
        "fused": "int8",
    }
    return out


@pytest.mark.slow
def test_auto_states_its_reasons(mixed: Path, int8_backend: Backend) -> None:
    manifest = json.loads((mixed / "export.json").read_text())
    reasons = {one["model"]: one["reason"] for one in manifest["artefacts"]}
    times = ["fp32 onnxruntime 10.0 ms", "bf16 openvino 10.0 ms", "int8 onnxruntime 10.0 ms", "int8 openvino 10.0 ms"]
    told = ", ".join(times).replace(f"int8 {int8_backend} 10.0", f"int8 {int8_backend} 1.0")
    assert reasons["resnet10t"] == f"the fastest that passes ({told})"
    assert reasons["fused"] == "resnet10t in int8, regnetx_002 in fp32"


@pytest.mark.slow
def test_each_backend_has_its_config(mixed: Path, int8_backend: Backend) -> None:
    """The fused graph contains the INT8 member as built for its backend, and the vote is not quantised."""
    for model in ("resnet10t", "fused"):
        config = config_of(mixed, model)
        assert (config.backend, "HINT_BF16" in config.parameters) == (int8_backend, False)
    bf16 = config_of(mixed, "regnetx_002")
    assert (bf16.backend, bf16.parameters["HINT_BF16"].string_value) == ("openvino", "YES")


@pytest.mark.triton
def test_a_mixed_repository_is_served(mixed: Path, run: Run) -> None:
    pixels = np.ascontiguousarray(run.pixels()[40:48])
    tensor = tritonclient.grpc.InferInput("PIXELS", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    with (
        Server(mixed, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server,
        tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client,
    ):
        chain, fused = (client.infer(model, [tensor]) for model in ("ensemble_pixels", "ensemble_fused"))
    parity = {one["subject"]: one for one in json.loads((mixed / "parity.json").read_text())["artefacts"]}
    assert set(parity) == {"resnet10t", "regnetx_002", "vote", "ensemble_fused"}
    assert parity["resnet10t"]["max_difference"] > 1e-4
    # The difference comes from BF16 in one member with a weight of 0.3.
    np.testing.assert_allclose(chain.as_numpy("PROBABILITIES"), fused.as_numpy("PROBABILITIES"), atol=0.05)
    np.testing.assert_allclose(chain.as_numpy("PROBABILITIES").sum(axis=1), 1, atol=1e-5)


FP32, BF16, INT8, INT8_OPENVINO = (
    Execution("fp32", "onnxruntime"),
    Execution("bf16", "openvino"),
    Execution("int8", "onnxruntime"),
    Execution("int8", "openvino"),
)


def test_each_backend_rounds_the_operators_that_it_computes_fast(mixed: Path, int8_backend: Backend) -> None:
    """ONNX Runtime gets integers between layers; for OpenVINO only inputs of heavy layers are quantised."""
    graph = onnx.load(mixed / "resnet10t" / "1" / "model.onnx").graph
    takes: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            takes.setdefault(name, set()).add(node.op_type)
    restored = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    heavy = [bool(takes.get(node.output[0], set()) & {"Conv", "Gemm"}) for node in restored]
    assert any(heavy)
    assert all(heavy) == (int8_backend == "openvino")


def candidate(execution: Execution, took_ms: float, *, passes: bool = True) -> MemberCandidate:
    precision, backend = execution
    parity = member_parity("m", precision, EVEN, EVEN, np.zeros(4, np.int64), ANY)
    faults = () if passes else ("fraction of changed labels 0.5 (at most 0.01)",)
    artefact = Artefact("m", precision, backend, Path("m.onnx"))
    return MemberCandidate(artefact, parity.model_copy(update={"faults": faults}), EVEN, took_ms)


@pytest.mark.parametrize(
    ("candidates", "taken"),
    [
        ([candidate(FP32, 10), candidate(BF16, 5), candidate(INT8, 3)], INT8),
        ([candidate(FP32, 10), candidate(BF16, 5), candidate(INT8, 3, passes=False)], BF16),
        ([candidate(FP32, 10), candidate(BF16, 12), candidate(INT8, 9.5)], FP32),
        ([candidate(FP32, 10)], FP32),
    ],
    ids=["fastest", "gate", "not worth it", "alone"],
)
def test_the_fastest_precision_that_passes_is_chosen(candidates: list[MemberCandidate], taken: Execution) -> None:
    choice = MemberChoice("m", EVEN, {one.artefact.execution: one for one in candidates})
    best = selection.choose_fastest(choice, ["bf16 openvino was not built: nothing to build it with"])
    assert best.taken == taken
    assert "fp32 onnxruntime 10.0 ms" in best.reason
    assert ("int8 onnxruntime exceeds its budget: fraction of changed labels 0.5" in best.reason) == (taken == BF16)
    assert best.reason.endswith("bf16 openvino was not built: nothing to build it with")


@pytest.mark.parametrize("passes", [True, False])
def test_the_faster_form_of_int8_that_passes_is_chosen(passes: bool) -> None:
    """Neither is the reference, so the second need not be faster by a tenth."""
    both = [candidate(INT8, 10, passes=passes), candidate(INT8_OPENVINO, 9.5)]
    best = selection.choose_fastest(MemberChoice("m", EVEN, {one.artefact.execution: one for one in both}), [])
    assert best.taken == INT8_OPENVINO
    assert best.reason.startswith("the fastest that passes (int8 onnxruntime 10.0 ms, int8 openvino 9.5 ms)")


def test_int8_without_openvino_is_onnx_runtime_s(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    settings = ExportSettings(precision="int8", calibration_images=16, budgets=LOOSE)
    exported = repository_from_run(run, tmp_path / "out", settings)
    assert {(one.precision, one.backend) for one in exported.artefacts} == {("int8", "onnxruntime")}
    assert "int8 openvino was not built: package 'openvino' is not installed" in exported.artefacts[0].reason


def test_an_export_without_openvino_offers_what_onnx_runtime_computes() -> None:
    settings = ExportSettings(precision="auto", without_openvino=True)
    assert settings.executions == (FP32, INT8)
    with pytest.raises(SettingsError, match="expected fp32, int8 or auto with --without-openvino, got bf16"):
        settings_from(ExportSettings, precision="bf16", without_openvino=True)


def test_auto_tries_nothing_where_the_reference_is_wrong_already(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "int8_from_onnx", lambda *_: pytest.fail("INT8 was made"))
    settings = ExportSettings(precision="auto", tolerance=1e-12)
    with pytest.raises(ParityError, match="FP32 graph of resnet10t differs from PyTorch"):
        repository_from_run(run, tmp_path / "out", settings)


def test_export_compiles_what_the_openvino_backend_does() -> None:
    """The backend can't import Plurum, so the compiled batch sizes are stated twice."""
    backend = files("plurum").joinpath("model_repository", "openvino", "model.py").read_text(encoding="utf-8")
    assert f"_BATCH_SIZES = {sessions._BATCH_SIZES}\n" in backend


def test_a_member_with_which_the_vote_does_not_pass_goes_back(run: Run) -> None:
    """Each member passes alone; the second differs more, and without it the vote passes."""
    ensemble = run.ensemble()
    labels = np.zeros(4, np.int64)
    answers = {FP32: np.full((4, 10), 0.1)}
    answers[BF16], answers[INT8] = answers[FP32].copy(), answers[FP32].copy()
    answers[BF16][:, :2] += (0.01, -0.01)
    answers[INT8][:, :2] += (0.04, -0.04)
    choices = []
    for name, execution in (("resnet10t", BF16), ("regnetx_002", INT8)):
        made = {}
        for one in (FP32, execution):
            parity = member_parity(name, one.precision, answers[FP32], answers[one], labels, ANY)
            made[one] = MemberCandidate(Artefact(name, *one, Path()), parity, answers[one])
        choices.append(MemberChoice(name, answers[FP32], made, execution))
    strict = ANY.model_copy(update={"max_difference": 0.009})
    settings = ExportSettings(precision="auto", budgets={**LOOSE, "int8": strict, "bf16": strict})
    pixels = np.zeros((4, 32, 32, 3), np.uint8)
    voted, parity = select_passing_choices(ensemble, choices, selection.ParitySample(pixels, labels, pixels), settings)
    assert [choice.taken for choice in voted] == [BF16, FP32]
    assert voted[1].reason.startswith(
        "int8 onnxruntime passed alone, but with it the vote does not: probabilities differ"
    )
    assert parity.passed
    assert parity.precision == "bf16"


# Budget above the losses of hardly trained members in correctly calibrated INT8.
HARDLY = Budget(
    max_difference=0.3, flips=0.03, accuracy_loss=0.02, nll_increase=0.05, ece_increase=0.02, review_flips=0.2
)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [False, True], ids=["training images", "noise"])
def test_calibration_on_noise_is_caught_and_on_training_images_passes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: bool
) -> None:
    """Images, settings and budget are the same."""
    calibrated: list[Any] = []

    def on(source: Path, pixels: Any, path: Path, backend: Backend) -> None:
        grey = np.random.default_rng(0).integers(126, 129, pixels.shape, dtype=np.uint8)
        calibrated.append(grey if noise else pixels)
        int8_from_onnx(source, calibrated[-1], path, backend)

    monkeypatch.setattr(selection, "int8_from_onnx", on)
    settings = ExportSettings(precision="int8", calibration_images=16, budgets={**BUDGETS, "int8": HARDLY})
    if noise:
        with pytest.raises(ParityError, match=r"INT8 graph of resnet10t differs from PyTorch.*Nothing was"):
            repository_from_run(run, tmp_path / "out", settings)
        assert not (tmp_path / "out").exists()
        return
    exported = repository_from_run(run, tmp_path / "out", settings)
    assert {one.precision for one in exported.artefacts} == {"int8"}
    # ParityError if neither form passes; on one processor, ONNX Runtime's form of these members does not.
    learnt_from = {run.pixels()[row].tobytes() for row in run.table().rows("train")}
    assert {image.tobytes() for image in calibrated[0]} <= learnt_from


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_for_a_gpu_everything_but_the_plans_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plurum: CommandLine
) -> None:
    out = tmp_path / "gpu"
    settings = ExportSettings(
        target="gpu", precision="fp16", fused=True, budgets=LOOSE, max_batch_size=8, calibration_images=8
    )
    exported = repository_from_run(run, out, settings)
    assert {one.precision for one in exported.artefacts} == {"fp16"}
    for model in ("resnet10t", "regnetx_002", "fused"):
        config = config_of(out, model)
        assert (config.platform, config.default_model_filename) == ("tensorrt_plan", "model.plan")
        assert config.optimization.cuda.graphs
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
        assert (out / model / "1" / "model.onnx").is_file()
        assert not (out / model / "1" / "model.plan").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "this machine has no GPU" in plurum.refused("export", "--build-engines", out)


@pytest.mark.parametrize(
    ("target", "precision", "message"),
    [
        ("cpu", "fp16", "--precision: expected fp32, bf16, int8 or auto for --target cpu, got fp16"),
        ("gpu", "int8", "expected fp32, fp16 or auto for --target gpu"),
    ],
)
def test_a_precision_that_the_target_has_not(target: str, precision: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_from(ExportSettings, target=target, precision=precision)
