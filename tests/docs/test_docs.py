"""Run the commands of pages in docs/ one after another in an empty folder."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from plurum.cli.main import run
from tests.training.conftest import digit_arrays, idx

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
# Small inputs and short runs: the figures on the pages took minutes.
SMALL = {
    "python -m plurum.benchmarks.claims.training": (
        "--arch test_byobnet --size 32 --batch-size 8 --rounds 1 --steps 1 --epochs 1 --accuracy-size 32"
    ),
}
# Debian's package has 70,000 images and takes an hour: some digits in the same format replace them.
INSTALLED, HOUR_LONG = "/usr/share/datasets/fashion-mnist", "--epochs 8 --batch-size 128"
PROGRAMS = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
PORTS = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--status-port", "0"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def commands(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:ba)?sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def write_idx(folder: Path, arrays: dict[str, npt.NDArray[np.uint8]]) -> None:
    folder.mkdir()
    for ours, theirs in (("train", "train"), ("t10k", "test")):
        (folder / f"{ours}-images-idx3-ubyte").write_bytes(idx(arrays[f"{theirs}_images"]))
        (folder / f"{ours}-labels-idx1-ubyte").write_bytes(idx(arrays[f"{theirs}_labels"].reshape(-1)))


@contextmanager
def serving(command: str) -> Iterator[dict[str, str]]:
    """Run `plurum serve` on free ports; yield the free port of each default one."""
    words = [sys.executable, "-m", *shlex.split(command), *PORTS]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        found: dict[str, str] = {}
        try:
            assert server.stdout is not None
            for line in server.stdout:
                for name, port in (("gRPC", "127.0.0.1:8001"), ("HTTP", "127.0.0.1:8000")):
                    if at := re.search(rf"{name}\W+(?:http://)?(127\.0\.0\.1:\d+)", line):
                        found[port] = at[1]
                if len(found) == 2:
                    yield found
                    break
            else:
                pytest.fail(f"{command} did not say where it listens")
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    assert server.returncode == 0


def do(command: str, ports: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = re.sub(r"127\.0\.0\.1:800[01]", lambda found: ports[found[0]], command)
    if INSTALLED in command:
        command = command.replace(INSTALLED, "fashion-mnist").replace(HOUR_LONG, "--epochs 1")
    words = shlex.split(command)
    if words[0] == "plurum":
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as caught:
            run()
        assert not caught.value.code, command
    elif words[0] in PROGRAMS:
        words = [*PROGRAMS[words[0]], *words[1:], *shlex.split(SMALL.get(command, ""))]
        subprocess.run(words, check=True, capture_output=True)
    else:
        subprocess.run(command, shell=True, check=True)  # noqa: S602 - our own page


@pytest.mark.parametrize("page", ["training.md", pytest.param("evaluating.md", marks=pytest.mark.triton)])
def test_the_commands_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "fashion-mnist", digit_arrays())
    # Pages contain the commands that copy their pictures.
    (tmp_path / "docs" / "images" / Path(page).stem).mkdir(parents=True)
    with ExitStack() as terminal:
        ports: dict[str, str] = {}
        for command in commands(page):
            if command.startswith("plurum serve"):
                ports = terminal.enter_context(serving(command))
            else:
                do(command, ports, monkeypatch)


def test_the_python_example_of_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    do(commands("training.md")[0].replace("--epochs 12", "--epochs 1"), {}, monkeypatch)
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "training.md").read_text(), flags=re.DOTALL)
    said = subprocess.run([sys.executable, "-c", example], check=True, capture_output=True, text=True).stdout
    assert re.fullmatch(r"\d+\.\d+ 2\n", said)


def test_the_page_has_a_row_for_each_extra() -> None:
    project = (
        (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    )
    extras = re.findall(r"^([a-z0-9-]+) = \[", project.partition("\n[")[0], re.MULTILINE)
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", (DOCS / "installing.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == extras
