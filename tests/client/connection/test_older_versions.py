"""Clients and servers of version 0.1.0 work with those of this version, whose predictions have the output AUDIT.

`version_0_1_0.json` holds what the client of 0.1.0 sent to the server of 0.1.0, and what it received, for the linear
repository without an audit rate.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2
from tritonclient.http import InferenceServerClient

from plurum.client import EnsembleClient
from plurum.predictions.prediction import Prediction, predictions_from_tensors
from plurum.predictions.wire import tensors_from_response
from plurum.serving import Server
from tests.client.stub_server import StubRequest, StubResponse, forward, http_server
from tests.model_repository.linear_repository import linear_repository
from tests.serving.gateway.gateways import gateway, wait_until_ready
from tests.serving.servers import FREE

RECORDED = json.loads(Path(__file__).with_name("version_0_1_0.json").read_text())
PREDICTIONS = [Prediction.from_dict(one) for one in RECORDED["predictions"]]
SIZE = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = linear_repository(tmp_path_factory.mktemp("audited"), 0.5, fused=False)
    with Server(repository, FREE) as server:
        yield server


@pytest.fixture(scope="module")
def urls(server: Server) -> Iterator[dict[str, str]]:
    with gateway(server.urls.grpc) as one:
        wait_until_ready(one)
        yield {"Triton": server.urls.http, "gateway": one.http}


def response_from(recorded: dict[str, Any]) -> StubResponse:
    response = recorded["response"]
    return StubResponse(response["status"], b64decode(response["body"]), response["json_size"])


def tensors_of(response: StubResponse) -> dict[str, Any]:
    size = int(response.json_size or 0)
    result = InferenceServerClient.parse_response_body(response.body, header_length=size)
    return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


def check_metadata(new: dict[str, Any], old: dict[str, Any]) -> None:
    """Check that a model has the inputs that it had, and at least the same outputs."""
    assert new["inputs"] == old["inputs"]
    by_name = {output["name"]: output for output in new["outputs"]}
    assert [by_name[output["name"]] for output in old["outputs"]] == old["outputs"]
    assert "AUDIT" in by_name


def check_config(new: dict[str, Any], old: dict[str, Any], *, has_checkpoints: bool) -> None:
    """Check the parts of a config that the client of 0.1.0 reads."""
    assert int(new["max_batch_size"]) == int(old["max_batch_size"])
    after, before = (json.loads(one["parameters"]["contract"]["string_value"]) for one in (new, old))
    assert after["classes"] == before["classes"]
    for key in ("name", "sha256") if has_checkpoints else ("name",):
        assert [one[key] for one in after["members"]] == [one[key] for one in before["members"]]
    assert (before.get("audit_rate"), after["audit_rate"]) == (None, 0.5)


def check_tensors(new: dict[str, Any], old: dict[str, Any]) -> None:
    assert "AUDIT" in new
    for name, before in old.items():
        assert (new[name].dtype, new[name].shape) == (before.dtype, before.shape)
        if before.dtype == np.float32:
            np.testing.assert_allclose(new[name], before, atol=1e-5)
        else:
            np.testing.assert_array_equal(new[name], before)


@pytest.mark.triton
@pytest.mark.parametrize("to", ["Triton", "gateway"])
def test_the_older_client_over_http_gets_what_it_got(urls: dict[str, str], to: str) -> None:
    for recorded in RECORDED["http"]:
        # `urllib` would name another type of content.
        headers: Any = {SIZE: recorded["json_size"]} if recorded["json_size"] else {}
        request = StubRequest(recorded["method"], recorded["path"], headers, b64decode(recorded["body"]))
        new, old = forward(urls[to], request), response_from(recorded)
        assert new.status == 200, new.body
        if request.path.endswith("/infer"):
            check_tensors(tensors_of(new), tensors_of(old))
        elif request.path.endswith("/config"):
            check_config(json.loads(new.body), json.loads(old.body), has_checkpoints=to == "Triton")
        else:
            check_metadata(json.loads(new.body), json.loads(old.body))


@pytest.mark.triton
def test_the_older_client_over_grpc_gets_what_it_got(server: Server) -> None:
    answers: list[Prediction] = []
    configs: list[dict[str, Any]] = []
    with grpc.insecure_channel(server.urls.grpc) as channel:
        for recorded in RECORDED["grpc"]:
            reply = getattr(service_pb2, f"{recorded['method']}Response")
            call = channel.unary_unary(
                f"/inference.GRPCInferenceService/{recorded['method']}", response_deserializer=reply.FromString
            )
            response = call(b64decode(recorded["request"]), timeout=30)
            if recorded["method"] == "ModelInfer":
                tensors = tensors_from_response(response)
                assert "AUDIT" in tensors
                batch = len(tensors["LABEL"])
                answers += predictions_from_tensors(tensors, ("CE", "LAA"), ("one", "two"), batch)
            elif recorded["method"] == "ModelConfig":
                configs.append(MessageToDict(response, preserving_proto_field_name=True)["config"])
    (old,) = (one for one in RECORDED["http"] if one["path"].endswith("/config"))
    check_config(configs[0], json.loads(response_from(old).body), has_checkpoints=True)
    check_predictions(answers)


def check_predictions(answers: list[Prediction]) -> None:
    assert len(answers) == len(PREDICTIONS) == 3
    for new, old in zip(answers, PREDICTIONS, strict=True):
        assert (new.label, new.review, new.prediction_set) == (old.label, old.review, old.prediction_set)
        assert new.probabilities == pytest.approx(old.probabilities, abs=1e-5)


def test_this_client_reads_the_older_server() -> None:
    sent: list[StubRequest] = []
    answers = {(one["method"], one["path"]): response_from(one) for one in RECORDED["http"]}

    def respond(request: StubRequest) -> StubResponse:
        sent.append(request)
        return answers[request.method, request.path]

    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    with http_server(respond) as url, EnsembleClient(url, "http") as client:
        served = client.served
        found = client.predict(list(pixels), patients=["ann", "bob"])
        found += client.predict([b64decode(RECORDED["http"][-1]["body"])], patients=["ann"])
    assert (served.has_audit, served.audit_rate, served.point, served.promise) == (False, None, None, None)
    assert [one.audit for one in found] == [None] * 3
    check_predictions(found)
    # Servers that draw no audits don't get the names of patients.
    assert not any(b"ann" in one.body for one in sent)
