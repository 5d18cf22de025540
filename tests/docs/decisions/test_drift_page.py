"""Run the commands of docs/drift.md: a run of two classes, a reference, and two later months."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tests.docs.pages import Terminal, blocks, commands, keep_picture, without_numbers
from tests.sample_runs.decided_run import build_decided_run
from tests.sample_runs.site_images import write_site

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.timeout(900)]


def test_the_page_runs(plurum: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build_decided_run(Path("runs/clots"))
    write_site(Path("reference"), ce=100, laa=100)
    write_site(Path("november"), ce=100, laa=100, skip=100)
    write_site(Path("december"), ce=140, laa=10, skip=200)
    found: dict[str, tuple[int, str]] = {}
    with ExitStack() as stack:
        terminal = Terminal(plurum, stack)
        for command in commands("drift.md"):
            if command.startswith("plurum drift"):
                code, out, err = plurum.ended(*shlex.split(command)[1:])
                assert err == ""
                found[command] = code, out
            else:
                terminal.run(command)
    november, december, fit = found.values()
    assert november[0] == 0
    assert december[0] == 1
    # The images of this site are darker, and fewer of them are LAA.
    assert fit[0] == 1
    (shown,) = blocks("drift.md", "text")
    # Rows are in the order of p-values, which differ a little between processors.
    assert sorted(without_numbers(december[1]).split()) == sorted(without_numbers(shown).split())
    keep_picture(Path("reports/december/drift.png"), "drift.md")
    assert sorted(path.name for path in Path("reports/december").iterdir()) == ["drift.html", "drift.json", "drift.png"]
