"""KServe requests broken at random: each is refused in a line, or becomes a message that holds what it says."""

from __future__ import annotations

import json
import math
import random
import struct
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from plurum.serving.gateway.messages.kserve import InferenceRequest, request_from_body
from plurum.serving.gateway.messages.tensors import check_tensor
from tests.fuzz.mutations import broken_bytes, draws, json_bytes, odd_json, outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

_PNG = b"\x89PNG\r\n\x1a\n" + bytes(30)
_BYTES = struct.pack("<I", len(_PNG)) + _PNG
_OUTPUTS = [{"name": "LABEL", "parameters": {"binary_data": True}}, {"name": "PROBABILITIES"}]
# Valid requests: JSON, and what stands behind it.
_CORPUS: list[tuple[dict[str, Any], bytes]] = [
    (
        {"inputs": [{"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 42}}]},
        _BYTES,
    ),
    (
        {
            "id": "mine",
            "parameters": {"timeout": 1000, "binary_data_output": True},
            "inputs": [{"name": "IMAGE", "shape": [2, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 84}}],
            "outputs": _OUTPUTS,
        },
        _BYTES * 2,
    ),
    (
        {"inputs": [{"name": "IMAGE", "shape": [2, 1], "datatype": "BYTES", "data": ["ab", "é"]}], "outputs": _OUTPUTS},
        b"",
    ),
    (
        {
            "inputs": [
                {"name": "PIXELS", "shape": [1, 1, 2, 3], "datatype": "UINT8", "data": [[[[0, 1, 2], [3, 4, 255]]]]}
            ]
        },
        b"",
    ),
    (
        {
            "inputs": [
                {"name": "PIXELS", "shape": [1, 2, 2, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 12}}
            ]
        },
        bytes(12),
    ),
]


def _input(draw: random.Random) -> tuple[bytes, str | None]:
    document, behind = draw.choice(_CORPUS)
    text = json_bytes(draw, odd_json(draw, document))
    if draw.random() < 0.3:
        text = broken_bytes(draw, text, 2)
    size: str | None = str(len(text)) if behind or draw.random() < 0.3 else None
    if draw.random() < 0.1:
        size = draw.choice((None, "", "0", "-1", "1e3", "\xb2", "9" * 30, str(len(text) + draw.randint(-5, 5)), " 5"))
    return text + (broken_bytes(draw, behind, 2) if draw.random() < 0.3 else behind), size


def _check(inference: InferenceRequest) -> None:
    request = pb.ModelInferRequest.FromString(inference.request.wire)
    assert len(request.inputs) == len(request.raw_input_contents) > 0
    for given, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        assert all(size >= 1 for size in given.shape)
        assert given.name.isascii()
        assert given.name.isprintable()
        check_tensor(given.name, given.datatype, list(given.shape), memoryview(raw))
        if given.datatype == "UINT8":
            assert len(raw) == math.prod(given.shape)
    assert not request.parameters
    assert inference.timeout_s is None or 0 < inference.timeout_s < 1e8
    json.dumps({"id": inference.id})


def test_kserve_requests_broken_at_random() -> None:
    taken = refused = 0
    for draw in draws("KServe"):
        body, size = _input(draw)
        inference = outcome(lambda: request_from_body("ensemble", body, size, "ours"), (size, body))  # noqa: B023
        if inference is None:
            refused += 1
        else:
            _check(inference)
            taken += 1
    # Both happen, or nothing is tested.
    assert min(taken, refused) > 20
