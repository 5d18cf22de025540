"""Run what the pages of docs/ show: their commands, one after another, and their Python."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine

__all__ = [
    "DOCS",
    "ROOT",
    "SMALL_DIGITS",
    "Terminal",
    "blocks",
    "commands",
    "keep_picture",
    "run_python",
    "text_of",
    "without_numbers",
]

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Changes of commands whose data may be few, for the fixture `small_digits`.
SMALL_DIGITS = {"train digits ": "train digits.npz ", "compare digits ": "compare digits.npz "}
_PORTS = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--status-port", "0"]
_PROGRAMS = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}


def text_of(page: str) -> str:
    """Return the text of docs/`page`."""
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a language, which is a pattern, on docs/`page`."""
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the lines of the page's blocks of shell commands."""
    return [line for block in blocks(page, "(?:ba)?sh") for line in block.splitlines() if line]


def keep_picture(path: Path, page: str) -> None:
    """Check that docs/`page` shows the picture at `path`, and copy it to `PLURUM_PICTURES` if this folder is set."""
    assert f"(images/{page.removesuffix('.md')}/{path.name})" in text_of(page)
    assert path.is_file()
    if folder := os.environ.get("PLURUM_PICTURES"):
        copy = Path(folder, page.removesuffix(".md"), path.name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def run_python(code: str, folder: Path) -> str:
    """Run a program in `folder`, check that it ends well without a warning, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), code
    return done.stdout


def without_numbers(text: str) -> str:
    """Return the words of a text: figures differ a little between processors, and so do widths of columns."""
    return " ".join(re.sub(r"─+", "", re.sub(r"\d+(\.\d+)?", "#", text)).split())


class Terminal:
    """Run the commands of a page in the current folder; `plurum` in this process, and `plurum serve` on free ports.

    Args:
        plurum: Runs the command line.
        terminal: Holds the server that runs, until the next one.
    """

    def __init__(self, plurum: CommandLine, terminal: ExitStack) -> None:
        self._plurum, self._server = plurum, terminal
        self._addresses: dict[str, str] = {}

    @property
    def grpc(self) -> str:
        """Address of the server that runs, for gRPC."""
        return self._addresses["127.0.0.1:8001"]

    def run(self, command: str, changes: Mapping[str, str] | None = None) -> str:
        """Run a command after `changes` of its text, check that it succeeds, and return what `plurum` prints."""
        for old, new in {**(changes or {}), **self._addresses}.items():
            command = command.replace(old, new)
        words = shlex.split(command)
        if words[:2] == ["plurum", "serve"]:
            self._server.close()
            self._addresses = self._server.enter_context(_serving(words))
        elif words[0] == "plurum":
            if words[1] == "predict" and "--url" not in words:
                words += ["--url", self.grpc]
            code, out, err = self._plurum.ended(*words[1:])
            assert code == 0, f"{command}: {err}"
            return out
        elif words[0] in _PROGRAMS:
            subprocess.run([*_PROGRAMS[words[0]], *words[1:]], check=True, capture_output=True)
        else:
            subprocess.run(command, shell=True, check=True)  # noqa: S602 - our own page
        return ""


@contextmanager
def _serving(words: list[str]) -> Iterator[dict[str, str]]:
    """Run `plurum serve` on free ports; yield the address in place of each default one."""
    with subprocess.Popen([sys.executable, "-m", *words, *_PORTS], stdout=subprocess.PIPE, text=True) as server:
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
                pytest.fail(f"{words} did not say where it listens")
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    assert server.returncode == 0
