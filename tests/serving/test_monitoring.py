"""Rules and dashboards: each query finds data on a server under load, and each alert fires when it should."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import math
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc
from PIL import Image

from tests.cli.processes import plurum_command, started
from tests.sample_runs.fitted_run import ARCHS, CLASSES
from tests.serving.prometheus import ask, find_prometheus, running
from tests.serving.servers import FREE_OPTIONS

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "serving" / "monitoring"
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
RULES = (MONITORING / "rules.yml").read_text(encoding="utf-8")
ALERTS = re.findall(r"- alert: (\w+)", RULES)
# What Grafana puts in place of its variables.
VARIABLES = {"$__rate_interval": "15s", "$__range": "1m", "$ensemble": "digits-test", "$release": ".+"}
DATA_S = 40


def panels(dashboard: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(dashboard.read_text(encoding="utf-8"))["panels"]
    return found


def queries() -> dict[str, str]:
    """Every query of every panel, filled in, by where it stands."""
    found = {}
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            for target in panel["targets"]:
                query = target["expr"]
                for variable, value in VARIABLES.items():
                    query = query.replace(variable, value)
                found[f"{dashboard.stem}, {panel['title']}, {target['refId']}"] = query
    return found


def test_all_dashboards_are_there_and_have_queries() -> None:
    assert [dashboard.stem for dashboard in DASHBOARDS] == ["capacity", "ensemble", "overview"]
    assert len(queries()) > 50
    assert not [query for query in queries().values() if "$" in query]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.stem)
def test_a_dashboard_names_the_provisioned_source_and_lays_no_panel_over_another(dashboard: Path) -> None:
    source = (MONITORING / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    (uid,) = re.findall(r"uid: (\w+)", source)
    taken: set[tuple[int, int]] = set()
    for panel in panels(dashboard):
        assert {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])} == {uid}
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in panels(dashboard)]
    assert len(set(ids)) == len(ids)


def test_every_alert_has_a_case_and_a_place_in_the_page() -> None:
    tested = re.findall(r"alertname: (\w+)", (MONITORING / "rules_test.yml").read_text(encoding="utf-8"))
    assert set(ALERTS) == set(tested)
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    headings = {f"docs/monitoring.md#{name.lower()}" for name in re.findall(r"^### (\w+)$", page, flags=re.MULTILINE)}
    assert set(re.findall(r"runbook: (\S+)", RULES)) == headings


@pytest.fixture(scope="module")
def binaries() -> dict[str, Path]:
    found = find_prometheus()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
)
def test_promtool_accepts_the_rules(binaries: dict[str, Path], arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [binaries["promtool"], *arguments], cwd=MONITORING, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def plurum(*arguments: object) -> Iterator[dict[str, str]]:
    """Run a command of ours that answers, and give where."""
    with started(plurum_command(*arguments)) as (process, line):
        try:
            yield json.loads(line)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    assert process.returncode == 0


@pytest.fixture
def with_baseline(detecting_repository: Path, tmp_path: Path) -> Path:
    """A repository with an outlier test, of a fit that wrote down what drift is measured against."""
    copy = shutil.copytree(detecting_repository, tmp_path / "repository")
    path = copy / "voter" / "1" / "ensemble.json"
    shares = [0.0] * 4 + [0.1] * 2 + [0.2] * 4
    baseline = {
        "images": 400,
        "class_shares": [0.1] * len(CLASSES),
        "confidence_limits": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        "confidence_shares": shares,
        "review_share": 0.2,
        "dissent_shares": [0.1] * len(ARCHS),
    }
    text = json.dumps(json.loads(path.read_text()) | {"baseline": baseline})
    for metadata in copy.rglob("ensemble.json"):
        metadata.write_text(text)
    # It tells the files apart from those that were exported.
    (copy / "export.json").unlink()
    return copy


@dataclass
class Load:
    """Clients of both doors, until told to end."""

    grpc: str
    gateway: str
    pixels: npt.NDArray[np.uint8]
    ended: bool = False

    def ask_triton(self) -> None:
        tensor = tritonclient.grpc.InferInput("PIXELS", [1, *self.pixels.shape], "UINT8")
        tensor.set_data_from_numpy(self.pixels[None])
        with tritonclient.grpc.InferenceServerClient(self.grpc) as client:
            while not self.ended:
                client.infer("ensemble_pixels", [tensor])
                time.sleep(0.05)

    def ask_gateway(self) -> None:
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG")
        while not self.ended:
            question = urllib.request.Request(f"{self.gateway}/predict", file.getvalue())
            with urllib.request.urlopen(question, timeout=20) as answer:
                answer.read()
            time.sleep(0.05)


@contextlib.contextmanager
def loaded(load: Load) -> Iterator[None]:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(load.ask_triton), pool.submit(load.ask_gateway)]
        try:
            yield
        finally:
            load.ended = True
    for client in clients:
        client.result()


def config_of(folder: Path, places: dict[str, str]) -> Path:
    """The shipped configuration with these places for its own, looking once a second."""
    for name in ("prometheus.yml", "rules.yml"):
        text = (MONITORING / name).read_text(encoding="utf-8")
        for port, place in places.items():
            assert name != "prometheus.yml" or port in text
            text = text.replace(port, place)
        (folder / name).write_text(text.replace("_interval: 15s", "_interval: 1s"), encoding="utf-8")
    return folder / "prometheus.yml"


def missing(url: str, wanted: dict[str, str]) -> dict[str, str]:
    """Those of the queries that have no data yet."""

    def is_there(query: str) -> bool:
        found = ask(url, "query", query=query)["result"]
        return any(not math.isnan(float(sample["value"][1])) for sample in found)

    return {place: query for place, query in wanted.items() if not is_there(query)}


@pytest.mark.triton
def test_every_query_finds_data_on_a_loaded_server(
    binaries: dict[str, Path], with_baseline: Path, run: Any, tmp_path: Path
) -> None:
    pixels = np.array(run.pixels()[40])
    with (
        plurum("serve", with_baseline, *FREE_OPTIONS, "--json") as served,
        plurum("gateway", "--triton", served["grpc"], "--port", 0, "--metrics-port", 0, "--json") as gateway,
    ):
        pages = {"8002": served["metrics"], "8003": served["status"], "8081": gateway["metrics"]}
        places = {f"127.0.0.1:{port}": page.split("/")[2] for port, page in pages.items()}
        with (
            loaded(Load(served["grpc"], gateway["http"], pixels)),
            running(binaries["prometheus"], config_of(tmp_path, places), tmp_path / "data") as url,
        ):
            wanted = queries() | {name: name for name in re.findall(r"- record: (\S+)", RULES)}
            # This repository has no cascade.
            wanted = {
                place: query for place, query in wanted.items() if not re.search("plurum_.*(settled|stage)_", query)
            }
            deadline = time.monotonic() + DATA_S
            while (left := missing(url, wanted)) and time.monotonic() < deadline:
                time.sleep(0.5)
            assert left == {}
            assert {target["health"] for target in ask(url, "targets")["activeTargets"]} == {"up"}
            rules = [rule for group in ask(url, "rules")["groups"] for rule in group["rules"]]
            assert {rule["name"] for rule in rules if rule["type"] == "alerting"} == set(ALERTS)
            assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}
            # What the variables of the dashboards are filled with.
            assert ask(url, "label/ensemble/values", **{"match[]": "plurum_predictions_total"}) == ["digits-test"]
            assert len(ask(url, "label/release/values", **{"match[]": "plurum_predictions_total"})) == 1
