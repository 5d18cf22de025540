"""docs/reviewing.md: its commands run, its keys work, and its pictures are those that the browser tests make."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plurum.cli.main import run as command_line
from plurum.client.ui import ReviewStore
from plurum.run import Run
from tests.client.samples import prediction
from tests.client.ui.browser import page_at

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "reviewing.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^plurum .*$", "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)), re.MULTILINE)


def test_pictures_are_made_by_tests_and_small() -> None:
    files = (ROOT / "tests" / "client" / "ui" / name for name in ("test_browser.py", "test_reach.py"))
    tests = "".join(file.read_text(encoding="utf-8") for file in files)
    names = re.findall(r"\(images/ui/(.*?)\.png\)", PAGE)
    assert len(names) == 5
    for name in names:
        assert f'desk.picture(tab, "{name}")' in tests
        assert (ROOT / "docs" / "images" / "ui" / f"{name}.png").stat().st_size < 100_000
    assert {file.stem for file in (ROOT / "docs" / "images" / "ui").iterdir()} == set(names)


def test_docs_list_every_key() -> None:
    template = (ROOT / "client" / "ui" / "templates" / "review.html").read_text(encoding="utf-8")
    keys = {key for keys in re.findall(r'data-key="([\w ]+)"', template) for key in keys.split()}
    table = PAGE[PAGE.index("| key |") : PAGE.index("It works on a phone")]
    named = {{"→": "ArrowRight", "←": "ArrowLeft"}.get(key, key) for key in re.findall(r"`(\S+)`", table)}
    assert {key if len(key) > 1 else key.lower() for key in named} - set("190/") == keys


@pytest.mark.slow
def test_the_commands_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.path, "runs/demo")
    # tests/docs runs those that draw audits.
    page, export, *others = (one for one in COMMANDS if not one.startswith(("plurum fit", "plurum export")))
    assert page.startswith("plurum ui --store reviews")
    with page_at("--url", "127.0.0.1:1", *shlex.split(page)[2:]):
        pass
    store = ReviewStore(Path("reviews"))
    for number, pixels in enumerate(np.array(run.pixels()[:20])):
        Image.fromarray(pixels).save("scan.png")
        sha256 = store.add(Path("scan.png").read_bytes(), f"scan{number}.png", prediction())
        store.decide(sha256, "CE" if number % 2 else "LAA", 0)
    for command in (export, *others):
        monkeypatch.setattr("sys.argv", shlex.split(command))
        with pytest.raises(SystemExit) as caught:
            command_line()
        assert not caught.value.code, command
    assert len(others) == 2
    assert Run(Path("runs/next")).members()[0].classes == ("CE", "LAA")
