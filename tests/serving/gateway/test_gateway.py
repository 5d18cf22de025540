"""A real gateway in front of a real server: predictions, and the paths that exist."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tritonclient.http

from plurum.client import EnsembleClient
from plurum.run import Run
from plurum.serving import Server
from tests.serving.gateway.gateways import Gateway, form

pytestmark = pytest.mark.triton


def test_prediction_equals_that_of_the_client(small: Gateway, served: Server, images: list[bytes]) -> None:
    with EnsembleClient(served.urls.grpc) as client:
        expected = client.predict(images, batch_size=1)
    for image, prediction in zip(images, expected, strict=True):
        reply = small.predict(image)
        assert reply.status == 200
        assert reply.json.pop("ensemble") == "digits-test"
        assert {k: v for k, v in reply.json.items() if k != "ensemble"} == prediction.to_dict()


def test_form_with_one_file_equals_the_file_alone(small: Gateway, images: list[bytes]) -> None:
    body, kind = form(("file", "one.png", images[0]))
    assert small.send("POST", "/predict", body, Content_Type=kind).json == small.predict(images[0]).json


def test_bad_file_in_a_form_does_not_affect_others(small: Gateway, images: list[bytes]) -> None:
    sent = [("files", f"{at}.img", image) for at, image in enumerate(images)]
    sent.insert(3, ("files", "bad.png", images[0][:60]))
    sent.insert(7, ("files", "none.txt", b"no image at all"))
    body, kind = form(*sent)
    reply = small.send("POST", "/predict", body, Content_Type=kind)
    assert reply.status == 200
    assert [answer["file"] for answer in reply.json] == [name for _, name, _ in sent]
    errors = {answer["file"]: answer["error"] for answer in reply.json if "error" in answer}
    assert set(errors) == {"bad.png", "none.txt"}
    assert "corrupt or truncated" in errors["bad.png"]
    assert "not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM" in errors["none.txt"]
    answered = {answer["file"]: answer["label"] for answer in reply.json if "label" in answer}
    assert answered == {f"{at}.img": small.predict(image).json["label"] for at, image in enumerate(images)}


def test_field_files_always_gets_a_list(small: Gateway, images: list[bytes]) -> None:
    body, kind = form(("files", "one.png", images[0]))
    (answer,) = small.send("POST", "/predict", body, Content_Type=kind).json
    assert answer == {"file": "one.png"} | small.predict(images[0]).json


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_sees_no_difference(small: Gateway, served: Server, run: Run, *, binary: bool) -> None:
    pixels = np.array(run.pixels()[40:43])
    answers = []
    for url in (small.http, served.urls.http):
        with tritonclient.http.InferenceServerClient(url.removeprefix("http://")) as client:
            tensor = tritonclient.http.InferInput("PIXELS", list(pixels.shape), "UINT8")
            tensor.set_data_from_numpy(pixels, binary_data=binary)
            wanted = [
                tritonclient.http.InferRequestedOutput(name, binary_data=binary)
                for name in ("PROBABILITIES", "LABEL", "REVIEW", "MEMBER_PROBABILITIES")
            ]
            result = client.infer("ensemble_pixels", [tensor], outputs=wanted, request_id="mine")
            assert client.is_server_ready()
            assert client.is_model_ready("ensemble_pixels")
            described = client.get_model_metadata("ensemble_pixels")
            outputs = {output["name"]: output for output in described["outputs"]}
            answers.append((result, described["inputs"], outputs))
    (through, *shape), (direct, *expected) = answers
    assert shape == expected
    assert through.get_response()["id"] == "mine"
    for name in ("PROBABILITIES", "LABEL", "REVIEW", "MEMBER_PROBABILITIES"):
        np.testing.assert_array_equal(through.as_numpy(name), direct.as_numpy(name))


def test_ensemble_client_works_through_it(small: Gateway, served: Server, images: list[bytes]) -> None:
    with EnsembleClient(small.http) as through, EnsembleClient(served.urls.grpc) as direct:
        # A gateway states names, sizes and the hash of the metadata, but not the rest of them.
        assert through.served == replace(direct.served, checkpoints=(), patient_rule=None)
        assert through.served.metadata_sha256
        assert through.predict(images, batch_size=1) == direct.predict(images, batch_size=1)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/repository/index"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/voter/load"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/logging"),
        ("GET", "/v2/models/stats"),
        ("GET", "/v2/models/ensemble/stats"),
        ("GET", "/v2/models/voter"),
        ("GET", "/v2/models/voter/config"),
        ("POST", "/v2/models/resnet10t/infer"),
        ("POST", "/v2/models/../models/voter/infer"),
        ("POST", "/v2/models/ensemble%2F..%2Fvoter/infer"),
        ("POST", "/v2/models/ensemble_fused/infer"),
        ("GET", "/metrics"),
        ("GET", "/"),
    ],
)
def test_other_paths_are_unknown(small: Gateway, method: str, path: str) -> None:
    body = b'{"inputs": [{"name": "PIXELS", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}]}'
    reply = small.send(method, path, body if method == "POST" else b"")
    assert reply.status == 404
    assert set(reply.json) == {"error"}


def test_raw_binary_request_gets_the_response_of_triton(
    small: Gateway, served: Server, run: Run, images: list[bytes]
) -> None:
    pixels = np.array(run.pixels()[40]).tobytes()
    for model, body in (("ensemble", images[0]), ("ensemble_pixels", pixels)):
        path = f"/v2/models/{model}/infer"
        through = small.send("POST", path, body, Inference_Header_Content_Length="0")
        direct = replace(small, http=served.urls.http).send("POST", path, body, Inference_Header_Content_Length="0")
        assert through.status == direct.status == 200
        parts = []
        for reply in (through, direct):
            size = int(reply.headers["inference-header-content-length"])
            parts.append((json.loads(reply.body[:size])["outputs"], reply.body[size:]))
        ours, theirs = ({one["name"]: one["parameters"]["binary_data_size"] for one in outputs} for outputs, _ in parts)
        assert ours == theirs
        assert len(parts[0][1]) == len(parts[1][1])
        assert [one["shape"][0] for one in parts[0][0]] == [1] * len(ours)
    reply = small.send("POST", "/v2/models/ensemble_pixels/infer", pixels[1:], Inference_Header_Content_Length="0")
    assert (reply.status, reply.json["error"]) == (
        400,
        "PIXELS: expected 3072 bytes for shape [1, 32, 32, 3], got 3071",
    )
