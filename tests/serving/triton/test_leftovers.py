"""What a killed owner leaves is cleared away by the next one; nothing else is touched, whatever others have planted."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from plurum.serving.triton.leftovers import (
    SHARED_MEMORY,
    OwnedFolder,
    sweep_environments,
    sweep_killed_servers,
    sweep_shared_memory,
)
from plurum.serving.triton.processes import MARK

NOBODY = 65534
# What an owner does before it is killed: its folder, its shared memory, a process in a session of its own.
ABANDONED = """
import os, pathlib, subprocess, sys
from plurum.serving.triton.leftovers import OwnedFolder, SHARED_MEMORY
from plurum.serving.triton.processes import ServerProcesses
name = sys.argv[1]
folder = OwnedFolder(name)
(SHARED_MEMORY / f"{name}x").write_bytes(b"x")
words = [sys.executable, "-c", "import time; time.sleep(600)"]
marked = os.environ | {"PLURUM_SERVER": name}
process = subprocess.Popen(words, env=marked, stdout=subprocess.DEVNULL, start_new_session=True)
folder.record(process.pid)
while not ServerProcesses(name, process.pid).find():
    pass
print(folder.path, process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def name() -> str:
    return f"plurum_{uuid.uuid4().hex[:12]}_"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for temporary folders of this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def memory(name: str) -> Iterator[Path]:
    """Shared memory of a server."""
    path = SHARED_MEMORY / f"{name}x"
    path.write_bytes(b"x")
    yield path
    path.unlink(missing_ok=True)


def abandoned(temporary: Path, name: str) -> Path:
    """Return the folder of a server whose owner looks after it no more."""
    folder = temporary / f"{name}abc"
    folder.mkdir(mode=0o700)
    (folder / "lock").touch(mode=0o600)
    return folder


def test_an_owned_folder_is_left_alone_until_it_is_removed(temporary: Path, name: str, memory: Path) -> None:
    folder = OwnedFolder(name)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    sweep_killed_servers()
    assert folder.path.exists()
    assert memory.exists()
    folder.remove()
    folder.remove()
    assert list(temporary.iterdir()) == []


def test_folders_of_killed_owners_are_removed(temporary: Path, name: str) -> None:
    environment = os.environ | {"TMPDIR": str(temporary)}
    words = [sys.executable, "-c", ABANDONED, name]
    outcome = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    folder, process = outcome.stdout.split()
    assert Path(folder).is_dir()
    sweep_killed_servers()
    assert list(temporary.iterdir()) == []
    assert list(SHARED_MEMORY.glob(f"{name}*")) == []
    assert not psutil.pid_exists(int(process)) or psutil.Process(int(process)).status() == psutil.STATUS_ZOMBIE


def test_a_recorded_number_that_is_another_process_by_now_is_not_ended(temporary: Path, name: str) -> None:
    words = [sys.executable, "-c", "input()", f"{name}triton.log"]
    environment = {key: value for key, value in os.environ.items() if key != MARK}
    other = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, start_new_session=True)
    try:
        (abandoned(temporary, name) / "lock").write_text(str(other.pid))
        sweep_killed_servers()
        assert list(temporary.iterdir()) == []
        assert other.poll() is None
    finally:
        other.communicate()


@pytest.mark.parametrize("record", ["", "-1", "1", "abc", "9" * 30, "\x00"])
def test_folders_are_removed_whatever_their_lock_holds(temporary: Path, name: str, record: str) -> None:
    (abandoned(temporary, name) / "lock").write_text(record)
    sweep_killed_servers()
    assert list(temporary.iterdir()) == []


def test_no_link_is_followed(
    temporary: Path, name: str, tmp_path_factory: pytest.TempPathFactory, memory: Path
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    folder = abandoned(elsewhere, name)
    (temporary / f"{name}link").symlink_to(folder)
    planted = temporary / f"{name}def"
    planted.mkdir(mode=0o700)
    (planted / "lock").symlink_to(elsewhere / "created")
    fifo = temporary / f"{name}fifo"
    fifo.mkdir(mode=0o700)
    (fifo / "lock").mkdir()
    sweep_killed_servers()
    assert folder.exists()
    assert planted.exists()
    assert not (elsewhere / "created").exists()
    assert memory.exists()


def test_a_folder_that_others_may_write_to_is_left_alone(temporary: Path, name: str, memory: Path) -> None:
    folder = abandoned(temporary, name)
    folder.chmod(0o777)
    sweep_killed_servers()
    assert folder.exists()
    assert memory.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of other users")
def test_others_folders_and_memory_are_left_alone(temporary: Path, name: str, memory: Path) -> None:
    folder = abandoned(temporary, name)
    os.chown(folder, NOBODY, NOBODY)
    sweep_killed_servers()
    assert folder.exists()
    os.chown(memory, NOBODY, NOBODY)
    sweep_shared_memory(name)
    assert memory.exists()


def test_the_folder_that_a_killed_triton_leaves_is_removed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plurum.serving.triton.leftovers._ENVIRONMENTS", tmp_path)

    def made(name: str) -> Path:
        path = tmp_path / f"python_env_{name}"
        path.mkdir()
        # The clock of a file system runs in steps.
        time.sleep(0.02)
        return path

    former = made("AAAAAA")
    since_s = time.time()
    time.sleep(0.02)
    empty, full, others = made("BBBBBB"), made("CCCCCC"), made("DDDDDD")
    (full / "environment").write_text("x")
    linked = tmp_path / "python_env_EEEEEE"
    linked.symlink_to(former)
    if os.geteuid() == 0:
        os.chown(others, NOBODY, NOBODY)
    until_s = time.time()
    time.sleep(0.02)
    later = made("FFFFFF")
    sweep_environments(since_s, until_s)
    assert [path.exists() for path in (empty, former, full, linked, later)] == [False, True, True, True, True]
    assert others.exists() is (os.geteuid() == 0)
