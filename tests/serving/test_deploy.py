"""Container, compose file and manifests: valid, shut, and naming only what the commands really have."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
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
from tests.serving.gateway.gateways import lonely_gateway
from tests.serving.prometheus import find_prometheus

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "serving" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
FILES = sorted(DEPLOY.rglob("*.yaml"))
# Of the sorts that others bring to a cluster there is no schema here.
FOREIGN = {"Kustomization", "Component", "PodMonitor", "ScaledObject", "InferenceService"}
# For a mount namespace of its own: $1 is at /tmp/models, /tmp and /dev/shm are as in a pod, the rest is read-only.
READ_ONLY = """
mount --make-rprivate /
# Held open, as it may lie in the /tmp that is covered.
exec 9< "$1"
mount -t tmpfs -o size=256m tmpfs /tmp
mkdir /tmp/models
mount --bind /proc/self/fd/9 /tmp/models
mount -o remount,bind,ro /tmp/models
exec 9<&-
mount -t tmpfs -o size=512m tmpfs /dev/shm
cut -d' ' -f5 /proc/self/mountinfo | grep -Ev '^/(tmp|dev|proc|sys)(/|$)' | while read -r place; do
  mount -o remount,bind,ro "$place"
done
if touch "$2/written" || touch /tmp/models/written; then exit 9; fi 2>/dev/null
cd /tmp
exec "$3" -B -m plurum serve /tmp/models --http-port 0 --grpc-port 0 --metrics-port 0 --status-port 0 --json
"""
PORTS = {"serve": {8000, 8001, 8002, 8003}, "gateway": {8080, 8081}}


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every document of every manifest, with the file's name."""
    for path in FILES:
        if not path.name.startswith("compose"):
            for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                yield str(path.relative_to(DEPLOY)), document


def pods() -> dict[str, dict[str, Any]]:
    """The specification of every whole pod, by its file; the overlay's patch is none."""
    found = {}
    for name, document in manifests():
        if document["kind"] == "Deployment" and not name.startswith("kubernetes/gpu"):
            found[name] = document["spec"]["template"]["spec"]
        elif document["kind"] == "Pod":
            found[name] = document["spec"]
        elif document["kind"] == "InferenceService":
            own = {"minReplicas", "maxReplicas", "autoScaling"}
            found[name] = {key: value for key, value in document["spec"]["predictor"].items() if key not in own}
    return found


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [*pod.get("initContainers", []), *pod["containers"]]
    return found


PODS = pods()
SERVING = [name for name, pod in PODS.items() if "initContainers" in pod]


def words() -> dict[str, list[str]]:
    """The arguments of every container that runs one of our commands, by where it stands."""
    found = {f"compose {name}": one["command"] for name, one in COMPOSE["services"].items() if "plurum" in one["image"]}
    for name, pod in PODS.items():
        found |= {f"{name} {one['name']}": one["args"] for one in containers(pod) if "args" in one}
    return found


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


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


def ask(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.fixture(scope="module")
def gateway_url() -> Iterator[str]:
    """A gateway without a Triton behind it."""
    with lonely_gateway() as one:
        yield one.http


def probed_paths(command: str) -> set[str]:
    """What is asked of a command's containers for their health, anywhere."""
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


def test_probes_ask_what_is_answered(gateway_url: str) -> None:
    with StatusServer(Status(), "127.0.0.1", 0) as status:
        for command, url in (("serve", status.url), ("gateway", gateway_url)):
            paths = probed_paths(command)
            assert paths == {"/v2/health/live", "/v2/health/ready"}
            # Neither has a Triton: alive, and not ready.
            assert {path: ask(url + path) for path in paths} == {"/v2/health/live": 200, "/v2/health/ready": 503}


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
            # Triton's own doors are nobody's.
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


def test_prometheus_finds_in_the_cluster_the_jobs_that_it_knows() -> None:
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
    """What decides how many pods there are, by threshold."""
    scaled = next(found for _, found in manifests() if found["kind"] == "ScaledObject")
    found = {one["metadata"]["threshold"]: one["metadata"]["query"] for one in scaled["spec"]["triggers"]}
    service = next(found for _, found in manifests() if found["kind"] == "InferenceService")
    for one in service["spec"]["predictor"]["autoScaling"]["metrics"]:
        external = one["external"]
        assert external["metric"]["query"] == found[external["target"]["value"]]
    return found


@pytest.mark.slow
def test_pods_are_counted_by_the_wait_of_the_busiest_model(tmp_path: Path) -> None:
    binaries = find_prometheus()
    if isinstance(binaries, str):
        pytest.skip(binaries)
    by_wait, by_waiting = queries()["50"], queries()["4"]
    series = {
        # 60 requests a minute that wait 0.2 s each; one model has half the wait, one is asked nothing.
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
    # Nobody asks: nothing, which KEDA takes for 0, and not a number that is none.
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


def test_images_are_pinned_and_ours_is_of_this_version() -> None:
    images = {one["image"] for one in COMPOSE["services"].values()}
    images |= {one["image"] for name, pod in PODS.items() if "base" not in name for one in containers(pod)}
    kustomization = next(found for name, found in manifests() if name == "kubernetes/base/kustomization.yaml")
    images |= {f"{one['newName']}:{one['newTag']}" for one in kustomization["images"]}
    images.add(re.findall(r"docker build .*-t (\S+)", DOCKERFILE)[0])
    assert {image for image in images if "plurum" in image} == {f"plurum:{__version__}"}
    for image in images:
        assert re.search(r":v?\d+(\.\d+)+$", image), image


def test_the_container_is_nvidias_of_the_readme_and_nobody_in_it_is_root() -> None:
    (tag,) = re.findall(r"^ARG TRITON=(\S+)$", DOCKERFILE, flags=re.MULTILINE)
    assert re.findall(r"^FROM (.*)$", DOCKERFILE, flags=re.MULTILINE) == ["nvcr.io/nvidia/tritonserver:${TRITON}"]
    assert f"nvcr.io/nvidia/tritonserver:{tag}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "latest" not in tag
    user = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, flags=re.MULTILINE)[-1]
    for name in SERVING:
        context = PODS[name]["securityContext"]
        assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
    for name, one in COMPOSE["services"].items():
        assert int(one["user"].partition(":")[0]) > 0, name
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]


