"""What `plurum export` and `plurum doctor` refuse before seconds of imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_CHECKPOINT = ("--arch", "resnet18", "--classes", "CE,LAA")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("doctor", "NOWHERE"), "is no model repository of ours"),
        (("export", "NOWHERE"), "is no run: it has no run.json"),
        (("export", "NOWHERE", "more"), "2 runs are named"),
        (("export", "NOWHERE", "--images", "scans"), "--images is for checkpoints"),
        (("export", "NOWHERE", "--max-batch-size", "0"), "--max-batch-size is 0"),
        (("export", "NOWHERE", "--precision", "fp16"), "is not for target 'cpu'"),
        (("export", "NOWHERE", "--build-engines"), "export.json can't be read"),
        (("export", "FILE"), "checkpoints need --arch, --classes and --out"),
        (("export", "FILE", *_CHECKPOINT, "--out", "FOLDER"), "holds something else than a model repository"),
        (("export", "FILE", *_CHECKPOINT, "--out", "NEW", "--mean", "1"), "--mean is '1'"),
        (("export", "FILE", *_CHECKPOINT, "--out", "NEW", "--precision", "int8"), "name some with --images DATA"),
        (("export", "FILE", "FILE", *_CHECKPOINT, "--out", "NEW"), "would both be called 'one'"),
        (("export", "FILE", "NOWHERE", *_CHECKPOINT, "--out", "NEW"), "is no file"),
    ],
)
def test_what_is_refused_is_refused_without_pytorch(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    file = tmp_path / "one.pt"
    file.touch()
    places = {"NOWHERE": tmp_path / "nowhere", "FILE": file, "FOLDER": tmp_path, "NEW": tmp_path / "new"}
    command = [sys.executable, "-X", "importtime", "-m", "plurum", *(str(places.get(word, word)) for word in words)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = ended.stderr.splitlines()
    own = [line for line in lines if not line.startswith("import time:")]
    assert ended.returncode == 2
    assert len(own) == 1
    assert said in own[0]
    modules = {line.rpartition("|")[2].strip() for line in lines}
    assert "plurum.cli.main" in modules
    assert not modules & {"torch", "onnx", "onnxruntime", "timm", "sklearn", "pandas"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.pt"]
