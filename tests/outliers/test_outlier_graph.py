"""The outlier test in a graph: the same p-values as in the voter, by PyTorch, ONNX Runtime and OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
import torch

from plurum.export.graphs.fused import VoteModel
from plurum.onnx_graphs.export import onnx_from_module
from plurum.predictions.outputs import voted_outputs
from plurum.voting import DecisionPoint, OutlierTest, VotingRule, decide, softmax

RNG = np.random.default_rng(0)
REFERENCE = tuple(np.sort(RNG.normal(size=200)).tolist())
COUNTS = tuple((1 / RNG.integers(1, 5, 200)).tolist())
TESTS = {
    "one detector": OutlierTest(0.2, (False, True, False), (0.0, 1.0, 0.0), REFERENCE, None, 200),
    "patients": OutlierTest(0.1, (True, True, True), (0.5, 0.3, 0.2), REFERENCE, COUNTS, round(sum(COUNTS))),
    "too few patients": OutlierTest(0.2, (True, False, True), (0.5, 0.0, 0.5), (-1.0, 1.0), None, 2),
}
POINTS = {
    "no point": None,
    "interval": DecisionPoint(positive=1, threshold=0.3, review_interval=(0.2, 0.4)),
    "review cost": DecisionPoint(costs=((0.0, 5.0), (1.0, 0.0)), review_cost=0.6),
}
LOGITS = RNG.normal(scale=2, size=(40, 3, 2)).astype(np.float32)
NOVELTY = RNG.normal(scale=2, size=(40, 3)).astype(np.float32)


def built(rule: VotingRule, path: Path) -> list[int]:
    """Write the vote as a graph, and return the indices of the members with a detector."""
    assert rule.outliers is not None
    detecting = np.flatnonzero(rule.outliers.detecting).tolist()
    model = VoteModel(rule)
    samples = torch.zeros(2, 3, 2), torch.zeros(2, len(detecting))
    onnx_from_module(model, samples, path, ("LOGITS", "NOVELTY"), model.outputs)
    return [int(one) for one in detecting]


def run_everywhere(rule: VotingRule, path: Path, logits: Any, novelty: Any) -> list[dict[str, npt.NDArray[Any]]]:
    """Return the outputs of the vote by PyTorch, by ONNX Runtime, and by OpenVINO for any batch and for four images."""
    detecting = built(rule, path)
    given = {"LOGITS": logits, "NOVELTY": novelty[:, detecting]}
    model = VoteModel(rule)
    names = list(model.outputs)
    found = [one.numpy() for one in model(*map(torch.from_numpy, given.values()))]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    graph = openvino.Core().read_model(path)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    free = openvino.Core().compile_model(graph, "CPU", hint)
    graph.reshape({port: [4, *list(port.partial_shape)[1:]] for port in graph.inputs})
    four = openvino.Core().compile_model(graph, "CPU", hint)
    parts = [four({name: one[at : at + 4] for name, one in given.items()}) for at in range(0, len(logits), 4)]
    fixed = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return [
        dict(zip(names, found, strict=True)),
        dict(zip(names, session.run(names, given), strict=True)),
        {name: free(given)[name] for name in names},
        fixed,
    ]


@pytest.mark.parametrize(("test", "point"), [*zip(TESTS.values(), POINTS.values(), strict=True)], ids=TESTS)
def test_a_graph_tests_as_the_voter_does(test: OutlierTest, point: DecisionPoint | None, tmp_path: Path) -> None:
    quantiles = None if point else (0.6, 0.6)
    rule = VotingRule((0.5, 0.3, 0.2), quantiles=quantiles, review_threshold=0.7, point=point, outliers=test)
    expected = decide(softmax(LOGITS), rule, NOVELTY)
    assert len(set(expected.review_reason)) > 1
    for outputs in run_everywhere(rule, tmp_path / "vote.onnx", LOGITS, NOVELTY):
        for name, output in voted_outputs(has_outliers=True).items():
            found = outputs["INDEX" if name == "LABEL" else name]
            found = found[:, 0] if output.is_scalar else found
            np.testing.assert_allclose(found, getattr(expected, output.field), atol=2e-6, err_msg=name)
        assert [str(outputs[name].dtype) for name in ("OUTLIER", "REVIEW_REASON")] == ["float32", "uint8"]


def test_nan_has_no_p_value(tmp_path: Path) -> None:
    rule = VotingRule((0.5, 0.3, 0.2), outliers=TESTS["patients"])
    novelty = NOVELTY.copy()
    novelty[::3, 1] = np.nan
    for outputs in run_everywhere(rule, tmp_path / "vote.onnx", LOGITS, novelty):
        assert np.isnan(outputs["OUTLIER"][:, 0]).tolist() == [row % 3 == 0 for row in range(40)]


def test_a_vote_without_a_test_has_the_outputs_it_had(tmp_path: Path) -> None:
    model = VoteModel(VotingRule((0.5, 0.3, 0.2)))
    onnx_from_module(model, (torch.zeros(2, 3, 2),), tmp_path / "vote.onnx", ("LOGITS",), model.outputs)
    graph = onnx.load(tmp_path / "vote.onnx").graph
    assert [one.name for one in graph.output] == list(model.outputs)
    assert not {"OUTLIER", "REVIEW_REASON"} & set(model.outputs)
