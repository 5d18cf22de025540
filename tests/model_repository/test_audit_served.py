"""Draws for audit as a server makes them: the same in every way of asking."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tritonclient.grpc
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from plurum.client import EnsembleClient, Prediction
from plurum.export import repository_from_onnx
from plurum.serving import Server, ServerSettings
from plurum.spec import Ensemble

SHA = "0" * 64
IMAGE = {"height": 8, "width": 8, "mean": [0.5] * 3, "std": [0.2] * 3}
SCORES = {"images": 9, "accuracy": 0.5, "nll": 0.7}
IMAGES = 32

pytestmark = pytest.mark.triton


def write_graph(path: Path, seed: int) -> None:
    """Write a member that is a linear function of the mean colour."""
    weights = np.random.default_rng(seed).normal(size=(3, 2)).astype(np.float32) / 64
    nodes = [
        helper.make_node("Cast", ["PIXELS"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["LOGITS"]),
    ]
    graph = helper.make_graph(
        nodes,
        "member",
        [helper.make_tensor_value_info("PIXELS", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("LOGITS", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def ensemble(audit_rate: float | None) -> Ensemble:
    about = {"arch": "linear", "sha256": SHA, "classes": ["CE", "LAA"], "image": IMAGE, "parameters": 6}
    return Ensemble.model_validate(
        {
            "version": 1 if audit_rate is None else 2,
            "name": "audited",
            "classes": ["CE", "LAA"],
            "image": IMAGE,
            "members": [{"name": name, **about} for name in ("one", "two")],
            "voting": {"weights": [0.5, 0.5]},
            "data": {"data": "none", "fingerprint": SHA, "images": {"train": 1, "validation": 1, "test": 1}},
            "scores": {},
            "audit_rate": audit_rate,
        }
    )


def repository(folder: Path, audit_rate: float | None, *, fused: bool) -> Path:
    graphs = {name: folder / f"{name}.onnx" for name in ("one", "two")}
    for seed, path in enumerate(graphs.values()):
        write_graph(path, seed)
    repository_from_onnx(ensemble(audit_rate), graphs, folder / "repository", 8, fused=fused)
    return folder / "repository"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("audited"), 0.5, fused=True)


@pytest.fixture(scope="module")
def server(exported: Path) -> Iterator[Server]:
    with Server(exported, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)


def png(image: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def drawn_with(server: Server, pixels: npt.NDArray[np.uint8], patients: list[str | None], model: str) -> list[bool]:
    tensor = tritonclient.grpc.InferInput("PIXELS", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    with tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client:
        answer = client.infer(model, [tensor], parameters={"patients": json.dumps(patients)})
    return [bool(one) for one in answer.as_numpy("AUDIT")[:, 0]]


def test_every_way_draws_the_same(server: Server, pixels: npt.NDArray[np.uint8]) -> None:
    found: list[list[Any]] = []
    ways = [("ensemble", "grpc"), ("ensemble_pixels", "grpc"), ("ensemble_fused", "grpc"), ("ensemble", "http")]
    for model, protocol in ways:
        url = server.urls.grpc if protocol == "grpc" else server.urls.http
        images: list[Any] = [png(one) for one in pixels] if model == "ensemble" else list(pixels)
        with EnsembleClient(url, protocol, model=model) as client:  # type: ignore[arg-type]
            assert client.served.audit_rate == 0.5
            answers = client.predict(images)
            assert all(isinstance(one, Prediction) for one in answers)
            found.append([one.audit for one in answers if isinstance(one, Prediction)])
    assert all(one == found[0] for one in found)
    assert set(found[0]) == {True, False}


@pytest.mark.parametrize("model", ["ensemble_pixels", "ensemble_fused"])
def test_images_of_a_named_patient_are_drawn_together(
    server: Server, pixels: npt.NDArray[np.uint8], model: str
) -> None:
    of_patients = {}
    for name in map(str, range(12)):
        drawn = {
            *drawn_with(server, pixels[:3], [name] * 3, model),
            *drawn_with(server, pixels[3:5], [name] * 2, model),
        }
        assert len(drawn) == 1
        of_patients[name] = drawn.pop()
    assert set(of_patients.values()) == {True, False}
    by_image = drawn_with(server, pixels[:8], [], model)
    assert drawn_with(server, pixels[:8], [None] * 8, model) == by_image


def test_the_key_is_where_no_client_sees_it(exported: Path) -> None:
    voter, labels = (json.loads((exported / model / "1" / "audit.json").read_text()) for model in ("voter", "labels"))
    assert voter == labels
    assert voter["rate"] == 0.5
    for path in (exported / "ensemble.json", *exported.glob("*/config.pbtxt")):
        assert voter["key"] not in path.read_text()


def test_a_repository_without_a_rate_serves_as_before(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    plain = repository(tmp_path, None, fused=False)
    assert "AUDIT" not in (plain / "ensemble" / "config.pbtxt").read_text()
    assert not list(plain.rglob("audit.json"))
    with (
        Server(plain, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server,
        EnsembleClient(server.urls.grpc) as client,
    ):
        assert client.served.audit_rate is None
        (answer,) = client.predict([pixels[0]])
        assert isinstance(answer, Prediction)
        assert answer.audit is None
