"""Conversion of requests and responses between HTTP and gRPC."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from tritonclient.grpc import service_pb2 as pb

from plurum.predictions.wire import bytes_from_raw
from plurum.serving.gateway.messages.bodies import uploads_from_body
from plurum.serving.gateway.messages.kserve import (
    MAX_JSON_BYTES,
    InferenceRequest,
    body_from_response,
    request_from_body,
)
from plurum.serving.gateway.refusals import RefusalError
from plurum.serving.gateway.triton import image_request


def parsed(request: InferenceRequest) -> Any:
    return pb.ModelInferRequest.FromString(request.request.wire)


def body(*inputs: dict[str, Any], behind: bytes = b"", **rest: Any) -> tuple[bytes, str]:
    text = json.dumps({"inputs": list(inputs), **rest}).encode()
    return text + behind, str(len(text))


def test_binary_tensors_are_forwarded_unchanged() -> None:
    image = struct.pack("<I", 3) + b"\xff\xd8\xff"
    first = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 7}}
    second = {"name": "OTHER", "shape": [2], "datatype": "UINT8", "data": [[0], [255]]}
    third = {"name": "MORE", "shape": [1], "datatype": "UINT8", "parameters": {"binary_data_size": 1}}
    sent, size = body(first, second, third, behind=image + b"z", id="mine", parameters={"timeout": 1500, "priority": 3})
    inference = request_from_body("ensemble", sent, size, "ours")
    request = parsed(inference)
    assert list(request.raw_input_contents) == [image, b"\x00\xff", b"z"]
    assert [(one.name, one.datatype, list(one.shape)) for one in request.inputs] == [
        ("IMAGE", "BYTES", [1, 1]),
        ("OTHER", "UINT8", [2]),
        ("MORE", "UINT8", [1]),
    ]
    # Nothing that tells Triton how to queue.
    assert not request.parameters
    assert (request.id, request.model_name) == ("ours", "ensemble")
    assert (inference.request.id, inference.id, inference.timeout_s) == ("ours", "mine", 0.0015)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=3), st.text(max_size=5))
def test_wire_format_equals_protobuf(images: list[bytes], request_id: str) -> None:
    built = image_request([memoryview(one) for one in images], request_id)
    expected = pb.ModelInferRequest(model_name="ensemble", id=request_id)
    expected.inputs.add(name="IMAGE", datatype="BYTES", shape=(len(images), 1))
    expected.raw_input_contents.append(b"".join(struct.pack("<I", len(one)) + one for one in images))
    assert pb.ModelInferRequest.FromString(built.wire) == expected


def test_text_is_sent_as_utf8() -> None:
    sent, _ = body({"name": "IMAGE", "shape": [2, 1], "datatype": "BYTES", "data": [["é"], ["xyz"]]})
    (raw,) = parsed(request_from_body("ensemble", sent, None, "")).raw_input_contents
    assert bytes_from_raw(raw) == ["é".encode(), b"xyz"]


@pytest.mark.parametrize(
    ("data", "shape", "fault"),
    [
        ([256], [1], "expected whole numbers from 0 to 255"),
        ([-1], [1], "expected whole numbers"),
        ([1.5], [1], "expected whole numbers"),
        ([float("nan")], [1], "NaN is not a JSON number"),
        ([float("-inf")], [1], "-Infinity is not a JSON number"),
        ([1e300], [1], "expected whole numbers"),
        ([10**400], [1], "the data are not UINT8: int too large"),
        (["12"], [1], "the data are not UINT8: expected numbers"),
        ([True], [1], "the data are not UINT8: expected numbers"),
        ([None], [1], "the data are not UINT8: expected numbers"),
        ([1, 2], [3], r"expected 3 bytes for shape \[3\], got 2"),
        ([[1], [2, 3]], [3], "the data are not UINT8: expected lists of equal length"),
        ([[1], 2], [2], "the data are not UINT8: expected lists of equal length"),
        ([[[[[[[[[1]]]]]]]]], [1], "at most 8 dimensions"),
        ({"a": 1}, [1], "the data are not UINT8: expected a list"),
        (None, [1], "the data are not UINT8: expected a list"),
        (1, [1], "the data are not UINT8: expected a list"),
    ],
)
def test_invalid_pixels_are_refused(data: Any, shape: list[int], fault: str) -> None:
    sent, _ = body({"name": "OTHER", "shape": shape, "datatype": "UINT8", "data": data})
    with pytest.raises(RefusalError, match=fault):
        request_from_body("ensemble_pixels", sent, None, "")


def test_timeout_must_be_a_whole_number() -> None:
    one = {"name": "OTHER", "shape": [1], "datatype": "UINT8", "data": [1]}
    for timeout, seconds in ((1, 1e-6), (10**400, 365 * 86400.0), (None, None)):
        sent, _ = body(one, parameters={"timeout": timeout})
        assert request_from_body("ensemble", sent, None, "").timeout_s == seconds
    for wrong in (0, -1, True, 0.5, "1", [1], {"a": 1}):
        sent, _ = body(one, parameters={"timeout": wrong})
        with pytest.raises(RefusalError, match="the parameter timeout: expected microseconds above 0, got"):
            request_from_body("ensemble", sent, None, "")


@pytest.mark.parametrize("wrong", [1, "true", None, []])
def test_binary_flags_must_be_booleans(wrong: Any) -> None:
    one = {"name": "OTHER", "shape": [1], "datatype": "UINT8", "data": [1]}
    for rest in (
        {"parameters": {"binary_data_output": wrong}},
        {"outputs": [{"name": "LABEL", "parameters": {"binary_data": wrong}}]},
    ):
        sent, _ = body(one, **rest)
        with pytest.raises(RefusalError, match="expected true or false, got"):
            request_from_body("ensemble", sent, None, "")


def test_long_json_is_refused() -> None:
    with pytest.raises(RefusalError, match="Send tensors as binary data") as refused:
        request_from_body("ensemble", b" " * (MAX_JSON_BYTES + 1), None, "")
    assert refused.value.status == 413


@given(st.binary(max_size=300), st.none() | st.text(max_size=8) | st.integers(-5, 400).map(str))
def test_random_bytes_are_refused(sent: bytes, size: str | None) -> None:
    with pytest.raises(RefusalError):
        request_from_body("ensemble", sent, size, "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {"name": st.text(max_size=5), "shape": st.lists(st.integers(-1, 2**40), max_size=9) | JSON},
        optional={"datatype": st.sampled_from(["UINT8", "BYTES", "FP32"]) | JSON, "parameters": JSON, "data": JSON},
    ),
    JSON,
    st.binary(max_size=20),
)
def test_random_json_is_accepted_or_refused(tensor: dict[str, Any], parameters: Any, behind: bytes) -> None:
    sent, size = body(tensor, behind=behind, parameters=parameters)
    refusals, requests = [], []
    try:
        requests.append(parsed(request_from_body("ensemble", sent, size, "")))
    except RefusalError as refusal:
        refusals.append(refusal)
    assert len(refusals) + len(requests) == 1
    assert all(refusal.status == 400 and "\n" not in refusal.text for refusal in refusals)


def test_outputs_are_text_or_bytes_as_requested() -> None:
    response = pb.ModelInferResponse(model_name="ensemble", model_version="1")
    for name, datatype, raw in (
        ("LABEL", "BYTES", struct.pack("<I", 2) + b"CE"),
        ("REVIEW", "BOOL", b"\x01"),
        ("ENTROPY", "FP32", struct.pack("<f", 0.5)),
    ):
        response.outputs.add(name=name, datatype=datatype, shape=[1, 1])
        response.raw_output_contents.append(raw)
    one = {"name": "OTHER", "shape": [1], "datatype": "UINT8", "data": [1]}
    sent, _ = body(one, outputs=[{"name": "ENTROPY", "parameters": {"binary_data": True}}, {"name": "LABEL"}])
    inference = request_from_body("ensemble", sent, None, "")
    assert [wanted.name for wanted in parsed(inference).outputs] == ["ENTROPY", "LABEL"]
    answer, size = body_from_response(response, inference)
    assert size is not None
    assert answer[size:] == struct.pack("<f", 0.5)
    described = {output["name"]: output for output in json.loads(answer[:size])["outputs"]}
    assert described["LABEL"]["data"] == ["CE"]
    assert described["REVIEW"]["data"] == [True]
    assert described["ENTROPY"]["parameters"] == {"binary_data_size": 4}


@given(st.binary(max_size=40))
def test_elements_of_bytes_are_complete(raw: bytes) -> None:
    try:
        parts = bytes_from_raw(raw)
    except ValueError:
        return
    assert b"".join(struct.pack("<I", len(part)) + part for part in parts) == raw


def image_of(name: str) -> dict[str, Any]:
    return {"name": name, "shape": [2, 1], "datatype": "BYTES", "data": ["a", "b"]}


def test_patients_are_forwarded_as_the_voter_reads_them() -> None:
    stated = json.dumps(["Änn", None])
    sent, _ = body(image_of("IMAGE"), parameters={"patients": stated, "priority": 3})
    parameters = parsed(request_from_body("ensemble", sent, None, "")).parameters
    assert [*parameters] == ["patients"]
    assert json.loads(parameters["patients"].string_param) == ["Änn", None]
    built = image_request([memoryview(b"a"), memoryview(b"b")], "", ["Änn", ""])
    assert pb.ModelInferRequest.FromString(built.wire).parameters["patients"] == parameters["patients"]
    assert not pb.ModelInferRequest.FromString(image_request([memoryview(b"a")], "", [""]).wire).parameters


@pytest.mark.parametrize(
    ("patients", "fault"),
    [
        (["ann", "bob"], "expected the text of a JSON list of texts or null, got a list"),
        ("ann", "expected the text of a JSON list"),
        (json.dumps([1, 2]), "expected the text of a JSON list"),
        (json.dumps({"a": "ann"}), "expected the text of a JSON list"),
        ("[" * 100_000, "expected the text of a JSON list"),
        (json.dumps(["ann"]), "expected 2, one per image, got 1"),
    ],
)
def test_invalid_patients_are_refused(patients: Any, fault: str) -> None:
    sent, _ = body(image_of("IMAGE"), parameters={"patients": patients})
    with pytest.raises(RefusalError, match=f"the parameter patients: {fault}"):
        request_from_body("ensemble", sent, None, "")


def form_of(files: int, patients: list[bytes]) -> tuple[str, bytearray]:
    parts = [b'name="patient"\r\n\r\n' + one for one in patients]
    parts += [b'name="files"; filename="%d.png"\r\n\r\nx' % number for number in range(files)]
    lines = [b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts]
    return "multipart/form-data; boundary=b", bytearray(b"".join(lines) + b"--b--\r\n")


@pytest.mark.parametrize(
    ("files", "fields", "header", "patients"),
    [
        (3, [], "", ["", "", ""]),
        (3, ["Änn"], "", ["Änn"] * 3),
        (20, [str(number) for number in range(20)], "", [str(number) for number in range(20)]),
        (2, [], "%C3%84nn", ["Änn"] * 2),
        (2, ["ann", ""], "bob", ["ann", "bob"]),
    ],
)
def test_forms_name_patients(files: int, fields: list[str], header: str, patients: list[str]) -> None:
    kind, form = form_of(files, [one.encode() for one in fields])
    uploads = uploads_from_body(Headers({"content-type": kind, "x-patient": header}), form, 32)
    assert [one.patient for one in uploads] == patients


def test_an_image_alone_has_its_patient_in_a_header() -> None:
    (upload,) = uploads_from_body(Headers({"content-type": "image/png", "x-patient": "ann"}), bytearray(b"x"), 32)
    assert (upload.patient, bytes(upload.data)) == ("ann", b"x")


@pytest.mark.parametrize(
    ("files", "fields", "fault"),
    [
        (3, [b"ann", b"bob"], "patient: expected 1 field for all files or 3, got 2"),
        (1, [b"\xff"], "patient: expected UTF-8"),
        (1, [b"a" * 5000], "form fields: expected at most"),
    ],
)
def test_forms_with_other_patients_are_refused(files: int, fields: list[bytes], fault: str) -> None:
    kind, form = form_of(files, fields)
    with pytest.raises(RefusalError, match=fault):
        uploads_from_body(Headers({"content-type": kind}), form, 32)
