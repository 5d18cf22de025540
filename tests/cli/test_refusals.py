"""Options and inputs that commands refuse before seconds of imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_CHECKPOINT = ("--arch", "resnet18", "--classes", "CE,LAA")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("doctor", "NOWHERE"), "is not a Plurum model repository"),
        (("export", "NOWHERE"), "is not a run: it has no run.json"),
        (("export", "NOWHERE", "more"), "RUN: expected one run, got 2"),
        (("export", "NOWHERE", "--images", "scans"), "--images: expected only with checkpoints"),
        (
            ("export", "NOWHERE", "--max-batch-size", "0"),
            "--max-batch-size: expected a number",
        ),
        (
            ("export", "NOWHERE", "--precision", "fp16"),
            "for --target cpu, got fp16",
        ),
        (("export", "NOWHERE", "--build-engines"), "export.json can't be read"),
        (("export", "FILE"), "--arch, --classes, --out: expected all three with checkpoints"),
        (("export", "FILE", *_CHECKPOINT, "--out", "FOLDER"), "is not empty and not a model repository"),
        (("export", "FILE", *_CHECKPOINT, "--out", "NEW", "--mean", "1"), "--mean: expected three numbers"),
        (("export", "FILE", *_CHECKPOINT, "--out", "NEW", "--precision", "int8"), "Name some with --images DATA"),
        (("export", "FILE", "FILE", *_CHECKPOINT, "--out", "NEW"), "give the same member name 'one'"),
        (("export", "FILE", "NOWHERE", *_CHECKPOINT, "--out", "NEW"), "is not a file"),
        (("fit", "NOWHERE"), "is not a run: it has no run.json"),
        (("fit", "NOWHERE", "--alpha", "1"), "--alpha: expected a number less than 1, got 1.0"),
        (("fit", "FILE"), "is not a run"),
        (("evaluate", "NOWHERE"), "is not a run: it has no run.json"),
        (("evaluate", "NOWHERE", "--split", "train"), "--split: expected 'validation' or 'test', got 'train'"),
        (("evaluate", "NOWHERE", "--http"), "--http: expected together with --url"),
        (("evaluate", "NOWHERE", "--url", "127.0.0.1:1"), "is not a run: it has no run.json"),
        (("evaluate", "NOWHERE", "--out", "FILE"), "is a file; name a folder"),
        (("train", "NOWHERE", "--arch", "resnet18", "--out", "NEW", "--epochs", "0"), "--epochs: expected a number"),
        (("predict", "NOWHERE"), "expected an image or a folder of images"),
        (("predict", "FILE", "--out", "FILE"), "expected a name that ends in .csv, .jsonl"),
        (("predict", "FILE", "--patients", "NEW"), "--patients: expected a CSV manifest with a column patient"),
        (("predict", "FILE", "--tile-size", "3"), "--tile-size: expected a number greater than or equal to 8, got 3"),
        (("predict", "FILE", "--microns-per-pixel", "-1"), "--microns-per-pixel: expected a number greater than 0"),
        (("serve",), "REPO, --releases: expected at least one of them, got none"),
        (("serve", "NOWHERE"), "expected a model repository folder, got nothing"),
        (("serve", "FOLDER"), "is not a model repository: no folder in it has a config.pbtxt"),
        (("serve", "FOLDER", "--grpc-port", "70000"), "--grpc-port: expected a number less than or equal to 65535"),
        (("serve", "FOLDER", "--grpc-tls-cert", "FILE"), "--grpc-tls-cert, --grpc-tls-key: expected both, got one"),
        (("gateway", "--port", "-1"), "--port: expected a number greater than or equal to 0, got -1"),
        (("ui", "--max-image-mib", "0"), "--max-image-mib: expected a number greater than or equal to 1, got 0"),
        (("tune", "NOWHERE", "--out", "NEW", "--clients", "4,x"), "--clients: expected comma-separated integers"),
        (("compare", "NOWHERE", "--out", "NEW", "--rounds", "0"), "--rounds: expected a number"),
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
    assert not modules & {"torch", "onnx", "onnxruntime", "timm", "sklearn", "pandas", "tritonclient", "matplotlib"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.pt"]
