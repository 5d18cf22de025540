"""Kubernetes manifests: valid, closed to others, and naming only options that the commands have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from plurum import __version__
from plurum.cli.main import app
from plurum.serving.status import Status, StatusServer
from tests.serving.deploy.deployment import (
    COMPOSE,
    DEPLOY,
    DOCKERFILE,
    FOREIGN,
    PODS,
    ROOT,
    SERVING,
    containers,
    manifests,
    request_status,
    snippet,
    validate,
    words,
)
from tests.serving.gateway.gateways import lonely_gateway
from tests.serving.prometheus import find_prometheus

PORTS = {"serve": {8000, 8001, 8002, 8003}, "gateway": {8080, 8081}}


def test_every_manifest_follows_its_schema() -> None:
    unknown = set()
    for name, document in manifests():
        try:
            validate(document)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(document["kind"])
        except kubernetes_validate.ValidationError as error:
            if not name.startswith("kubernetes/gpu"):
                pytest.fail(f"{name}: {error}")
    assert unknown == FOREIGN
    for name, pod in PODS.items():
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": Path(name).stem}, "spec": pod})


@pytest.mark.parametrize("name", PODS)
def test_no_container_is_root_or_may_write_to_its_system(name: str) -> None:
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for one in containers(pod):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in one["resources"]["limits"]
        assert {mount["name"] for mount in one["volumeMounts"]} <= set(volumes)
    for volume in volumes.values():
        assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"]


@pytest.mark.parametrize("name", SERVING)
def test_the_server_has_shared_memory_and_outlives_the_gateway(name: str) -> None:
    pod = PODS[name]
    (server,), (gateway,) = pod["initContainers"], pod["containers"]
    assert (server["args"][0], gateway["args"][0]) == ("serve", "gateway")
    assert server["restartPolicy"] == "Always"
    places = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[places["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"  # noqa: S108 (where Linux keeps it)
    assert places["/models"]["readOnly"] is True
    assert "--triton=127.0.0.1:8001" in gateway["args"]
    assert any(word.startswith("--keys=") for word in gateway["args"])


@pytest.mark.parametrize(("place", "arguments"), words().items(), ids=words())
def test_commands_take_what_they_are_given(place: str, arguments: list[str]) -> None:
    command = get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
    context = command.make_context("plurum", [word for word in arguments[1:] if word], resilient_parsing=False)
    assert context.params["host"] in {"127.0.0.1", "0.0.0.0"}  # noqa: S104 (what the manifests say)
    for option in ("keys", "tls_cert", "tls_key"):
        path = context.params.get(option)
        assert path is None or str(path).startswith(("/run/secrets/", "/etc/plurum/")), place


def test_every_file_that_is_named_is_mounted() -> None:
    for name in SERVING:
        for one in containers(PODS[name]):
            mounts = tuple(f"{mount['mountPath']}/" for mount in one["volumeMounts"])
            paths = re.findall(r"(?:=|^)(/\S+)", "\n".join(one["args"]), flags=re.MULTILINE)
            assert paths
            assert all(path.startswith(mounts) for path in paths), (name, paths)
    for one in COMPOSE["services"].values():
        secrets = {f"/run/secrets/{secret}" for secret in one.get("secrets", [])}
        text = json.dumps([one.get("command", []), one.get("environment", {})])
        assert set(re.findall(r"/run/secrets/\w+", text)) == secrets
        assert set(one.get("secrets", [])) <= set(COMPOSE["secrets"])


@pytest.fixture(scope="module")
def gateway_url() -> Iterator[str]:
    """Yield the URL of a gateway without a Triton."""
    with lonely_gateway() as one:
        yield one.http


def probed_paths(command: str) -> set[str]:
    """Return the paths that probe the health of a command's containers, in all files."""
    found = set()
    for name in SERVING:
        for one in containers(PODS[name]):
            if one["args"][0] == command:
                probes = [value for key, value in one.items() if key.endswith("Probe")]
                assert len(probes) >= 2
                found |= {probe["httpGet"]["path"] for probe in probes}
    text = DOCKERFILE if command == "serve" else json.dumps(COMPOSE["services"]["gateway"]["healthcheck"])
    port = {"serve": 8003, "gateway": 8080}[command]
    (path,) = re.findall(rf"https?://127\.0\.0\.1:{port}(/[\w/]+)", text)
    return {*found, path}


