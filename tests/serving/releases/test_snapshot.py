"""A server's copy is what was compared, and stays when the repository changes or goes away."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from plurum.errors import RepositoryError
from plurum.files import sha256_of
from plurum.serving.releases.snapshot import Snapshot, Snapshots


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A small repository."""
    folder = tmp_path / "models"
    for name in ("voter", "member"):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text('backend: "python"')
        (folder / name / "1" / "model.py").write_text(f"# {name}")
    (folder / "ensemble" / "1").mkdir(parents=True)
    (folder / "ensemble" / "config.pbtxt").write_text('platform: "ensemble"')
    (folder / "ensemble.json").write_text("{}")
    return folder


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Snapshots]:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    copies = Snapshots(f"plurum_{uuid.uuid4().hex[:12]}_")
    yield copies
    copies.remove()
    assert list(place.iterdir()) == []


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_has_every_file_and_its_hash(models: Path, copies: Snapshots) -> None:
    copy = copies.take(models)
    assert files_of(copy.path) == files_of(models) == set(copy.hashes)
    assert copy.hashes == {name: sha256_of(models / name) for name in copy.hashes}
    assert (copy.path / "ensemble" / "1").is_dir()
    assert copy.path.parent.stat().st_mode & 0o777 == 0o700
    assert copy.size_bytes == sum((models / name).stat().st_size for name in copy.hashes)
    assert copies.take(models) is copy


def test_only_models_are_copied_and_no_compiled_python(models: Path, copies: Snapshots) -> None:
    compiled = models / "voter" / "1" / "__pycache__"
    compiled.mkdir()
    (compiled / "model.cpython-311.pyc").write_bytes(b"other code")
    (models / "report").mkdir()
    (models / "report" / "index.html").touch()
    (models / ".new").mkdir()
    copy = copies.take(models)
    assert {path.name for path in copy.path.iterdir()} == {"voter", "member", "ensemble", "ensemble.json"}
    assert list(copy.path.rglob("__pycache__")) == []


def test_links_are_copied_as_their_targets(models: Path, copies: Snapshots, tmp_path: Path) -> None:
    elsewhere = shutil.move(models / "voter" / "1", tmp_path / "elsewhere")
    (models / "voter" / "1").symlink_to(elsewhere)
    copy = copies.take(models)
    assert (copy.path / "voter" / "1" / "model.py").read_text() == "# voter"
    assert not (copy.path / "voter" / "1").is_symlink()
    shutil.rmtree(elsewhere)
    assert (copy.path / "voter" / "1" / "model.py").read_text() == "# voter"


def test_a_link_to_its_own_folder_is_refused(models: Path, copies: Snapshots) -> None:
    (models / "voter" / "1" / "again").symlink_to(models / "voter")
    with pytest.raises(RepositoryError, match=r"1/again: expected a folder, got a link to a folder that contains it"):
        copies.take(models)


@pytest.mark.parametrize("kind", ["pipe", "device", "dangling"])
def test_entries_that_are_not_files_are_refused_by_name(models: Path, copies: Snapshots, kind: str) -> None:
    path = models / "voter" / "1" / "model.py"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    reason = {"pipe": "it is a pipe", "device": "it is a device", "dangling": "No such file"}[kind]
    with pytest.raises(RepositoryError, match=rf"voter/1/model\.py can't be copied: {reason}"):
        copies.take(models)


def test_a_full_disk_is_reported_before_anything_is_written(
    models: Path, copies: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tempfile.gettempdir())._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = rf"^TMPDIR: expected at least 67 MB free in .* for a copy of {models}, got 10 MB\. Free some space"
    with pytest.raises(RepositoryError, match=message):
        copies.take(models)


def test_a_failed_copy_leaves_nothing(models: Path, copies: Snapshots) -> None:
    (models / "voter" / "1" / "large").write_bytes(b"x" * 100_000)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, former[1]))
    try:
        with pytest.raises(RepositoryError, match=rf"^{models} can't be copied: File too large"):
            copies.take(models)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert not copies.has("")
    assert copies.take(models).path.is_dir()


def test_unused_copies_are_removed(models: Path, copies: Snapshots) -> None:
    first, second = copies.take(models, "first"), copies.take(models, "second")
    copies.keep({"second", "", "third"})
    assert not first.path.exists()
    assert second.path.exists()
    assert (copies.has("first"), copies.has("second")) == (False, True)


def _change(models: Path) -> None:
    (models / "voter" / "1" / "model.py").write_text("# other")


def _replace_by_same_size(models: Path) -> None:
    path = models / "voter" / "1" / "model.py"
    about = path.stat()
    path.write_text("# retov")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))


def _loop(models: Path) -> None:
    shutil.rmtree(models)
    models.symlink_to(models)


DIFFERENCES = [
    (_change, "voter/1/model.py has changed"),
    (_replace_by_same_size, "voter/1/model.py has changed"),
    (lambda models: (models / "voter" / "1" / "model.py").unlink(), "voter/1/model.py is gone"),
    (lambda models: shutil.copytree(models / "voter", models / "evil"), "evil/1/model.py is new"),
    (lambda models: shutil.rmtree(models / "member"), "member/1/model.py is gone"),
    (shutil.rmtree, "the repository no longer exists"),
    (_loop, "the repository can't be read: Too many levels of symbolic links"),
]


@pytest.mark.parametrize(("change", "told"), DIFFERENCES, ids=[told for _, told in DIFFERENCES])
def test_a_changed_repository_is_reported_and_the_copy_stays(
    models: Path, copies: Snapshots, change: object, told: str
) -> None:
    copy = copies.take(models)
    assert copy.difference() is None
    assert callable(change)
    change(models)
    assert told in str(copy.difference())
    assert (copy.path / "voter" / "1" / "model.py").read_text() == "# voter"


def test_rewriting_the_same_content_is_no_difference(models: Path, copies: Snapshots) -> None:
    copy = copies.take(models)
    file = models / "voter" / "1" / "model.py"
    os.utime(file, (0, 0))
    assert copy.difference() is None
    text = file.read_text()
    file.unlink()
    file.write_text(text)
    assert copy.difference() is None


def test_messages_about_a_copy_name_the_repository(models: Path, copies: Snapshots) -> None:
    copy: Snapshot = copies.take(models)
    assert copy.translate(f"{copy.path / 'voter'} is broken") == f"{models / 'voter'} is broken"
