"""A fleet: the compose file, Envoy before two gateways under load, and releases that change server by server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from plurum.benchmarks.claims.releases.rollouts import ReleaseServer
from plurum.benchmarks.tools.background import background_clients
from plurum.benchmarks.tools.envoy import envoy_before
from plurum.errors import SettingsError
from plurum.serving.releases.fleet import FleetServer, read_fleet
from plurum.serving.releases.releases import tag_of
from tests.cli.command_line import CommandLine
from tests.client.samples import png
from tests.serving.deploy.deployment import DEPLOY, PODS, manifests, snippet
from tests.serving.gateway.gateways import gateway
from tests.serving.waiting import wait_until

FLEET = yaml.safe_load((DEPLOY / "compose.fleet.yaml").read_text(encoding="utf-8"))
ENVOY = (DEPLOY / "fleet" / "envoy.yaml").read_text(encoding="utf-8")
NAMES = ("first", "second")


def test_envoy_reaches_the_gateways_of_the_compose_file_and_nothing_else_is_reachable() -> None:
    services = FLEET["services"]
    cluster = yaml.safe_load(ENVOY)["static_resources"]["clusters"][0]
    endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert [one["endpoint"]["address"]["socket_address"]["address"] for one in endpoints] == list(NAMES)
    for name in NAMES:
        assert services[name]["networks"] == ["inside"]
        for part in ("server", "gateway"):
            assert services[f"{part}-{name}"]["network_mode"] == f"service:{name}"
    assert FLEET["networks"]["inside"] == {"internal": True}
    published = [port for one in services.values() for port in one.get("ports", [])]
    assert published == ["${PLURUM_ADDRESS:-127.0.0.1}:8080:8080"]
    for one in services.values():
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]
        secrets = {f"/run/secrets/{secret}" for secret in one.get("secrets", [])}
        named = json.dumps(one.get("command", [])) + (ENVOY if "envoy" in one["image"] else "")
        assert all(secret in named for secret in secrets)


def test_kubernetes_routes_as_envoy_s_file_does() -> None:
    static = yaml.safe_load(ENVOY)["static_resources"]
    (cluster,), (listener,) = static["clusters"], static["listeners"]
    connections = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = connections["route_config"]["virtual_hosts"]
    sent = host["routes"][0]["route"]
    found = {
        document["kind"]: document["spec"]
        for name, document in manifests()
        if "kubernetes/fleet/" in name and "spec" in document
    }

    backend = found["BackendTrafficPolicy"]
    (stated,) = cluster["health_checks"]
    check = dict(backend["healthCheck"]["active"])
    assert (check.pop("type"), check.pop("http")) == ("HTTP", stated["http_health_check"])
    names = {"timeout": "timeout", "interval": "interval"}
    names |= {f"{one}_threshold": f"{one}Threshold" for one in ("unhealthy", "healthy")}
    assert check == {new: stated[old] for old, new in names.items()}
    policy, retry = sent["retry_policy"], backend["retry"]
    triggers = set(policy["retry_on"].split(","))
    # Envoy Gateway has no retries by a header, as the page says.
    assert set(retry["retryOn"]["triggers"]) == triggers - {"retriable-headers"}
    assert retry["retryOn"]["httpStatusCodes"] == policy["retriable_status_codes"]
    assert retry["numRetries"] == policy["num_retries"]
    assert [{"max_retries": backend["circuitBreaker"]["maxParallelRetries"]}] == (
        cluster["circuit_breakers"]["thresholds"]
    )
    assert backend["timeout"]["tcp"]["connectTimeout"] == cluster["connect_timeout"]

    clients = found["ClientTrafficPolicy"]
    assert int(clients["connection"]["bufferLimit"].removesuffix("Mi")) << 20 == host["request_body_buffer_limit"]
    assert clients["timeout"]["http"] == {
        "requestReceivedTimeout": connections["request_timeout"],
        "idleTimeout": connections["common_http_protocol_options"]["idle_timeout"],
    }
    (rule,) = found["HTTPRoute"]["rules"]
    assert rule["timeouts"]["request"] == sent["timeout"]
    service = next(one for _, one in manifests() if one["kind"] == "Service")
    assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}]
    assert found["BackendTLSPolicy"]["targetRefs"] == [{"group": "", "kind": "Service", "name": "plurum"}]
    pod = PODS["kubernetes/base/deployment.yaml"]
    secrets = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert {one["name"] for one in found["Gateway"]["listeners"][0]["tls"]["certificateRefs"]} < secrets


def test_compose_reads_its_file(tmp_path: Path) -> None:
    """Debian's docker-compose is older than the key `name`."""
    if not shutil.which("docker-compose"):
        pytest.skip("there is no docker-compose on PATH")
    file = tmp_path / "compose.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in FLEET.items() if key != "name"}))
    names = ("PLURUM_REPOSITORY", "PLURUM_SECRETS", "PLURUM_RELEASES")
    done = subprocess.run(
        ["docker-compose", "-f", file, "config", "--quiet"],
        env=os.environ | dict.fromkeys(names, str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_fleets_file_has_a_server_per_line(tmp_path: Path) -> None:
    file = tmp_path / "hosts.txt"
    file.write_text("# both rooms\n/srv/live\n\nnode2:/srv/live  # in the cellar\nuser@node3:live\n")
    servers = read_fleet(file)
    assert servers == (FleetServer("/srv/live"), FleetServer("/srv/live", "node2"), FleetServer("live", "user@node3"))
    assert [str(server) for server in servers] == ["/srv/live", "node2:/srv/live", "user@node3:live"]
    words = servers[1].command("/a b", "--json")
    assert words[-2:] == ["node2", "plurum rollout '/a b' --json --releases /srv/live"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "--fleet: expected a line per server, FOLDER or HOST:FOLDER, got none in"),
        ("/a\n/a\n", "--fleet: line 2: expected each server once, got /a again"),
        ("-oProxyCommand=x:/a\n", "--fleet: line 1: expected a line per server"),
    ],
    ids=["none", "twice", "an option of ssh"],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "hosts.txt"
    file.write_text(text)
    with pytest.raises(SettingsError, match=reason):
        read_fleet(file)


def test_options_that_exclude_each_other_are_refused(plurum: CommandLine, tmp_path: Path) -> None:
    line = plurum.refused("rollout", tmp_path, "--fleet", tmp_path / "hosts.txt", "--releases", tmp_path)
    assert "--fleet, --releases: expected one of them, got both" in line


@contextlib.contextmanager
def _envoy(gateways: list[tuple[str, int]], folder: Path) -> Iterator[tuple[str, ssl.SSLContext]]:
    """Run Envoy with TLS; yield its URL, and a context that trusts the page's certificate."""
    subprocess.run(
        ["bash", "-euc", snippet("sh", "mkdir -p runs/secrets")], cwd=folder, check=True, capture_output=True
    )
    certificate, key = (folder / "runs" / "secrets" / f"{name}.pem" for name in ("cert", "key"))
    with envoy_before([f"http://{host}:{port}" for host, port in gateways], folder, (certificate, key)) as url:
        assert "deprecated" not in (folder / "envoy.log").read_text().lower()
        yield url, ssl.create_default_context(cafile=certificate)


def _send(url: str, context: ssl.SSLContext, image: bytes) -> int:
    """Return the status of a prediction that Envoy passes on."""
    with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", image), timeout=60, context=context) as answer:
        return int(answer.status)


def _newer(repository: Path, folder: Path) -> Path:
    """Return a copy of a repository that is another release, with the same models and a file that may be added."""
    copy = shutil.copytree(repository, folder)
    (copy / "tuning.csv").write_text(folder.name)
    return copy


@pytest.mark.slow
@pytest.mark.triton
def test_a_fleet_changes_its_release_and_loses_a_server_without_losing_a_request(
    repository: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in NAMES]
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("".join(f"{folder}\n" for folder in folders))
    newer, broken = _newer(repository, tmp_path / "newer"), _newer(repository, tmp_path / "broken")
    old, new, bad = map(tag_of, (repository, newer, broken))

    def rollout(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "plurum", "rollout", *map(str, words), "--fleet", str(hosts), "--json"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)

    def public() -> list[str]:
        return [state["current"] for state in json.loads(rollout().stdout)["servers"].values()]

    statuses, failures = Counter[int](), list[str]()
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(ReleaseServer(folder, repository)) for folder in folders)
        gateways = [stack.enter_context(gateway(server.urls["grpc"])) for server in (first, second)]
        url, context = stack.enter_context(_envoy([one.address for one in gateways], tmp_path))

        def send() -> None:
            try:
                statuses[_send(url, context, png(5))] += 1
            except OSError as error:
                failures.append(repr(error))
            time.sleep(0.05)

        stack.enter_context(background_clients(send, 2))
        done = rollout(newer)
        assert done.returncode == 0, done.stderr
        assert [state["previous"] for state in json.loads(done.stdout)["servers"].values()] == [old, old]
        assert f"{folders[1]}: {new} is public" in done.stderr
        assert f"{folders[0]}: {new} is already public" in rollout(newer).stderr

        # Only the second server's copy is damaged.
        damaged = shutil.copytree(broken, folders[1] / "releases" / bad)
        graph = next(damaged.glob("*/1/model.onnx"))
        graph.write_bytes(graph.read_bytes()[:-100])
        refused = rollout(broken)
        assert refused.returncode == 2
        line = refused.stderr.splitlines()[-1]
        assert line.startswith(f"plurum: {folders[1]}: ")
        assert "is not the file that was exported" in line
        assert line.endswith(f"Servers that went back to the release before: {folders[0]}.")
        assert public() == [new, new]

        back = rollout("--back")
        assert back.returncode == 2
        assert f"different releases: {folders[0]} to {bad}, {folders[1]} to {old}" in back.stderr

        os.kill(gateways[0].process.pid, signal.SIGKILL)
        os.kill(first.pid, signal.SIGKILL)
        answered = statuses[200]
        wait_until(lambda: statuses[200] > answered + 20, 60)
        gone = rollout(repository)
        assert gone.returncode == 2
        assert f"{folders[0]}: --releases: no running server uses" in gone.stderr
    assert failures == []
    assert set(statuses) == {200}
