"""The fused graph gives the same predictions as the chain, in this process and when served."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from plurum.export import ExportSettings, repository_from_run
from plurum.export.graphs.fused import VoteModel, fused_from_onnx, verdict_from_fused
from plurum.export.graphs.runtimes import onnx_session
from plurum.onnx_graphs.export import onnx_from_module
from plurum.predictions.outputs import VOTED
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.voting import DecisionPoint, VotingRule, decide, softmax
from tests.model_repository.expected_outputs import float_outputs
from tests.serving.voter_counts import wait_for_counts

FUSED_OUTPUTS = VoteModel(VotingRule((1.0,))).outputs
WEIGHTS = (0.5, 0.3, 0.2)
RULES = {
    "soft": VotingRule(WEIGHTS, temperature=1.7, quantiles=(0.7, 0.5, 0.9, 0.6), review_threshold=0.6),
    "soft, no sets": VotingRule(WEIGHTS, review_threshold=0.5),
    "hard": VotingRule(WEIGHTS, mode="hard", quantiles=(1 - 0.3, 0.5, 0.4, 1 - 0.2), review_threshold=0.5 + 0.2),
    "hard, with ties": VotingRule((0.25, 0.25, 0.5), mode="hard"),
    "stack": VotingRule(
        (1 / 3,) * 3,
        mode="stack",
        temperature=0.8,
        coefficients=tuple(tuple(np.random.default_rng(row).normal(size=12)) for row in range(4)),
        intercepts=(2.0, 9.0, 0.0, 0.3),
    ),
    "prior": VotingRule(WEIGHTS, temperature=1.3, quantiles=(0.7,) * 4, prior_ratio=(0.2, 3.0, 1.0, 0.5)),
}
POINTS = {
    "interval": DecisionPoint(positive=1, threshold=0.2, review_interval=(0.1, 0.35)),
    "no review": DecisionPoint(positive=0, threshold=0.8),
    "review cost": DecisionPoint(costs=((0.0, 5.0), (1.0, 0.0)), review_cost=0.6),
    "costs": DecisionPoint(costs=((0.0, 5.0), (1.0, 0.0))),
}


@pytest.mark.parametrize("mode", ["soft", "stack"])
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS.keys())
def test_the_vote_decides_at_the_point_as_the_voter_does(point: DecisionPoint, mode: str, tmp_path: Path) -> None:
    """Compare random probabilities, in PyTorch, ONNX Runtime and OpenVINO."""
    rng = np.random.default_rng(0)
    stack = {
        "coefficients": ((0.6, -0.2, 0.4, -0.1, 0.5, 0.0), (-0.1, 0.5, 0.0, 0.6, -0.2, 0.4)),
        "intercepts": (0.3, -0.3),
    }
    rule = VotingRule(
        WEIGHTS,
        mode=mode,
        temperature=1.3,
        quantiles=(0.6, 0.7),
        review_threshold=0.6,
        prior_ratio=(0.7, 1.4),
        point=point,
        **stack if mode == "stack" else {},  # type: ignore[arg-type]
    )
    logits = rng.normal(scale=2, size=(2000, 3, 2)).astype(np.float32)
    expected = decide(softmax(logits), rule)
    path = tmp_path / "vote.onnx"
    onnx_from_module(VoteModel(rule), (torch.zeros(2, 3, 2),), path, ("LOGITS",), FUSED_OUTPUTS)
    found = [tensor.numpy() for tensor in VoteModel(rule)(torch.from_numpy(logits))]
    session, compiled = (
        onnx_session(path),
        openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}),
    )
    outputs = compiled({"LOGITS": logits})
    for answers in (
        dict(zip(FUSED_OUTPUTS, found, strict=True)),
        dict(zip(FUSED_OUTPUTS, session.run(list(FUSED_OUTPUTS), {"LOGITS": logits}), strict=True)),
        {name: outputs[name] for name in FUSED_OUTPUTS},
    ):
        np.testing.assert_array_equal(answers["INDEX"][:, 0], expected.label)
        np.testing.assert_array_equal(answers["REVIEW"][:, 0], expected.review)
        np.testing.assert_array_equal(answers["PREDICTION_SET"], expected.prediction_set)
    # The point decides otherwise than the most probable class, and not everything goes to review.
    assert 0.02 < np.mean(expected.label != expected.probabilities.argmax(axis=1)) < 0.9
    assert expected.review.mean() < 0.9


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_the_fused_vote_equals_the_voters(rule: VotingRule) -> None:
    logits = np.random.default_rng(0).normal(scale=2.5, size=(300, 3, 4)).astype(np.float32)
    expected = decide(softmax(logits), rule)
    outputs = dict(zip(FUSED_OUTPUTS, VoteModel(rule)(torch.from_numpy(logits)), strict=True))
    arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
    for name, values in float_outputs(expected).items():
        np.testing.assert_allclose(arrays[name], values, atol=1e-5)
    np.testing.assert_array_equal(arrays["INDEX"][:, 0], expected.label)
    np.testing.assert_array_equal(arrays["PREDICTION_SET"], expected.prediction_set)
    np.testing.assert_array_equal(arrays["REVIEW"][:, 0], expected.review)
    assert len(set(expected.label)) == 4


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_every_backend_votes_alike_in_batches_of_every_size(rule: VotingRule, tmp_path: Path) -> None:
    """Compare each output, because OpenVINO once summed [batch, members, 1] over members wrong."""
    logits = np.random.default_rng(0).normal(scale=2.5, size=(9, 3, 4)).astype(np.float32)
    expected = [tensor.numpy() for tensor in VoteModel(rule)(torch.from_numpy(logits))]
    path = tmp_path / "vote.onnx"
    onnx_from_module(VoteModel(rule), (torch.zeros(2, 3, 4),), path, ("LOGITS",), FUSED_OUTPUTS)
    core, session = openvino.Core(), onnx_session(path)
    for size in (1, 2, 3, 4, 8, 9):
        asked, model = {"LOGITS": logits[:size]}, core.read_model(path)
        free = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(asked)
        model.reshape([size, 3, 4])
        fixed = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(asked)
        plain = dict(zip(FUSED_OUTPUTS, session.run(FUSED_OUTPUTS, asked), strict=True))
        for name, values in zip(FUSED_OUTPUTS, expected, strict=True):
            for answers in (free, fixed, plain):
                np.testing.assert_allclose(answers[name], values[:size], atol=1e-5, err_msg=f"{name} of {size}")


def test_nan_of_a_member_reaches_the_output() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[1, 2, 0] = torch.nan
    outputs = dict(zip(FUSED_OUTPUTS, VoteModel(RULES["soft"])(logits), strict=True))
    assert outputs["MEMBER_PROBABILITIES"].isnan().any(dim=2).tolist() == [[False] * 3, [False, False, True]]
    assert bool(outputs["REVIEW"][1])


@pytest.fixture(scope="module")
def fused_repository(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fused") / "model_repository"
    exported = repository_from_run(run, out, ExportSettings(max_batch_size=8, form="chain", fused=True))
    assert [parity.subject for parity in exported.parities][-1] == "ensemble_fused"
    assert exported.parities[-1].max_difference <= 1e-4
    return out


def test_every_member_is_in_the_graph(run: Run, fused_repository: Path) -> None:
    graph = fused_repository / "fused" / "1" / "model.onnx"
    members = [fused_repository / member.name / "1" / "model.onnx" for member in run.ensemble().members]
    assert graph.stat().st_size >= sum(path.stat().st_size for path in members) * 0.99
    nodes = onnx.load(graph).graph.node
    assert all(node.op_type == "Cast" for node in nodes if "PIXELS" in node.input)


def test_the_order_of_the_members_counts(run: Run, fused_repository: Path, tmp_path: Path) -> None:
    ensemble, pixels = run.ensemble(), run.pixels()[40:56]
    graphs = [fused_repository / member.name / "1" / "model.onnx" for member in ensemble.members]
    fused_from_onnx(graphs[::-1], ensemble.rule, len(ensemble.classes), tmp_path / "swapped.onnx")
    right = verdict_from_fused(fused_repository / "fused" / "1" / "model.onnx", pixels)
    wrong = verdict_from_fused(tmp_path / "swapped.onnx", pixels)
    assert np.abs(right.probabilities - wrong.probabilities).max() > 1e-2


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def fused_server(
    fused_repository: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Server]:
    """With OpenVINO, two processes of the fused graph state labels and metrics themselves."""
    repository = tmp_path_factory.mktemp("served") / "model_repository"
    shutil.copytree(fused_repository, repository)
    config = repository / "fused" / "config.pbtxt"
    text = re.sub('backend: "[a-z]+"', f'backend: "{request.param}"', config.read_text(encoding="utf-8"))
    config.write_text(text.replace("count: 1", "count: 2"), encoding="utf-8")
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        assert ("labels" in server.stubs().values()) == (request.param == "onnxruntime")
        yield server


def ask(server: Server, model: str, pixels: object, request_id: str = "") -> tritonclient.grpc.InferResult:
    values = np.ascontiguousarray(pixels)
    tensor = tritonclient.grpc.InferInput("PIXELS", list(values.shape), "UINT8")
    tensor.set_data_from_numpy(values)
    with tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client:
        return client.infer(model, [tensor], request_id=request_id)


@pytest.mark.triton
@pytest.mark.parametrize("batch", [1, 8])
def test_served_answers_equal_the_chains(fused_server: Server, run: Run, batch: int) -> None:
    pixels = run.pixels()[40 : 40 + batch]
    chain, fused = (ask(fused_server, model, pixels) for model in ("ensemble_pixels", "ensemble_fused"))
    for name in VOTED:
        expected, received = chain.as_numpy(name), fused.as_numpy(name)
        assert received.dtype == expected.dtype
        assert received.shape == expected.shape
        if expected.dtype == np.float32:
            np.testing.assert_allclose(received, expected, atol=1e-4)
        else:
            np.testing.assert_array_equal(received, expected)


@pytest.mark.triton
@pytest.mark.parametrize("model", ["ensemble_pixels", "ensemble_fused"])
@pytest.mark.parametrize("output", VOTED)
def test_any_output_can_be_requested_alone(fused_server: Server, run: Run, model: str, output: str) -> None:
    pixels = np.array(run.pixels()[:2])
    tensor = tritonclient.grpc.InferInput("PIXELS", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    with tritonclient.grpc.InferenceServerClient(fused_server.urls.grpc) as client:
        answer = client.infer(model, [tensor], outputs=[tritonclient.grpc.InferRequestedOutput(output)])
    assert [one.name for one in answer.get_response().outputs] == [output]
    assert len(answer.as_numpy(output)) == 2


@pytest.mark.triton
def test_metrics_count_chain_and_fused_graph_together(fused_server: Server, run: Run) -> None:
    def counted() -> float:
        samples = wait_for_counts(fused_server.urls.metrics)
        return sum(value for sample, value in samples.items() if sample.startswith("plurum_predictions_total{"))

    before = counted()
    pixels = run.pixels()[40:43]
    ask(fused_server, "ensemble_fused", pixels)
    ask(fused_server, "ensemble_pixels", pixels)
    ask(fused_server, "ensemble_fused", pixels, request_id="plurum-probe")
    for _ in range(8):
        ask(fused_server, "ensemble_fused", pixels)
    assert counted() - before == 30


@pytest.mark.triton
def test_predictions_are_the_same_beside_other_requests(fused_server: Server, run: Run) -> None:
    """An instance that computes alone uses other threads, and requests that wait may become a batch."""
    images = [run.pixels()[40 + one : 41 + one] for one in range(8)]

    def probabilities(pixels: object) -> Any:
        return ask(fused_server, "ensemble_fused", pixels).as_numpy("PROBABILITIES")

    alone = [probabilities(one) for one in images]
    with ThreadPoolExecutor(len(images)) as pool:
        together = list(pool.map(probabilities, images * 3))
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone * 3), atol=1e-6)


@pytest.mark.triton
def test_too_large_a_batch_is_refused(fused_server: Server) -> None:
    with pytest.raises(InferenceServerException, match="batch"):
        ask(fused_server, "ensemble_fused", np.zeros((9, 32, 32, 3), np.uint8))