def test_probes_request_paths_that_the_commands_serve(gateway_url: str) -> None:
    with StatusServer(Status(), "127.0.0.1", 0) as status:
        for command, url in (("serve", status.url), ("gateway", gateway_url)):
            paths = probed_paths(command)
            assert paths == {"/v2/health/live", "/v2/health/ready"}
            # Neither has a Triton, so they are live and not ready.
            assert {path: request_status(url + path) for path in paths} == {
                "/v2/health/live": 200,
                "/v2/health/ready": 503,
            }


def test_ports_are_those_of_the_commands() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for command, ports in PORTS.items():
        defaults = {one.default for one in commands[command].params if str(one.name).endswith("port")}
        assert defaults == ports
    for name in SERVING:
        named: dict[str, int] = {}
        for one in containers(PODS[name]):
            own = {port["name"]: port["containerPort"] for port in one["ports"]}
            assert set(own.values()) <= PORTS[one["args"][0]]
            # Triton's own ports are closed to all.
            assert not set(own.values()) & {8000, 8001}
            for key, probe in one.items():
                assert not key.endswith("Probe") or probe["httpGet"]["port"] in own
            named |= own
        policy = next(found for file, found in manifests() if found["kind"] == "NetworkPolicy" and same(file, name))
        opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert opened == set(named.values())
        assert policy["spec"]["egress"] == []


def same(file: str, other: str) -> bool:
    return Path(file).parent == Path(other).parent


def test_the_pod_monitor_scrapes_the_jobs_of_the_shipped_prometheus() -> None:
    shipped = yaml.safe_load((ROOT / "serving" / "monitoring" / "prometheus.yml").read_text(encoding="utf-8"))
    places = {job["job_name"]: job["static_configs"][0]["targets"][0] for job in shipped["scrape_configs"]}
    monitor = next(found for _, found in manifests() if found["kind"] == "PodMonitor")
    jobs = {one["relabelings"][0]["replacement"]: one["port"] for one in monitor["spec"]["podMetricsEndpoints"]}
    pod = PODS["kubernetes/base/deployment.yaml"]
    ports = {port["name"]: port["containerPort"] for one in containers(pod) for port in one["ports"]}
    assert {job: f"127.0.0.1:{ports[port]}" for job, port in jobs.items()} == places


def test_labels_select_the_pods() -> None:
    labels = {"app.kubernetes.io/name": "plurum"}
    for name, found in manifests():
        if name.startswith("kubernetes/") and (selector := found["spec"].get("selector") if "spec" in found else None):
            assert selector.get("matchLabels", selector) == labels, name
    deployment = next(found for name, found in manifests() if name == "kubernetes/base/deployment.yaml")
    assert deployment["spec"]["template"]["metadata"]["labels"] == labels


def queries() -> dict[str, str]:
    """Return the queries that decide on the number of pods, by threshold."""
    scaled = next(found for _, found in manifests() if found["kind"] == "ScaledObject")
    found = {one["metadata"]["threshold"]: one["metadata"]["query"] for one in scaled["spec"]["triggers"]}
    service = next(found for _, found in manifests() if found["kind"] == "InferenceService")
    for one in service["spec"]["predictor"]["autoScaling"]["metrics"]:
        external = one["external"]
        assert external["metric"]["query"] == found[external["target"]["value"]]
    return found


