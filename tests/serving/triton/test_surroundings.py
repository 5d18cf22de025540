"""Where `plurum serve` is started: it serves, or says in one line and at once why it can't."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plurum.errors import RepositoryError, ServerError
from plurum.serving import Server
from plurum.serving.triton.leftovers import SHARED_MEMORY
from plurum.serving.triton.surroundings import check_folder, check_names, check_shared_memory, name_failures
from tests.serving.servers import FREE_OPTIONS
from tests.surroundings import NEEDS_MOUNTS, namespace

# Starting Python and importing takes one of them on a quiet machine; Triton's own time is 120.
SOON_S = 20.0
MODEL = """
backend: "python"
input { name: "X" data_type: TYPE_FP32 dims: 1 }
output { name: "Y" data_type: TYPE_FP32 dims: 1 }
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository that is good enough to be started with."""
    model = tmp_path / "repository" / "model"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").touch()
    (model / "config.pbtxt").write_text(MODEL)
    return model.parent


@pytest.mark.parametrize("machine", ["riscv64", "ppc64le", "i686", ""])
def test_a_machine_where_shared_memory_stays_open_is_named(
    small: Path, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    server = Server(small)
    with pytest.raises(ServerError, match=f"^machine: expected x86_64 or aarch64, got {machine}.*can't be closed"):
        server.start()
    assert not list(SHARED_MEMORY.glob(f"{server.name}*"))
    assert not server.processes()


def refusal(repository: Path, temporary: Path, mounts: dict[Path, str] | None = None) -> str:
    """Return the line with which serve refuses to start with this temporary folder."""
    command = [sys.executable, "-m", "plurum", "serve", repository, *FREE_OPTIONS]
    start = time.monotonic()
    ended = subprocess.run(
        namespace(mounts, command) if mounts else [*map(str, command)],
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    # Before it: that nothing lists the repository's files, and at the first start that Triton's environment is made.
    *warnings, line = ended.stderr.splitlines(keepends=True)
    assert line.startswith("plurum: ")
    assert all("no export.json" in warning or "environment" in warning for warning in warnings)
    assert time.monotonic() - start < SOON_S
    return line


@pytest.mark.parametrize(
    "name", ["a b", "a'b", 'a"b', "a$b", "a`b", "a;b", "a\\b", "a{b,c}", "ä", "a\nb", "a:b", b"\xe4"]
)
def test_a_temporary_folder_that_bash_would_divide_is_named(small: Path, tmp_path: Path, name: str | bytes) -> None:
    temporary = tmp_path / os.fsdecode(name)
    temporary.mkdir()
    assert "plurum: TMPDIR: expected a path of ASCII letters" in refusal(small, temporary)
    assert list(temporary.iterdir()) == []


@NEEDS_MOUNTS
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            "noexec,mode=1777",
            r"TMPDIR: expected a file system that programs may run from, got \S+, which is mounted noexec",
        ),
        ("size=8k", r"TMPDIR: expected at least \d+ MB free in \S+"),
        ("size=1m", r"TMPDIR: expected at least \d+ MB free in \S+"),
    ],
)
def test_a_temporary_folder_that_nothing_fits_or_runs_in_is_named(
    small: Path, tmp_path: Path, options: str, reason: str
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    assert re.search(reason, refusal(small, temporary, {temporary: options}))


@NEEDS_MOUNTS
@pytest.mark.parametrize(
    ("options", "reason"),
    [("size=64k", r"expected at least \d MiB free"), ("ro", "expected a folder that can be written to")],
)
def test_shared_memory_that_is_full_or_read_only_is_named(
    small: Path, tmp_path: Path, options: str, reason: str
) -> None:
    assert re.search(f"^plurum: {SHARED_MEMORY}: {reason}", refusal(small, tmp_path, {SHARED_MEMORY: options}))


def test_ordinary_folders_are_accepted(tmp_path: Path) -> None:
    for name in ("-a", "a.b_c", "a,b=c", "a@b%c", "~a^b", "x" * 200):
        (tmp_path / name).mkdir()
        check_folder(tmp_path / name, runs_code=True)
    check_names(tmp_path, ["ensemble", "vit_base_patch16_224.augreg-1a2b3c4d"])
    check_shared_memory(1)


@pytest.mark.parametrize("name", ["a b", "a$(touch x)", "../a", "a/b", "ä", ""])
def test_a_model_that_triton_could_not_start_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match="expected model names of ASCII letters"):
        check_names(tmp_path, ["good", name])


def test_more_instances_than_shared_memory_holds_are_named() -> None:
    with pytest.raises(ServerError, match="expected at least 1000000 MiB free, one for each instance of a model"):
        check_shared_memory(1_000_000)


def test_errors_of_the_system_name_the_file() -> None:
    with pytest.raises(ServerError, match=r"^/proc/plurum can't be used: "), name_failures():
        Path("/proc/plurum").mkdir()


# In a namespace of its own, so that the small disk is this process's and its children's alone.
FULL_RELEASES = """
import json, os, subprocess, sys, urllib.request
from pathlib import Path

repository, newer, place, *options = sys.argv[1:]
releases, command = Path(place) / "live", [sys.executable, "-m", "plurum"]
serve = [*command, "serve", repository, "--releases", releases, *options, "--json"]
with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
    urls = json.loads(server.stdout.readline())
    before = (releases / "state.json").read_bytes()
    filler = os.open(Path(place) / "filler", os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(filler, bytes(4096))
    except OSError as error:
        print(error.strerror)
    for arguments in ([newer], ["--back"]):
        said = subprocess.run([*command, "rollout", *arguments, "--releases", releases], capture_output=True, text=True)
        print(said.returncode, said.stderr.count("\\n"), "No space left on device" in said.stderr)
    print((releases / "state.json").read_bytes() == before, len(list((releases / "releases").iterdir())))
    print(sorted(path.name for path in releases.iterdir()))
    print(urllib.request.urlopen(urls["status"] + "/v2/health/ready", timeout=10).status)
    server.terminate()
print(server.returncode)
"""


@pytest.mark.triton
@NEEDS_MOUNTS
def test_a_full_disk_refuses_a_rollout_and_serving_continues(repository: Path, tmp_path: Path) -> None:
    newer, place = Path(shutil.copytree(repository, tmp_path / "newer")), tmp_path / "small"
    (newer / "questions.json").write_bytes((newer / "questions.json").read_bytes() + b"\n")
    place.mkdir()
    used = sum(path.stat().st_size for path in repository.rglob("*") if path.is_file())
    command = [sys.executable, "-c", FULL_RELEASES, repository, newer, place, *FREE_OPTIONS]
    ended = subprocess.run(
        namespace({place: f"size={used * 3 // 2}"}, command), capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout.splitlines() == [
        "No space left on device",
        "2 1 True",
        "2 1 True",
        "True 1",
        "['lock', 'releases', 'state.json']",
        "200",
        "0",
    ], ended.stderr