def built_from() -> list[str]:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    return [line[1:] for line in lines if line.startswith("!")]


def test_the_image_is_built_from_every_folder_of_the_package() -> None:
    folders = {link.resolve().name for link in (ROOT / "src" / "plurum").iterdir() if link.is_symlink()}
    assert set(built_from()) == {*folders, "src", "pyproject.toml", "README.md", "LICENSE"}


def test_the_image_needs_nothing_but_the_extras_that_it_installs() -> None:
    assert re.findall(r'"/source\[(.*)\]"', DOCKERFILE) == ["gateway,openvino"]
    # What the other extras bring.
    absent = ("torch", "onnxruntime", "pytriton", "timm", "onnx", "sklearn", "scipy", "pandas", "tifffile")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "import plurum.cli.serve, plurum.cli.gateway, plurum.serving.supervisor, plurum.serving.status\n"
        "import plurum.serving.triton.staging, plurum.serving.releases.releases, plurum.serving.gateway\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.triton
def test_a_server_writes_to_tmp_and_shared_memory_alone(repository: Path) -> None:
    able = ["unshare", "-rm", "true"]
    if not shutil.which("unshare") or subprocess.run(able, capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mount namespaces")
    words = ["unshare", "-rm", "bash", "-euc", READ_ONLY, "bash", str(repository), str(ROOT), sys.executable]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "it ended by itself"
            assert ask(json.loads(line)["status"] + "/v2/health/ready") == 200
        finally:
            process.terminate()
    assert process.returncode == 0


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """What kustomize makes of a folder; core sorts of it follow their schemas."""
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


def snippet(language: str, start: str) -> str:
    """The code block of the page that begins with `start`."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(start)]
    return found


def test_the_page_s_own_kustomization_serves_another_release(tmp_path: Path) -> None:
    text = snippet("yaml", "# kustomization.yaml")
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "serving" / "deploy" / "kubernetes")
    (tmp_path / "kustomization.yaml").write_text(text, encoding="utf-8")
    made = {document["kind"]: document for document in kustomized(tmp_path)}
    assert {"PodMonitor", "ScaledObject"} <= set(made)
    spec = made["Deployment"]["spec"]
    assert "replicas" not in spec
    (server,) = spec["template"]["spec"]["initContainers"]
    assert server["args"][:2] == ["serve", "/models/2"]
    assert server["image"].startswith("registry.example/")


def test_the_page_s_prometheus_rule_holds_the_shipped_rules() -> None:
    command = snippet("sh", "{ printf").removesuffix(" | kubectl apply -f -\n")
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    made = yaml.safe_load(done.stdout)
    assert made["kind"] == "PrometheusRule"
    assert made["spec"] == yaml.safe_load((ROOT / "serving" / "monitoring" / "rules.yml").read_text(encoding="utf-8"))


def test_the_page_s_secrets_are_what_the_gateway_and_compose_read(tmp_path: Path) -> None:
    from plurum.serving.gateway.connections.keys import read_keys

    if not shutil.which("openssl"):
        pytest.skip("there is no openssl on PATH")
    made = subprocess.run(
        ["bash", "-euc", snippet("sh", "mkdir -p runs/secrets")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "runs" / "secrets"
    wanted = {secret["file"].rpartition("/")[2] for secret in COMPOSE["secrets"].values()}
    assert {path.name for path in folder.iterdir()} == wanted | {"clinic.key"}
    assert not [path for path in folder.iterdir() if path.stat().st_mode & 0o077]
    keys = read_keys(folder / "keys.txt")
    key = (folder / "clinic.key").read_text(encoding="utf-8").strip()
    assert keys.owner({"authorization": f"Bearer {key}"}) == "clinic"
    assert base64.b64decode("".join((folder / "cert.pem").read_text(encoding="utf-8").splitlines()[1:-1]))


def test_compose_mounts_what_is_there() -> None:
    for one in COMPOSE["services"].values():
        for volume in one.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_dir()
            else:
                assert source.startswith("${") or source in COMPOSE["volumes"]
    assert (DEPLOY / COMPOSE["services"]["server"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / COMPOSE["services"]["server"]["build"]["dockerfile"]).is_file()
    # Everything is on loopback unless somebody asks for more.
    assert all(port.startswith(("127.0.0.1:", "${PLURUM_ADDRESS:-127.0.0.1}:")) for port in published())


def published() -> list[str]:
    return [port for one in COMPOSE["services"].values() for port in one.get("ports", [])]


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")])
def test_docker_compose_reads_its_files(files: tuple[str, ...], tmp_path: Path) -> None:
    if not shutil.which("docker"):
        pytest.skip("there is no docker on PATH")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("this docker has no compose")
    words = [word for name in files for word in ("-f", str(DEPLOY / name))]
    environment = os.environ | {"PLURUM_REPOSITORY": str(tmp_path), "PLURUM_SECRETS": str(tmp_path)}
    done = subprocess.run(
        ["docker", "compose", *words, "config", "--quiet"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