@pytest.mark.slow
def test_scaling_follows_the_wait_of_the_busiest_model(tmp_path: Path) -> None:
    binaries = find_prometheus()
    if isinstance(binaries, str):
        pytest.skip(binaries)
    by_wait, by_waiting = queries()["50"], queries()["4"]
    series = {
        # 60 requests a minute that wait 0.2 s each; one model has half the wait, one gets no requests.
        'nv_inference_request_success{namespace="plurum", model="a"}': "0+15x20",
        'nv_inference_queue_duration_us{namespace="plurum", model="a"}': "0+3000000x20",
        'nv_inference_request_success{namespace="plurum", model="b"}': "0+15x20",
        'nv_inference_queue_duration_us{namespace="plurum", model="b"}': "0+1500000x20",
        'nv_inference_request_success{namespace="plurum", model="idle"}': "5+0x20",
        'nv_inference_queue_duration_us{namespace="plurum", model="idle"}': "5+0x20",
        'plurum_gateway_waiting{namespace="plurum", pod="x"}': "3+0x20",
        'plurum_gateway_waiting{namespace="plurum", pod="y"}': "4+0x20",
    }
    cases = [
        {"expr": query, "eval_time": "4m", "exp_samples": [{"value": value, "labels": "{}"}]}
        for query, value in ((by_wait, 200), (by_waiting, 7))
    ]
    values = [{"series": name, "values": value} for name, value in series.items()]
    busy = {"interval": "15s", "input_series": values, "promql_expr_test": cases}
    # Without requests the result is empty, which KEDA takes for 0, and not NaN.
    quiet = {
        "interval": "15s",
        "input_series": [one for one in values if "idle" in one["series"]],
        "promql_expr_test": [{"expr": by_wait, "eval_time": "4m", "exp_samples": []}],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"evaluation_interval": "15s", "tests": [busy, quiet]}), encoding="utf-8")
    done = subprocess.run(
        [binaries["promtool"], "test", "rules", file], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """Return what kustomize makes of a folder; kinds of Kubernetes itself follow their schemas."""
    if not shutil.which("kubectl"):
        pytest.skip("there is no kubectl on PATH, which brings kustomize")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = list(yaml.safe_load_all(done.stdout))
    for document in found:
        if document["kind"] not in FOREIGN:
            validate(document)
        assert document["metadata"].get("namespace", "plurum") == "plurum"
    return found


@pytest.mark.parametrize("variant", ["base", "gpu"])
def test_kustomize_makes_whole_manifests(variant: str) -> None:
    made = {document["kind"]: document for document in kustomized(DEPLOY / "kubernetes" / variant)}
    pod = made["Deployment"]["spec"]["template"]["spec"]
    assert {one["image"] for one in containers(pod)} == {f"plurum:{__version__}"}
    (server,) = pod["initContainers"]
    assert ("nvidia.com/gpu" in server["resources"]["limits"]) == (variant == "gpu")
    assert server["resources"]["limits"]["cpu"] == "4"
    assert set(made) == {
        "Namespace", "PersistentVolumeClaim", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget",
    }  # fmt: skip


def test_the_page_s_own_kustomization_serves_another_release(tmp_path: Path) -> None:
    text = snippet("yaml", "# kustomization.yaml\n")
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "serving" / "deploy" / "kubernetes")
    (tmp_path / "kustomization.yaml").write_text(text, encoding="utf-8")
    made = {document["kind"]: document for document in kustomized(tmp_path)}
    assert {"PodMonitor", "ScaledObject"} <= set(made)
    spec = made["Deployment"]["spec"]
    assert "replicas" not in spec
    (server,) = spec["template"]["spec"]["initContainers"]
    assert server["args"][:2] == ["serve", "/models/2"]
    assert server["image"].startswith("registry.example/")


def test_kustomize_adds_the_route_of_a_fleet(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    text = snippet("yaml", "# kustomization.yaml of a fleet\n")
    (tmp_path / "kustomization.yaml").write_text(text.replace("serving/deploy/", ""), encoding="utf-8")
    made = {document["kind"]: document for document in kustomized(tmp_path)}
    assert {"Deployment", "Service", "Gateway", "HTTPRoute", "BackendTrafficPolicy"} <= set(made)


def test_the_page_s_prometheus_rule_holds_the_shipped_rules() -> None:
    command = snippet("sh", "{ printf").removesuffix(" | kubectl apply -f -\n")
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    made = yaml.safe_load(done.stdout)
    assert made["kind"] == "PrometheusRule"
    assert made["spec"] == yaml.safe_load((ROOT / "serving" / "monitoring" / "rules.yml").read_text(encoding="utf-8"))
