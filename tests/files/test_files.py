from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plurum.errors import OutputError
from plurum.files import atomic_file, atomic_folder, sha256_of, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "large").write_bytes(data)
    assert sha256_of(tmp_path / "large") == hashlib.sha256(data).hexdigest()


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_file(path) as hidden:
        hidden.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]


def test_the_old_file_stays_until_then(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_file(path) as hidden:
        hidden.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, BrokenPipeError])
def test_the_old_file_stays_when_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_file(path) as hidden:
            hidden.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_full_disk_leaves_the_last_good_file(tmp_path: Path) -> None:
    """A limit on file sizes simulates a full disk: the kernel refuses the write in the same way."""
    path = tmp_path / "file.txt"
    path.write_text("the last good one")
    script = """
import resource, signal, sys
from pathlib import Path
from plurum.errors import OutputError
from plurum.files import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_text(Path(sys.argv[1]), "x" * 100_000)
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path} can't be written: File too large\n"
    assert path.read_text() == "the last good one"
    assert names(tmp_path) == ["file.txt"]


def test_a_place_that_can_not_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"below can't be written: (Not a directory|File exists)"):
        write_text(tmp_path / "file" / "below", "text")
    with (
        pytest.raises(OutputError, match=r"below can't be written: (Not a directory|File exists)"),
        atomic_folder(tmp_path / "file" / "below"),
    ):
        pass


def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a file, got the folder"):
        write_text(tmp_path, "text")
    assert names(tmp_path) == []


def test_a_folder_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as hidden:
        (hidden / "one").write_text("1")
        assert not path.exists()
    assert names(path) == ["one"]
    assert names(path.parent) == ["folder"]


def test_a_new_folder_takes_the_old_ones_place(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("")
    with atomic_folder(path) as hidden:
        (hidden / "new").write_text("")
        assert names(path) == ["old"]
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_the_old_folder_stays_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("")

    def fill_half() -> None:
        with atomic_folder(path) as hidden:
            (hidden / "new").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill_half()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_a_reader_always_finds_the_old_or_the_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_folder(path) as hidden:
        (hidden / "here").write_text("")
    missed: list[int] = []
    looks: list[None] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            looks.append(None)
            if not path.is_dir():
                missed.append(len(looks))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(200):
            with atomic_folder(path) as hidden:
                (hidden / "here").write_text("")
    finally:
        done.set()
        reader.join()
    assert len(looks) > 200
    assert missed == []


@pytest.mark.parametrize(
    ("mask", "private", "modes"),
    [
        (0o000, True, (0o600, 0o700)),
        (0o022, True, (0o600, 0o700)),
        (0o000, False, (0o666, 0o777)),
        (0o027, False, (0o640, 0o750)),
        (0o077, False, (0o600, 0o700)),
    ],
)
def test_modes_follow_the_umask_unless_private_from_the_first_moment(
    tmp_path: Path, mask: int, private: bool, modes: tuple[int, int]
) -> None:
    former = os.umask(mask)
    try:
        with atomic_file(tmp_path / "file", private=private) as hidden:
            assert mode_of(hidden) == modes[0]
        with atomic_folder(tmp_path / "folder", private=private) as hidden:
            assert mode_of(hidden) == modes[1]
    finally:
        os.umask(former)
    assert (mode_of(tmp_path / "file"), mode_of(tmp_path / "folder")) == modes


@pytest.mark.parametrize("private", [True, False])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, private: bool) -> None:
    for mode in (0o400, 0o640, 0o644):
        path = tmp_path / f"{mode:o}"
        path.write_text("old")
        path.chmod(mode)
        with atomic_file(path, private=private) as hidden:
            # Other users can't read unfinished files.
            assert mode_of(hidden) == 0o600
            hidden.write_text("new")
        assert (path.read_text(), mode_of(path)) == ("new", mode)
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o750)
    with atomic_folder(folder, private=private):
        pass
    assert mode_of(folder) == 0o750


def test_the_umask_is_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The umask is not changed, as it applies to all threads and would expose files that others write meanwhile."""

    def change(_: int) -> int:
        raise AssertionError

    monkeypatch.setattr(os, "umask", change)
    for _ in range(2):
        write_text(tmp_path / "text", "text")
        with atomic_folder(tmp_path / "folder"):
            pass


def test_a_file_system_that_swaps_nothing_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS has no RENAME_EXCHANGE; without a mount here, its error is simulated."""

    class Libc:
        @staticmethod
        def renameat2(*_: object) -> int:
            ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc)
    path = tmp_path / "folder"
    for name in ("one", "two"):
        with atomic_folder(path) as hidden:
            (hidden / name).write_text("")
        assert names(path) == [name]
    assert names(tmp_path) == ["folder"]


def test_a_failed_copy_names_its_first_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("one", "two"):
        (tmp_path / "source" / name).symlink_to("nowhere")

    def copy() -> None:
        with atomic_folder(tmp_path / "copy") as hidden:
            shutil.copytree(tmp_path / "source", hidden, dirs_exist_ok=True)

    with pytest.raises(OutputError, match=r"copy can't be written: .*No such file or directory: '[^']*'$"):
        copy()
    assert names(tmp_path) == ["source"]
