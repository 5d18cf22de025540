"""`plurum push` and `plurum pull` with a real registry, Debian's docker-registry."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from plurum.repository.listing import listing_of
from tests.cli.command_line import CommandLine
from tests.serving.waiting import wait_until

# Of the user `clinic`, whose password is `geheim`.
ACCOUNT = "clinic:$2y$05$abcdefghijklmnopqrstuuVWu8RjbNovPZWAMRdd7iqaaG0mI53Uu\n"
CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}
http: {{addr: "127.0.0.1:0"}}
auth: {{htpasswd: {{realm: tests, path: {folder}/accounts}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the registry's folder."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def registry(folder: Path) -> Iterator[str]:
    """Yield HOST:PORT of a registry that only `clinic` may use."""
    if not shutil.which("docker-registry"):
        pytest.skip("there is no docker-registry on PATH")
    (folder / "accounts").write_text(ACCOUNT)
    (folder / "config.yml").write_text(CONFIG.format(folder=folder))
    log = folder / "log"
    with (
        log.open("wb") as file,
        subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=file, stderr=file) as process,
    ):
        try:
            wait_until(lambda: "listening on " in log.read_text())
            yield log.read_text().partition("listening on ")[2].partition('"')[0]
        finally:
            process.kill()


@pytest.fixture
def target(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a place in the registry for an account that `docker login` stored."""
    log_in(registry, "geheim", tmp_path, monkeypatch)
    return f"{registry}/clinic/{tmp_path.name}:1".lower()


def log_in(registry: str, password: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".docker").mkdir(exist_ok=True)
    account = base64.b64encode(f"clinic:{password}".encode()).decode()
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {registry: {"auth": account}}}))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DOCKER_CONFIG", str(home / ".docker"))


@pytest.mark.slow
def test_what_was_pushed_is_pulled_unchanged_by_name_and_by_digest(
    target: str, repository: Path, tmp_path: Path, plurum: CommandLine
) -> None:
    digest = json.loads(plurum.said("push", repository, target, "--json"))["digest"]
    # Everything is there already, and the name means the same.
    assert plurum.said("push", repository, target).strip() == digest
    for place in (target, f"{target.removesuffix(':1')}@{digest}"):
        out = tmp_path / "pulled"
        assert plurum.said("pull", place, "--out", out).strip() == str(out)
        assert listing_of(out) == listing_of(repository)
        assert (out / "export.json").read_bytes() == (repository / "export.json").read_bytes()


@pytest.mark.slow
def test_a_changed_repository_is_not_pushed_and_a_damaged_one_not_pulled(
    target: str, registry: str, folder: Path, repository: Path, tmp_path: Path, plurum: CommandLine
) -> None:
    changed = shutil.copytree(repository, tmp_path / "changed")
    (changed / "ensemble.json").write_text("{}")
    assert "ensemble.json is not the file that was exported" in plurum.refused("push", changed, target)
    assert "Not Found" in plurum.refused("pull", target, "--out", tmp_path / "pulled")
    plurum.said("push", repository, target)
    largest = max((folder / "blobs").rglob("data"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    try:
        largest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        line = plurum.refused("pull", target, "--out", tmp_path / "pulled")
    finally:
        largest.write_bytes(content)
    assert "model.onnx arrived damaged" in line
    assert registry in line
    assert not (tmp_path / "pulled").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    assert "expected a new or empty folder" in plurum.refused("pull", target, "--out", tmp_path / "notes")


@pytest.mark.slow
def test_a_wrong_password_and_a_registry_that_is_away_are_told_in_a_line(
    target: str, registry: str, repository: Path, tmp_path: Path, plurum: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(registry, "wrong", tmp_path, monkeypatch)
    line = plurum.refused("push", repository, target)
    assert line.startswith(f"plurum: {target}: the registry refuses: ")
    assert "docker login" in line
    assert "geheim" not in line
    line = plurum.refused("pull", "127.0.0.1:1/a/b:1", "--out", tmp_path / "pulled")
    assert "the registry does not respond" in line
    assert "Connection refused" in line


@pytest.mark.parametrize("target", ["clots", "clinic/clots", "https://ghcr.io/clinic/clots:1", "/a:1"])
def test_other_forms_of_a_target_are_refused(target: str, tmp_path: Path, plurum: CommandLine) -> None:
    line = plurum.refused("pull", target, "--out", tmp_path / "pulled")
    assert f"TARGET: expected REGISTRY/NAME:TAG, got {target}" in line
