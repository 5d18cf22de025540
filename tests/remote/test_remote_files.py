"""Objects become files in the cache: fetched once, again after a change, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from plurum.errors import DataError, MissingExtraError
from plurum.remote_files import cached_path, display_name, fetch_file, fetch_files, fetch_tree, is_uri
from tests.client.relay import Relay
from tests.remote.s3_server import S3Server, use_server

pytest.importorskip("s3fs")


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_is_the_one_in_the_store(s3: S3Server) -> None:
    folder = fetch_tree("s3://data/tiles")
    assert names_below(folder) == names_below(s3.folder / "data" / "tiles")
    for name in names_below(folder):
        assert (folder / name).read_bytes() == (s3.folder / "data" / "tiles" / name).read_bytes()
    assert display_name(str(folder / "CE" / "x.png")) == "s3://data/tiles/CE/x.png"
    assert display_name("CE/x.png") == "CE/x.png"


def test_what_is_unchanged_is_fetched_once_and_what_changed_again(s3: S3Server) -> None:
    own = s3.folder / "own"
    for name in ("a.txt", "b.txt", "c.txt"):
        (own / name).write_text(name)
    folder = fetch_tree("s3://own")
    before = {name: (folder / name).stat().st_ino for name in names_below(folder)}
    (own / "b.txt").write_text("other")
    (own / "c.txt").unlink()
    assert fetch_tree("s3://own/") == folder
    assert names_below(folder) == ["a.txt", "b.txt"]
    assert (folder / "b.txt").read_text() == "other"
    assert (folder / "a.txt").stat().st_ino == before["a.txt"]
    # A file that the user or a full disk has cut is fetched again, too.
    (folder / "a.txt").write_text("")
    assert fetch_file("s3://own/a.txt").read_text() == "a.txt"


def test_missing_files_of_many_stay_missing(s3: S3Server) -> None:
    (s3.folder / "own" / "here.txt").write_text("here")
    fetch_files(["s3://own/here.txt", "s3://own/gone.txt", "s3://own/here.txt"])
    assert cached_path("s3://own/here.txt").read_text() == "here"
    assert not cached_path("s3://own/gone.txt").exists()


def test_a_connection_broken_in_the_middle_leaves_no_half_file(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = os.urandom(3_000_000)
    (s3.folder / "own" / "large.bin").write_bytes(content)
    with Relay(s3.address) as relay:
        use_server(monkeypatch, relay.address, tmp_path / "cache")
        relay.last_bytes = 1_000_000
        assert fetch_file("s3://own/large.bin").read_bytes() == content
    assert relay.deaths == 1
    assert names_below(tmp_path / "cache" / "plurum" / "storage" / "s3") == ["own/large.bin"]


@pytest.mark.parametrize(
    ("uri", "changes", "message"),
    [
        ("s3://data/tiles", {"AWS_SECRET_ACCESS_KEY": "wrong"}, r"^s3://data/tiles: access is denied \(Forbidden\)"),
        ("s3://data/tiles.csv", {"AWS_ACCESS_KEY_ID": "who"}, r"access is denied .* Check the credentials"),
        ("s3://missing/tiles", {}, "expected an object or a folder, got none"),
        ("s3://data/missing", {}, "expected an object or a folder, got none"),
        ("s3://data/../other", {}, r"expected an address without empty parts, '\.' and '\.\.'"),
        ("https://127.0.0.1:1/x.npz?key=secret", {}, r"^https://127\.0\.0\.1:1/x\.npz can't be read"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_what_can_not_be_read_is_one_line(
    uri: str, changes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=message) as caught:
        fetch_tree(uri)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    if changes:
        with pytest.raises(DataError, match=message):
            fetch_files([uri])


def test_a_missing_package_names_its_extra() -> None:
    for uri, extra in (("gs://bucket/x", "gcs"), ("az://container/x", "azure")):
        with pytest.raises(MissingExtraError, match=rf"plurum\[{extra}\]"):
            fetch_tree(uri)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("s3://b/k", True), ("https://h", True), ("s3:/b/k", False), ("ftp://h/x", False), ("C:\\x", False), ("x", False)],
)
def test_addresses_are_told_from_paths(name: str, expected: Any) -> None:
    assert is_uri(name) is expected


def test_signatures_of_web_addresses_stay_out_of_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    signed = cached_path("https://host/a/x.npz?signature=secret")
    assert signed != cached_path("https://host/a/x.npz") != cached_path("https://host/b/x.npz")
    assert signed.name == "x.npz"
    assert "secret" not in str(signed)
    assert display_name(str(signed)) == "https://host/a/x.npz"
