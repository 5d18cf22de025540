"""The form that an export chooses, and what a server of the chosen form loads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc

from plurum.errors import SettingsError
from plurum.export import ExportSettings, repository_from_run
from plurum.export.doctor import check_repository
from plurum.export.repository import fusion
from plurum.export.repository.forms import ServedForm, choose_form, without_unserved_cascade
from plurum.export.repository.fusion import fused_backend
from plurum.export.settings import EXECUTIONS, Execution
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.serving.triton.staging import read_config
from plurum.voting import softmax
from tests.cascades.linear_cascade import ENSEMBLES

CASCADE = next(iter(ENSEMBLES.values()))
FP32, BF16, INT8, INT8_OPENVINO = EXECUTIONS["cpu"]
STEPS = {"fused": ["fused", "labels"], "chain": ["resnet10t", "regnetx_002", "voter"]}


@pytest.mark.parametrize(
    ("given", "precision", "form", "reason", "has_graph"),
    [
        ({}, "fp32", "fused", "each core computes a whole image, and an image alone gets all cores", True),
        ({"precision": "auto"}, "int8", "fused", "each core computes", True),
        ({"precision": "auto"}, "bf16", "chain", "a fused graph would compute b in FP32 instead of BF16", False),
        ({"precision": "auto", "fused": True}, "bf16", "chain", "a fused graph would", True),
        ({"form": "fused", "precision": "bf16"}, "bf16", "fused", "as requested", True),
        ({"form": "chain"}, "fp32", "chain", "as requested", False),
        ({"target": "gpu", "precision": "fp16"}, "fp16", "chain", "the default for a GPU", False),
        ({"target": "gpu", "precision": "fp16", "fused": True}, "fp16", "chain", "the default for a GPU", True),
        ({"target": "gpu", "precision": "fp16", "form": "fused"}, "fp16", "fused", "as requested", True),
    ],
)
def test_the_form_follows_target_and_precisions(
    given: dict[str, Any], precision: Any, form: str, reason: str, has_graph: bool
) -> None:
    whole = CASCADE.with_cascade(None)
    found = choose_form(whole, ExportSettings(**given), {"a": "fp32", "b": precision})
    assert (found.name, found.has_fused_graph) == (form, has_graph)
    assert found.reason.startswith(reason)


def test_a_cascade_is_never_a_chain() -> None:
    found = choose_form(CASCADE, ExportSettings(), {"a": "bf16"})
    assert found == ServedForm("fused", "its cascade runs a graph for each stage", has_fused_graph=True)
    chain = ExportSettings(form="chain")
    with pytest.raises(SettingsError, match="--form: expected fused for an ensemble with a cascade, got chain"):
        without_unserved_cascade(CASCADE, chain)
    left_out = without_unserved_cascade(CASCADE, chain.model_copy(update={"without_cascade": True}))
    assert left_out.cascade is None


def choice_of(taken: Execution) -> Any:
    """A member whose FP32 graph gives each of ten images its own logits."""
    logits = np.arange(20.0).reshape(10, 2) * [[1, -1]]
    fp32 = SimpleNamespace(artefact=SimpleNamespace(path=Path("graph")), probabilities=softmax(logits))
    return SimpleNamespace(member="a", taken=taken, candidates={FP32: fp32}, logits=logits)


def backend_of(*taken: Execution, **given: Any) -> str:
    choices = [choice_of(one) for one in taken]
    return fused_backend(choices, ExportSettings(**given), np.zeros((10, 1, 1, 3), np.uint8))


def test_openvino_computes_fp32_where_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = choice_of(FP32).logits

    def run(batch: Any) -> list[Any]:
        return [answers[: len(batch)]]

    monkeypatch.setattr(fusion, "openvino_runner", lambda *_: run)
    assert backend_of(FP32, FP32) == "openvino"
    assert backend_of(FP32, BF16) == "openvino"
    assert backend_of(FP32, INT8) == "onnxruntime"
    assert backend_of(INT8, INT8_OPENVINO) == "openvino"
    assert backend_of(FP32, target="gpu") == "tensorrt"
    assert backend_of(FP32, without_openvino=True) == "onnxruntime"
    # Of a batch of four, the last row is wrong.
    answers = answers.copy()
    answers[3] = answers[3, ::-1]
    assert backend_of(FP32) == "onnxruntime"

    def fail(*_: object) -> Any:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(fusion, "openvino_runner", fail)
    assert backend_of(FP32) == "onnxruntime"


def test_without_openvino_onnx_runtime_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert backend_of(FP32) == "onnxruntime"


@pytest.fixture(scope="module")
def usual(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repository that export writes with its own settings, except for the largest batch."""
    out = tmp_path_factory.mktemp("usual") / "model_repository"
    exported = repository_from_run(run, out, ExportSettings(max_batch_size=8))
    again = repository_from_run(run, out, ExportSettings(max_batch_size=8))
    assert exported.form.name == "fused"
    assert (again.unchanged, again.form) == (True, exported.form)
    assert [(one.model, one.backend) for one in exported.artefacts][-1] == ("fused", "openvino")
    return out


def steps_of(repository: Path, model: str) -> list[str]:
    return [step.model_name for step in read_config(repository / model).ensemble_scheduling.step]


def test_public_models_have_the_form(usual: Path, repository: Path) -> None:
    for folder, form in ((usual, "fused"), (repository, "chain")):
        assert steps_of(folder, "ensemble") == ["preprocess", *STEPS[form]]
        assert steps_of(folder, "ensemble_pixels") == STEPS[form]
    assert steps_of(usual, "ensemble_fused") == STEPS["fused"]
    assert [one.detail for one in check_repository(usual) if one.state == "error"] == []


@pytest.mark.triton
def test_a_server_loads_what_public_models_need_and_answers_as_the_chain(usual: Path, served: Server, run: Run) -> None:
    pixels = np.ascontiguousarray(run.pixels()[40:47])
    tensor = tritonclient.grpc.InferInput("PIXELS", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    with (
        Server(usual, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server,
        tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client,
        tritonclient.grpc.InferenceServerClient(served.urls.grpc) as chain,
    ):
        assert set(server.stubs().values()) - {"plurum_manager_1", "plurum_manager_2"} == {"preprocess", "fused"}
        assert not any(client.is_model_ready(name) for name in ("resnet10t", "regnetx_002", "voter"))
        answers = [client.infer(name, [tensor]) for name in ("ensemble_pixels", "ensemble_fused")]
        expected = chain.infer("ensemble_pixels", [tensor])
    for answer in answers:
        for name in ("PROBABILITIES", "MEMBER_PROBABILITIES", "ENTROPY", "STD"):
            np.testing.assert_allclose(answer.as_numpy(name), expected.as_numpy(name), atol=1e-4, err_msg=name)
        assert answer.as_numpy("LABEL").tolist() == expected.as_numpy("LABEL").tolist()
