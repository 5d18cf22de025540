"""A repository in a store is served as the exported one, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from plurum.errors import DataError, RepositoryError
from plurum.repository.fetching import local_repository
from plurum.repository.listing import check_exported
from tests.cli.command_line import CommandLine
from tests.client.relay import Relay
from tests.remote.s3_server import S3Server, use_server

pytest.importorskip("s3fs")


@pytest.fixture
def stored(s3: S3Server, repository: Path) -> Path:
    """The exported repository in the bucket."""
    return Path(shutil.copytree(repository, s3.folder / "own" / "repo"))


def test_a_path_stays_a_path(repository: Path) -> None:
    assert local_repository(str(repository)) == repository


def test_it_is_whole_and_fetched_once(stored: Path) -> None:
    folder = local_repository("s3://own/repo")
    assert check_exported(folder)
    assert (folder / "export.json").read_bytes() == (stored / "export.json").read_bytes()
    # Files that no export wrote, and empty folders that a store can't hold.
    (stored / "secret.txt").write_text("not listed")
    before = folder.stat().st_ino
    assert local_repository("s3://own/repo/") == folder
    assert folder.stat().st_ino == before
    assert not (folder / "secret.txt").exists()
    assert [path.name for path in folder.parent.glob(".*.partial")] == []


def test_an_interrupted_fetch_resumes(
    stored: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_server(monkeypatch, s3.address, tmp_path / "cache")
    graph = next(stored.glob("*/1/model.onnx"))
    content = graph.read_bytes()
    graph.unlink()
    with pytest.raises(RepositoryError, match=r"expected a file that export\.json lists, got none"):
        local_repository("s3://own/repo")
    assert not list((tmp_path / "cache" / "plurum" / "repositories").glob("[!.]*"))
    graph.write_bytes(content)
    with Relay(s3.address) as relay:
        use_server(monkeypatch, relay.address, tmp_path / "cache")
        relay.last_bytes = len(content) // 2
        assert check_exported(local_repository("s3://own/repo"))
        assert relay.deaths == 1


@pytest.mark.parametrize("change", ["bytes", "path", "no listing"])
def test_another_content_is_refused(change: str, stored: Path, tmp_path: Path, plurum: CommandLine) -> None:
    manifest = json.loads((stored / "export.json").read_text())
    if change == "bytes":
        graph = next(stored.glob("*/1/model.onnx"))
        content = bytearray(graph.read_bytes())
        content[len(content) // 2] ^= 1
        graph.write_bytes(content)
    else:
        manifest["files"] = {"../outside": "0" * 64} if change == "path" else None
        (stored / "export.json").write_text(json.dumps(manifest))
    message = {
        "bytes": "differs from its SHA-256 in export.json",
        "path": "expected paths in the repository, got '../outside'",
        "no listing": "expected SHA-256 of all files, got none",
    }[change]
    assert message in plurum.refused("serve", "s3://own/repo", "--http-port", "0")
    assert not list((tmp_path / "cache" / "plurum" / "repositories").glob("[!.]*"))


@pytest.mark.usefixtures("s3")
def test_no_repository_is_one_line() -> None:
    with pytest.raises(DataError, match=r"^s3://own/nothing/export\.json: expected an object"):
        local_repository("s3://own/nothing")
