"""Run the commands of docs/storage.md against a real S3 server."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plurum.files import cache_folder
from plurum.run import Run
from tests.docs.pages import Terminal, commands
from tests.remote.s3_server import serve_s3, use_server

SMALLER = {"resnet10t": "test_resnet", "--epochs 4": "--epochs 1 --image-size 32"}


def write_tiles(bucket: Path) -> list[str]:
    rng = np.random.default_rng(0)
    names = [f"tiles/{label}/{number}.png" for number in range(10) for label in ("CE", "LAA")]
    for name in names:
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(bucket / name)
    rows = (f"{name},{Path(name).parent.name}" for name in names)
    (bucket / "tiles.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    return names


@pytest.mark.slow
@pytest.mark.triton
def test_the_commands_run_in_their_order(
    terminal: Terminal, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    # The server needs its environment, which takes minutes to make.
    (tmp_path / "cache" / "plurum").mkdir(parents=True)
    for environment in cache_folder().glob("server-*"):
        (tmp_path / "cache" / "plurum" / environment.name).symlink_to(environment)
    names = write_tiles(tmp_path / "buckets" / "hospital")
    shutil.copytree(repository, tmp_path / "buckets" / "hospital" / "model_repository")
    with serve_s3(tmp_path / "buckets") as store:
        use_server(monkeypatch, store.address, tmp_path / "cache")
        for command in commands("storage.md"):
            terminal.run(command, SMALLER)
    run = Run(tmp_path / "runs" / "tiles")
    assert run.data().source == "s3://hospital/tiles.csv"
    assert set(run.table().sources) == {f"s3://hospital/{name}" for name in names}
    with (tmp_path / "answers.csv").open(encoding="utf-8") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {f"s3://hospital/{name}" for name in names}
