"""Decision, review and audit of a repository: every way of asking gives the same, and states the operating point."""

from __future__ import annotations

import csv
import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from plurum.client import EnsembleClient, Prediction, patients_from_answers
from plurum.client.bulk.report import decision_lines
from plurum.client.connection.predictions import Served
from plurum.export import PixelModel, int8_from_onnx, onnx_from_model, repository_from_onnx
from plurum.export.graphs.runtimes import Artefact, outputs_from_artefact
from plurum.model_repository.voter.audit import draw_from_folder
from plurum.models import model_from_checkpoint
from plurum.predictions.arrays import Ints
from plurum.predictions.prediction import verdict_from_predictions
from plurum.run import Run
from plurum.score import Scorer
from plurum.serving import Server
from plurum.spec import Ensemble, read_ensemble
from plurum.training import FitSettings, fit_report
from plurum.training.inference.predictions import predict_members
from plurum.voting import Verdict, decide, decide_groups, softmax
from tests.cli.command_line import CommandLine
from tests.client.ui.browser import DESKTOP, NEEDS_BROWSER, Tab, browser, page_at
from tests.sample_runs.decided_run import build_decided_run
from tests.serving.gateway.gateways import Gateway, form, gateway, wait_until_ready
from tests.serving.servers import FREE
from tests.serving.voter_counts import wait_for_counts

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.timeout(900)]
Pixels = npt.NDArray[np.uint8]

IMAGES, BATCH, AUDIT_RATE = 24, 8, 0.4
FIT: dict[str, Any] = {"select": "all", "draws": 100, "audit_rate": AUDIT_RATE, "no_outliers": True}
MODELS = ("ensemble", "ensemble_pixels", "ensemble_fused")
CASES = ("point fp32", "point int8", "costs fp32", "costs int8")


class Said(NamedTuple):
    """The part of a prediction that a client acts on."""

    label: str
    review: bool
    audit: bool | None


@dataclass(frozen=True)
class Case:
    """A repository, and the verdict on some images by its own graphs, computed without a server.

    Attributes:
        run: Run that was exported.
        rows: Indices of the images in the run.
        repository: Folder of the repository.
        ensemble: Its metadata.
        pixels: Images, uint8 `[images, height, width, 3]`; every two are of one patient.
        files: The same images as PNG.
        verdict: Verdict on them.
        expected: Decision, review and audit of each.
    """

    run: Run
    rows: Ints
    repository: Path
    ensemble: Ensemble
    pixels: Pixels
    files: list[Path]
    verdict: Verdict
    expected: list[Said]


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Path]]:
    """Run with an operating point that decides otherwise than the most probable class, and its graphs by member."""
    folder = tmp_path_factory.mktemp("two")
    run = build_decided_run(folder / "run", certification=600)
    ensemble = fit_report(run.path, FitSettings(positive="CE", sensitivity=0.9, risk=0.15, **FIT)).ensemble
    graphs = {member.name: folder / f"{member.name}.onnx" for member in ensemble.members}
    for member in ensemble.members:
        model = PixelModel(model_from_checkpoint(member, run.checkpoint(member)), member.image)
        onnx_from_model(model, graphs[member.name])
    return run, graphs


@pytest.fixture(scope="module")
def costs(run: Run, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Path]]:
    """The shared run, with costs from which some decisions and reviews follow, and its graphs by member."""
    copy = Run(shutil.copytree(run.path, tmp_path_factory.mktemp("ten") / "run"))
    file = copy.path / "costs.csv"
    rows = [
        f"{true},{decided},{1000 if place < 5 else 1}"
        for place, true in enumerate(run.data().classes)
        for decided in run.data().classes
        if true != decided
    ]
    file.write_text("\n".join(["true,decided,cost", *rows, ",review,1", ""]))
    return copy, graphs_of(repository, fit_report(copy.path, FitSettings(costs=str(file), **FIT)).ensemble)


def graphs_of(repository: Path, ensemble: Ensemble) -> dict[str, Path]:
    return {member.name: repository / member.name / "1" / "model.onnx" for member in ensemble.members}


def int8_of(graphs: dict[str, Path], run: Run, folder: Path) -> dict[str, Path]:
    """Return the graphs in INT8, but for the member that would then give the same logits for every image."""
    learnt = np.array(run.pixels()[run.table().rows("train")[:32]])
    rounded = {name: folder / f"{name}.int8.onnx" for name in graphs if name != "test_byobnet"}
    for name, path in rounded.items():
        int8_from_onnx(graphs[name], learnt, path)
    return {**graphs, **rounded}


