"""Draws for audit as a server makes them: the same in every way of asking."""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from plurum.client import AsyncEnsembleClient, EnsembleClient, Prediction, frame_with_predictions
from plurum.client.connection.addresses import WireProtocol
from plurum.client.ui import ReviewStore
from plurum.serving import Server, ServerSettings
from plurum.serving.triton.settings import ReleaseTrial
from tests.cli.command_line import CommandLine
from tests.client.ui.browser import page_at
from tests.model_repository.linear_repository import linear_repository
from tests.serving.gateway.gateways import Gateway, form, gateway, wait_until_ready
from tests.serving.voter_counts import wait_for_counts

IMAGES = 32
# Two images of each, and some of nobody.
PATIENTS = [f"Änn {number // 2}" if number < 22 else None for number in range(IMAGES)]

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear_repository(tmp_path_factory.mktemp("audited"), 0.5, fused=True)


@pytest.fixture(scope="module")
def server(exported: Path) -> Iterator[Server]:
    with Server(exported, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


@pytest.fixture(scope="module")
def served_gateway(server: Server) -> Iterator[Gateway]:
    with gateway(server.urls.grpc) as one:
        wait_until_ready(one)
        yield one


@pytest.fixture(scope="module")
def files(pixels: npt.NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{number:02d}.png" for number in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)


def recorded_parameters(client: EnsembleClient) -> list[Any]:
    """Record the parameters of the client's further requests in the list that is returned."""
    (transport,) = client._requester.transports
    sent: list[Any] = []

    def infer(*given: Any, original: Callable[..., Any] = transport.infer, **named: Any) -> Any:
        sent.append(named["parameters"])
        return original(*given, **named)

    transport.infer = infer  # type: ignore[method-assign]
    return sent


def audits(answers: list[Prediction]) -> list[bool | None]:
    return [answer.audit for answer in answers]


Draws = Callable[[list[str | None] | None], list[bool | None]]


@pytest.fixture(scope="module")
def ways(server: Server, served_gateway: Gateway, pixels: npt.NDArray[np.uint8], files: list[Path]) -> dict[str, Draws]:
    """Functions that return the draw of each image for a list of patients, by the way to the server."""

    def through(model: str | None, protocol: WireProtocol, url: str | None = None) -> Draws:
        url = url or (server.urls.grpc if protocol == "grpc" else server.urls.http)

        def draw(patients: list[str | None] | None) -> list[bool | None]:
            images: list[Any] = list(pixels) if model in {"ensemble_pixels", "ensemble_fused"} else list(files)
            with EnsembleClient(url, protocol, model=model) as client:
                assert (client.served.has_audit, client.served.audit_rate) == (True, 0.5)
                return audits(client.predict(images, patients=patients, batch_size=5))

        return draw

    def asynchronous(patients: list[str | None] | None) -> list[bool | None]:
        async def draw() -> list[bool | None]:
            async with AsyncEnsembleClient(server.urls.grpc) as client:
                return audits(await client.predict(list(files), patients=patients))

        return asyncio.run(draw())

    def form_of_gateway(patients: list[str | None] | None) -> list[bool | None]:
        head = b'--b\r\nContent-Disposition: form-data; name="patient"\r\n\r\n%s\r\n'
        fields = b"".join(head % (one or "").encode() for one in patients or ())
        body, kind = form(*(("files", file.name, file.read_bytes()) for file in files))
        reply = served_gateway.send("POST", "/predict", fields + body, content_type=kind)
        assert reply.status == 200, reply.body
        return [one["audit"] for one in reply.json]

    def images_alone(patients: list[str | None] | None) -> list[bool | None]:
        names = patients or [None] * len(files)
        headers = [{"x_patient": quote(name)} if name else {} for name in names]
        return [
            served_gateway.predict(file.read_bytes(), **more).json["audit"]
            for file, more in zip(files, headers, strict=True)
        ]

    def table(patients: list[str | None] | None) -> list[bool | None]:
        frame = pd.DataFrame({"path": files, "who": patients or [None] * len(files)})
        with EnsembleClient(server.urls.grpc) as client:
            return list(frame_with_predictions(client, frame, patient="who")["audit"])

    return {
        "gRPC": through(None, "grpc"),
        "HTTP": through(None, "http"),
        "pixels": through("ensemble_pixels", "grpc"),
        "fused": through("ensemble_fused", "grpc"),
        "fused over HTTP": through("ensemble_fused", "http"),
        "asynchronous": asynchronous,
        "gateway": through(None, "http", served_gateway.http),
        "form": form_of_gateway,
        "header": images_alone,
        "pandas": table,
    }


def test_every_way_draws_the_same_images(ways: dict[str, Draws]) -> None:
    found = {name: draw(None) for name, draw in ways.items()}
    assert set(found["gRPC"]) == {True, False}
    assert {name: one for name, one in found.items() if one != found["gRPC"]} == {}


def test_every_way_draws_the_same_patients(ways: dict[str, Draws]) -> None:
    found = {name: draw(PATIENTS) for name, draw in ways.items()}
    assert {name: one for name, one in found.items() if one != found["gRPC"]} == {}
    by_patient: dict[str, set[bool | None]] = {}
    for patient, drawn in zip(PATIENTS, found["gRPC"], strict=True):
        by_patient.setdefault(patient or "", set()).add(drawn)
    unknown = by_patient.pop("")
    assert all(len(drawn) == 1 for drawn in by_patient.values())
    assert set.union(*by_patient.values()) == {True, False} == unknown
    # An image of an unknown patient is drawn by itself.
    by_image = ways["gRPC"](None)
    assert by_image != found["gRPC"]
    assert all(by_image[at] == found["gRPC"][at] for at, name in enumerate(PATIENTS) if name is None)


def test_plurum_predict_draws_the_patients_of_its_manifest(
    server: Server, ways: dict[str, Draws], files: list[Path], tmp_path: Path, plurum: CommandLine
) -> None:
    manifest, out = tmp_path / "manifest.csv", tmp_path / "answers.csv"
    rows = [f"{file},{patient or ''}" for file, patient in zip(files, PATIENTS, strict=True)]
    manifest.write_text("\n".join(["path,patient", *rows]))
    code, printed, _ = plurum.ended("predict", manifest, "--url", server.urls.grpc, "--out", out)
    assert code == 0
    with out.open(newline="") as file:
        drawn = [row["audit"] for row in csv.DictReader(file)]
    assert drawn == ["true" if one else "false" for one in ways["gRPC"](PATIENTS)]
    lines = printed.splitlines()
    assert sum(line.rstrip().endswith("audit") for line in lines) == drawn.count("true")
    _, printed, _ = plurum.ended("predict", manifest, "--url", server.urls.grpc, "--review-only", "--json")
    assert len(printed.splitlines()) == drawn.count("true")


def test_the_page_sends_audits_to_review(
    server: Server, ways: dict[str, Draws], files: list[Path], tmp_path: Path
) -> None:
    drawn = ways["gRPC"](None)
    with page_at("--url", server.urls.grpc, "--store", tmp_path / "reviews") as page:
        for file, audit in zip(files, drawn, strict=True):
            request = urllib.request.Request(f"{page}/answers", file.read_bytes(), {"x-file-name": file.name})
            html = urllib.request.urlopen(request).read().decode()
            assert ('<p class="badge ask">Audit</p>' in html) == audit
            assert ("No review needed" in html) != audit
        items = ReviewStore(tmp_path / "reviews").items()
        review = urllib.request.urlopen(f"{page}/review/{items[0].sha256}").read().decode()
    assert [one.name for one in items] == [file.name for file, audit in zip(files, drawn, strict=True) if audit]
    assert {(one.is_audit, one.sampling_probability) for one in items} == {(True, 0.5)}
    assert "<b>Audit:</b>" in review


def test_audits_are_counted(server: Server, ways: dict[str, Draws]) -> None:
    def counts() -> float:
        samples = wait_for_counts(server.urls.metrics)
        return sum(value for name, value in samples.items() if name.startswith("plurum_audits_total"))

    for way in ("gRPC", "fused"):
        before = counts()
        drawn = ways[way](PATIENTS)
        assert counts() - before == sum(map(bool, drawn))


def test_the_key_is_where_no_client_sees_it(exported: Path) -> None:
    files = [exported / model / "1" / "audit.json" for model in ("voter", "labels")]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    voter, labels = (json.loads(file.read_text()) for file in files)
    assert voter == labels
    assert voter["rate"] == 0.5
    for path in (exported / "ensemble.json", *exported.glob("*/config.pbtxt")):
        assert voter["key"] not in path.read_text()


def test_a_repository_without_a_rate_serves_as_before(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    plain = linear_repository(tmp_path, None, fused=False)
    assert "AUDIT" not in (plain / "ensemble" / "config.pbtxt").read_text()
    assert not list(plain.rglob("audit.json"))
    with (
        Server(plain, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server,
        EnsembleClient(server.urls.grpc) as client,
    ):
        assert (client.served.has_audit, client.served.audit_rate) == (False, None)
        sent = recorded_parameters(client)
        (answer,) = client.predict([pixels[0]], patients=["ann"])
        assert answer.audit is None
        # Names of patients stay where they are.
        assert sent == [{}]


def test_patients_are_sent_as_documented(server: Server, pixels: npt.NDArray[np.uint8]) -> None:
    with EnsembleClient(server.urls.grpc) as client:
        assert client.served.has_audit
        sent = recorded_parameters(client)
        client.predict(list(pixels[:3]), patients=["ann", None, ""])
        client.predict(list(pixels[:3]))
    assert sent == [{"patients": '["ann", null, null]'}, {}]


def test_clients_last_through_releases_with_and_without_audits(
    tmp_path: Path, exported: Path, files: list[Path]
) -> None:
    plain = linear_repository(tmp_path, None, fused=False)
    with (
        Server(plain, ServerSettings(http_port=0, grpc_port=0, metrics_port=0), "aaaa0001") as server,
        EnsembleClient(server.urls.grpc) as client,
    ):

        def drawn() -> list[bool | None]:
            return audits(client.predict(files, patients=PATIENTS))

        assert set(drawn()) == {None}
        assert not client.served.has_audit
        # Twice the same export, whose key is the same.
        for tag in ("aaaa0002", "aaaa0003"):
            server.models.add_release(exported, tag, 30)
        # While one of two releases draws, nothing is drawn.
        server.models.put_on_trial(ReleaseTrial(release="aaaa0002", percent=50), "aaaa0001", 30)
        assert set(drawn()) == {None}
        server.models.publish("aaaa0002", 30)
        # The client still has the description of the first release: it sends no patients, once.
        assert set(drawn()) == {True, False}
        of_patients = drawn()
        assert client.served.audit_rate == 0.5
        assert all(of_patients[at] == of_patients[at + 1] for at in range(0, 22, 2))
        server.models.put_on_trial(ReleaseTrial(release="aaaa0003", percent=50), "aaaa0002", 30)
        assert drawn() == of_patients
        server.models.publish("aaaa0001", 30)
        assert set(drawn()) == {None}


def test_openvino_draws_the_same(
    exported: Path, ways: dict[str, Draws], pixels: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    """OpenVINO's backend draws beside the fused graph, where ONNX Runtime's leaves it to the labels model."""
    other = shutil.copytree(exported, tmp_path / "repository")
    config = other / "fused" / "config.pbtxt"
    config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "openvino"'))
    assert config.read_text() != (exported / "fused" / "config.pbtxt").read_text()
    with (
        Server(other, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server,
        EnsembleClient(server.urls.grpc, model="ensemble_fused") as client,
    ):
        for patients in (PATIENTS, None):
            assert audits(client.predict(list(pixels), patients=patients)) == ways["fused"](patients)
