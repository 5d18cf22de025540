"""The command line in unusual folders and with unusual streams: it works, or explains in one line why not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.surroundings import NEEDS_MOUNTS, namespace
from tests.training.data_files import write_classes

COMMANDS: tuple[str, ...] = ("bench", "compare", "data", "demo", "doctor", "evaluate", "export", "fit")
COMMANDS += ("gateway", "predict", "rollout", "serve", "train", "tune", "ui")
LOCALES: dict[str, dict[str, str]] = {
    "C": {"LC_ALL": "C"},
    "POSIX": {"LC_ALL": "POSIX"},
    # By default Python uses UTF-8 in these locales.
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "unknown": {"LC_ALL": "xx_XX"},
    "unset": {},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "dumb": {"TERM": "dumb", "COLUMNS": "0", "NO_COLOR": "1"},
}
NAMES = ["a b", "a'b\"c", "äöü", "$a;`b`", "-a", "a\nb", "a[b]*", "x" * 200, b"\xe4"]
# Python and its imports take one second on an idle machine.
SOON_S = 30.0


def plurum(
    *arguments: object,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    redirect: str = "",
    mounts: dict[Path, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line with a plain environment and without a terminal.

    Args:
        arguments: Of the command.
        env: More of the environment.
        cwd: Where.
        redirect: Redirections, as sh has them.
        mounts: Options of what is mounted, by folder.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    command: Sequence[object] = [sys.executable, "-m", "plurum", *arguments]
    if redirect:
        command = ["sh", "-c", f'exec "$@" {redirect}', "sh", *command]
    if mounts:
        command = namespace(mounts, command)
    return subprocess.run(
        [os.fsencode(str(one)) for one in command],
        env=kept | (env or {}),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SOON_S,
        check=False,
    )


def place(folder: Path, name: str | bytes) -> Path:
    made = folder / os.fsdecode(name)
    made.mkdir()
    return made


def refused(ended: subprocess.CompletedProcess[bytes], reason: bytes) -> None:
    assert ended.returncode == 2, ended.stderr.decode()
    assert ended.stderr.startswith(b"plurum: "), ended.stderr.decode()
    assert ended.stderr.count(b"\n") == 1, ended.stderr.decode()
    assert reason in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["ascii", "dumb"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_shown_in_every_locale(command: str, locale: str) -> None:
    ended = plurum(command, "--help", env=LOCALES[locale])
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"Usage" in ended.stdout


@pytest.mark.parametrize("locale", LOCALES)
def test_a_report_is_shown_in_every_locale(tmp_path: Path, locale: str) -> None:
    write_classes(place(tmp_path, "müde"), {"CÉ": 4, "LÄA": 4})
    ended = plurum("data", tmp_path / "müde", env=LOCALES[locale])
    if locale == "ascii":
        refused(ended, b"unprintable characters; rename it")
    else:
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert b"C\\xc9" in ended.stdout or "CÉ".encode() in ended.stdout or "CÉ".encode("latin-1") in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_images_are_read_wherever_they_lie(tmp_path: Path, name: str | bytes) -> None:
    folder = place(tmp_path, name)
    write_classes(place(folder, "data"), {"CE": 4, "LAA": 4})
    for path, where, locale in ((folder / "data", None, "ascii"), ("data", folder, "unset")):
        ended = plurum("data", path, env=LOCALES[locale], cwd=where)
        assert (ended.returncode, ended.stderr) == (0, b""), ended.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_path_gives_one_line_whatever_its_name(tmp_path: Path, name: str | bytes) -> None:
    missing = place(tmp_path, name) / "missing"
    for command in ("doctor", "data"):
        start = time.monotonic()
        refused(plurum(command, missing, env=LOCALES["ascii"]), b"missing")
        assert time.monotonic() - start < SOON_S


def test_a_path_that_is_no_text_is_not_written_into_json(tmp_path: Path) -> None:
    data = place(tmp_path, b"\xe4")
    write_classes(data, {"CE": 4, "LAA": 4})
    ended = plurum("train", data, "--arch", "resnet10t", "--out", tmp_path / "run")
    refused(ended, b"train: expected paths in UTF-8, got ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["data", "predict", "--help"])
def test_closed_streams_cause_no_traceback(tmp_path: Path, closed: str, command: str) -> None:
    data = write_classes(place(tmp_path, "data"), {"CE": 4, "LAA": 4})
    arguments: dict[str, list[object]] = {
        "data": ["data", data, "--plot", tmp_path / "plot.png"],
        "predict": ["predict", data, "--url", "127.0.0.1:1", "--timeout", "1", "--out", tmp_path / "out.csv"],
        "--help": ["--help"],
    }
    ended = plurum(*arguments[command], redirect=closed)
    assert ended.returncode == (2 if command == "predict" else 0), ended.stderr.decode()
    assert b"Traceback" not in ended.stderr
    if command == "data":
        # Output for a closed stream is not written to the file that would have got its descriptor.
        assert (tmp_path / "plot.png").read_bytes()[-8:-4] == b"IEND"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["--help"], ["data", "digits"], ["data", "digits", "--json"]])
def test_a_full_output_gives_one_line(arguments: list[str]) -> None:
    refused(plurum(*arguments, redirect=">/dev/full"), b"No space left on device")


@NEEDS_MOUNTS
def test_a_mount_point_is_refused_as_a_folder_to_replace(tmp_path: Path) -> None:
    out = place(tmp_path, "out")
    code = "from plurum.files import atomic_folder; from pathlib import Path; import sys\n"
    code += "with atomic_folder(Path(sys.argv[1])): pass"
    ended = subprocess.run(
        namespace({out: "size=1m"}, [sys.executable, "-c", code, out]), capture_output=True, text=True, check=False
    )
    assert "is a mount point, which can't be replaced atomically" in ended.stderr
