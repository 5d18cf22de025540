"""Container image and compose file: pinned, without root, read-only, and complete."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plurum import __version__
from tests.serving.deploy.deployment import (
    COMPOSE,
    DEPLOY,
    DOCKERFILE,
    PODS,
    ROOT,
    SERVING,
    containers,
    manifests,
    request_status,
    snippet,
)

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
    # Packages of the other extras.
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
            assert line, "the server exited"
            assert request_status(json.loads(line)["status"] + "/v2/health/ready") == 200
        finally:
            process.terminate()
    assert process.returncode == 0


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
    # Everything is on loopback unless an option says otherwise.
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