def logits_of(graphs: dict[str, Path], pixels: Pixels) -> npt.NDArray[np.float32]:
    """Return the logits of the members, `[images, members, classes]`, as this process computes them."""
    artefacts = (Artefact(name, "fp32", "onnxruntime", path) for name, path in graphs.items())
    return np.stack([outputs_from_artefact(one, pixels).logits for one in artefacts], axis=1)


def verdict_of(repository: Path, ensemble: Ensemble, pixels: Pixels) -> Verdict:
    return decide(softmax(logits_of(graphs_of(repository, ensemble), pixels)), ensemble.rule)


def choose(verdict: Verdict) -> Ints:
    """Return places of images, two of each patient: in turn of those with a changed decision, and of each class."""
    changed = (verdict.label != verdict.probabilities.argmax(axis=1)).reshape(-1, 2).any(axis=1)
    kinds = np.where(changed, -1, verdict.label[::2])
    turns = [(kinds[:place] == kind).sum() for place, kind in enumerate(kinds)]
    patients = np.argsort(turns, kind="stable")[: IMAGES // 2]
    return np.asarray((patients[:, None] * 2 + np.arange(2)).ravel())


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Export the run of the case in its precision, with the fused graph, and compute the expected predictions."""
    kind, precision = request.param.split()
    run, graphs = request.getfixturevalue(kind)
    folder = tmp_path_factory.mktemp("case")
    ensemble, repository = run.ensemble(), folder / "repository"
    served = int8_of(graphs, run, folder) if precision == "int8" else graphs
    repository_from_onnx(ensemble, served, repository, BATCH, form="chain", fused=True)
    ensemble = read_ensemble(repository / "ensemble.json")
    test = run.table().rows("test")
    rows = test[choose(verdict_of(repository, ensemble, np.array(run.pixels()[test])))]
    pixels = np.array(run.pixels()[rows])
    verdict = verdict_of(repository, ensemble, pixels)
    draw = draw_from_folder(repository / "voter" / "1")
    assert draw is not None
    audits = draw.draw(pixels, [])[:, 0]
    parts = zip(verdict.label, verdict.review.tolist(), audits.tolist(), strict=True)
    expected = [Said(ensemble.classes[label], review, audit) for label, review, audit in parts]
    # Each part of a prediction is worth comparing, and INT8 is not FP32.
    assert (verdict.label != verdict.probabilities.argmax(axis=1)).any()
    assert len({one.label for one in expected}) > 1
    unrounded, computed = (logits_of(paths, pixels) for paths in (graphs, served))
    assert np.array_equal(unrounded, computed) == (precision == "fp32")
    assert {one.review for one in expected} == {one.audit for one in expected} == {True, False}
    files = [folder / f"{place:02}.png" for place in range(len(pixels))]
    for path, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(path)
    return Case(run, rows, repository, ensemble, pixels, files, verdict, expected)


@pytest.fixture(scope="module")
def server(case: Case) -> Iterator[Server]:
    with Server(case.repository, FREE) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: Server) -> Iterator[Gateway]:
    with gateway(server.urls.grpc) as one:
        wait_until_ready(one)
        yield one


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with page_at("--url", server.urls.grpc, "--store", tmp_path_factory.mktemp("reviews") / "store") as url:
        yield url


unrounded_case = pytest.mark.parametrize("case", [CASES[0], CASES[2]], indirect=True, scope="module")
every_case = pytest.mark.parametrize("case", CASES, indirect=True, scope="module")


def said(predictions: list[Prediction]) -> list[Said]:
    return [Said(one.label, one.review, one.audit) for one in predictions]


def said_in_json(objects: list[dict[str, Any]]) -> list[Said]:
    return [Said(one["label"], one["review"], one["audit"]) for one in objects]


def check_numbers(predictions: list[Prediction], case: Case) -> None:
    found = verdict_from_predictions(predictions, case.ensemble.classes)
    np.testing.assert_array_equal(found.prediction_set, case.verdict.prediction_set)
    np.testing.assert_allclose(found.probabilities, case.verdict.probabilities, atol=1e-3)
    assert [one.confidence for one in predictions] == [one.probabilities[one.label] for one in predictions]


def check_description(served: Served, ensemble: Ensemble) -> None:
    assert served.point == ensemble.rule.point
    stated = (served.operating_point, served.promise, served.audit_rate, served.patient_rule)
    assert stated == (ensemble.operating_point, ensemble.promise, AUDIT_RATE, ensemble.patient_rule)


@unrounded_case
def test_the_graphs_decide_as_pytorch(case: Case) -> None:
    test = case.run.table().rows("test")
    members = predict_members(case.run, case.ensemble.members, ("test",))["test"][np.searchsorted(test, case.rows)]
    verdict = decide(members, case.ensemble.rule)
    np.testing.assert_array_equal(verdict.label, case.verdict.label)
    np.testing.assert_array_equal(verdict.review, case.verdict.review)


@every_case
@pytest.mark.parametrize("model", MODELS)
def test_the_client_gets_the_decision(case: Case, server: Server, model: str) -> None:
    """Over gRPC and HTTP, from the chain and from the fused graph."""
    images: list[Any] = list(case.files) if model == "ensemble" else list(case.pixels)
    for url, protocol in ((server.urls.grpc, "grpc"), (server.urls.http, "http")):
        with EnsembleClient(url, protocol, model=model) as client:  # type: ignore[arg-type]
            check_description(client.served, case.ensemble)
            found = client.predict(images, batch_size=5)
        assert said(found) == case.expected, protocol
        check_numbers(found, case)


def infer_in_json(proxy: Gateway, model: str, pixels: Pixels) -> list[Said]:
    """Return the predictions for pixels that a JSON list states, as any client of KServe v2 sends them."""
    tensor = {"name": "PIXELS", "datatype": "UINT8", "shape": pixels.shape, "data": pixels.ravel().tolist()}
    reply = proxy.send("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode())
    assert reply.status == 200, reply.body
    data = {output["name"]: output["data"] for output in reply.json["outputs"]}
    return [Said(*one) for one in zip(data["LABEL"], data["REVIEW"], data["AUDIT"], strict=True)]


@every_case
def test_the_gateway_gives_the_decision(case: Case, proxy: Gateway) -> None:
    contents = [file.read_bytes() for file in case.files]
    body, kind = form(*(("files", file.name, data) for file, data in zip(case.files, contents, strict=True)))
    with EnsembleClient(proxy.http) as client:
        check_description(client.served, case.ensemble)
        by_client = client.predict(case.files)
    check_numbers(by_client, case)
    found = {
        "client": said(by_client),
        "body": said_in_json([proxy.predict(data).json for data in contents]),
        "form": said_in_json(proxy.send("POST", "/predict", body, content_type=kind).json),
    }
    for model in MODELS[1:]:
        batches = (case.pixels[start : start + BATCH] for start in range(0, IMAGES, BATCH))
        found[model] = [one for batch in batches for one in infer_in_json(proxy, model, batch)]
    assert {name: one for name, one in found.items() if one != case.expected} == {}


@every_case
def test_the_page_shows_the_decision(case: Case, page: str) -> None:
    served = json.loads(urllib.request.urlopen(f"{page}/served").read())
    point = case.ensemble.operating_point
    assert point is not None
    short = "decides by cost" if point.threshold is None else f"decides CE from {point.threshold:.1%}"
    assert served["line"] == f"{len(case.ensemble.classes)} classes, 2 members; {short}"
    assert len(served["decisions"]) == 1 + (case.ensemble.promise is not None)
    found, others = [], 0
    for file in case.files:
        request = urllib.request.Request(f"{page}/answers", file.read_bytes(), {"x-file-name": file.name})
        html = urllib.request.urlopen(request).read().decode()
        (label,) = re.findall(r'<article class="answer" data-label="(\w+)">', html)
        (badge,) = re.findall(r'<p class="badge \w+">([\w ]+)</p>', html)
        found.append((label, badge))
        others += "Decided at the ensemble’s operating point; " in html
    badges = ["Needs review" if one.review else "Audit" if one.audit else "No review needed" for one in case.expected]
    assert found == [(one.label, badge) for one, badge in zip(case.expected, badges, strict=True)]
    assert others == (case.verdict.label != case.verdict.probabilities.argmax(axis=1)).sum()


@every_case
def test_the_file_of_predict_has_the_decision(case: Case, server: Server, plurum: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "answers.csv"
    code, _, err = plurum.ended("predict", *case.files, "--url", server.urls.grpc, "--out", out)
    with EnsembleClient(server.urls.grpc) as client:
        lines = decision_lines(client.served)
    reviewed = sum(one.review for one in case.expected)
    summary = f"{len(case.files)} classified, {reviewed} to review, 0 failed"
    assert (code, err.splitlines()) == (0, [*lines, summary])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(map(str, case.files))
    flags = {"true": True, "false": False}
    assert [Said(row["label"], flags[row["review"]], flags[row["audit"]]) for row in rows] == case.expected
    assert [row["confidence"] for row in rows] == [row[f"p_{row['label']}"] for row in rows]
    inside = [row["prediction_set"].split("|") for row in rows]
    classes = np.array(case.ensemble.classes)
    assert inside == [classes[one].tolist() for one in case.verdict.prediction_set]


@every_case
def test_a_worker_without_a_server_gives_the_decision(case: Case) -> None:
    scorer = Scorer(case.repository)
    check_description(scorer.served, case.ensemble)
    found = [one for one in scorer.answers(list(map(str, case.files))) if isinstance(one, Prediction)]
    scorer.close()
    assert said(found) == case.expected
    check_numbers(found, case)


@unrounded_case
def test_patients_are_decided_at_the_point(case: Case, server: Server) -> None:
    names = [f"patient {place // 2}" for place in range(len(case.files))]
    with EnsembleClient(server.urls.grpc) as client:
        found = client.predict(case.files)
        patients = patients_from_answers(names, found, client.served.classes, "mean", client.served.point)
    pooled = case.verdict.probabilities.reshape(-1, 2, len(case.ensemble.classes)).mean(axis=1)
    decided = decide_groups("mean", pooled, case.ensemble.rule.point)
    assert {one.patient: one.label for one in patients} == {
        name: case.ensemble.classes[label] for name, label in zip(names[::2], decided, strict=True)
    }
    assert (pooled.argmax(axis=1) != decided).any()


@NEEDS_BROWSER
@pytest.mark.parametrize("case", CASES[:1], indirect=True, scope="module")
def test_a_browser_shows_the_sentences(page: str, tmp_path: Path) -> None:
    with browser(tmp_path) as chrome:
        tab = Tab(chrome, page)
        tab.size(*DESKTOP)
        tab.open()
        sentences = tab.until(lambda: tab.text("#decisions"), "sentences").splitlines()
    assert [one.partition(":")[0] for one in sentences] == ["Operating point", "Review risk"]


@pytest.mark.parametrize("case", CASES[:1], indirect=True, scope="module")
def test_sentences_state_the_point_and_the_promise(case: Case, page: str) -> None:
    point, promise = case.ensemble.operating_point, case.ensemble.promise
    assert point is not None
    assert promise is not None
    decided, promised = json.loads(urllib.request.urlopen(f"{page}/served").read())["decisions"]
    assert decided.startswith(f"operating point: CE from a probability of {point.threshold:.4f} on: sensitivity of at ")
    assert promised.startswith("review risk: at most 15.00% of new patients like those tested, with 95% confidence (p")
    assert "; together with a sensitivity of at least 90.00%: " in promised


@pytest.mark.parametrize("case", CASES[:1], indirect=True, scope="module")
def test_metrics_count_the_decisions(case: Case, server: Server) -> None:
    def counts() -> list[float]:
        samples = wait_for_counts(server.urls.metrics)
        names = [
            ("plurum_predictions_total", 'class="CE"'),
            ("plurum_confidence_bucket", 'le="0.5"'),
            ("plurum_reviews_total", ""),
            ("plurum_audits_total", ""),
        ]
        return [
            sum(value for key, value in samples.items() if key.startswith(name) and label in key)
            for name, label in names
        ]

    before = counts()
    with EnsembleClient(server.urls.grpc) as client:
        client.predict(case.files)
    grown = [after - earlier for after, earlier in zip(counts(), before, strict=True)]
    confidence = case.verdict.probabilities[np.arange(len(case.files)), case.verdict.label]
    reviews, audits = (sum(map(bool, flags)) for flags in list(zip(*case.expected, strict=True))[1:])
    assert grown == [(case.verdict.label == 0).sum(), (confidence <= 0.5).sum(), reviews, audits]
