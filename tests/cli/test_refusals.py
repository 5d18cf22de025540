"""Options and inputs that commands refuse before seconds of imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine

_CHECKPOINT = ("--arch", "resnet18", "--classes", "CE,LAA")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("doctor", "NOWHERE"), "is not a Plurum model repository"),
        (("drift", "FILE"), "ANSWERS: expected files of predictions or --metrics, got none"),
        (("drift", "FILE", "NOWHERE"), "got another suffix"),
        (("drift", "NOWHERE", "--metrics", "127.0.0.1:1"), "expected a run or a model repository as REFERENCE"),
        (("drift", "FOLDER", "--metrics", "127.0.0.1:1"), "ensemble.json can't be read: No such file or directory"),
        (("drift", "FILE", "FILE", "--out", "FILE"), "is a file; name a folder for the report"),
        (("drift", "FILE", "FILE", "--alpha", "0"), "--alpha: expected a number greater than 0"),
        (("export", "NOWHERE"), "is not a run: it has no run.json"),
        (("export", "NOWHERE", "more"), "RUN: expected one run, got 2"),
        (("export", "NOWHERE", "--images", "scans"), "--images: expected only with checkpoints"),
        (("export", "NOWHERE", "--max-batch-size", "0"), "--max-batch-size: expected a number"),
        (("export", "NOWHERE", "--precision", "fp16"), "for --target cpu, got fp16"),
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
        (("train", "digits", "--arch", "resnet18", "--out", "FILE"), "is a file; name a folder for the run"),
        (("train", "NOWHERE", "--arch", "resnet18", "--out", "NEW", "--epochs", "0"), "--epochs: expected a number"),
        (("predict", "NOWHERE"), "expected an image or a folder of images"),
        (("predict", "FOLDER"), "expected images"),
        (
            ("predict", "FILE", "--url", "ftp://127.0.0.1"),
            "expected an address for grpc or http, got 'ftp://127.0.0.1'",
        ),
        (("predict", "FILE", "--out", "FOLDER"), "expected a file, got a folder. Give a file name."),
        (("predict", "FILE", "--out", "FILE"), "expected a name that ends in .csv, .jsonl"),
        (("predict", "FILE", "--patients", "NEW"), "expected DICOM images or a CSV manifest with a column patient"),
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
def test_refusals_do_not_import_pytorch(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
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


_TRAIN = ("train", "digits", "--out", "new")
_ARCH = ("--arch", "test_byobnet")
_TUNE = ("tune", "junk", "--out", "new")
_GATEWAY = ("gateway", "--triton", "127.0.0.1:1", "--port", "0", "--metrics-port", "0")
_UI = ("ui", "--url", "127.0.0.1:1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*_TRAIN, "--arch", "resnet19"), "timm has no architecture 'resnet19'; did you mean "),
        ((*_TRAIN, "--arch", "vit_tiny_patch16_224", "--image-size", 32), "can't take images of 32 x 32 pixels"),
        (
            (*_TRAIN, *_ARCH, "--epochs", -1, "--batch-size", 1),
            "--batch-size: expected a number greater than or equal to 2, got 1",
        ),
        ((*_TRAIN, *_ARCH, "--learning-rate", "nan"), "--learning-rate: expected a number less than or equal to 10"),
        ((*_TRAIN, *_ARCH, "--precision", "fp8"), "--precision: expected 'auto', 'fp32', 'bf16' or 'fp16', got 'fp8'"),
        ((*_TRAIN, *_ARCH, "--colour", "sepia"), "--colour: expected 'rgb' or 'grey', got 'sepia'"),
        ((*_TRAIN, *_ARCH, "--image-size", 4), "--image-size: expected a number greater than or equal to 8, got 4"),
        (("train", "digits", *_ARCH, "--out", "precious"), "is not a run and not empty. Choose a new or empty folder."),
        ((*_TRAIN, *_ARCH, "--precision", "fp16"), "--precision: fp16 needs a CUDA device"),
        (("fit", ".", "--mode", "loud"), "--mode: expected 'soft', 'hard' or 'stack', got 'loud'"),
        (("fit", ".", "--alpha", 0), "--alpha: expected a number greater than 0, got 0.0"),
        (("fit", ".", "--risk", "nan"), "--risk: expected a number less than or equal to 1, got nan"),
        (("fit", ".", "--select", "greedy", "--mode", "hard"), "--select: greedy selects the weights of a soft vote"),
        (("fit", ".", "--prior", "CE"), "--prior: expected CLASS=SHARE once per class, such as CE=0.7, got ['CE']"),
        (("fit", ".", "--prior", "CE=0.5", "--prior", "CE=0.5"), "--prior: expected CLASS=SHARE once per class, "),
        (("fit", ".", "--prior", "CE=most"), "--prior: expected a valid number, unable to parse string as a number"),
        (("fit", ".", "--prior", "CE=1.5"), "--prior: expected a number less than 1, got '1.5'"),
        (("fit", ".", "--prior", "CE=0.5", "--prior", "LAA=0.4"), "--prior: expected a sum of 1, got 0.9"),
        (("fit", ".", "--prior", "CE=0.5", "--prior-from", "ward"), "--prior: can't be combined with --prior-from"),
        (("fit", ".", "--prior-from", "ward", "--mode", "hard"), "--prior: corrects probabilities, and --mode hard"),
        ((*_TUNE, "--clients", "4,0"), "--clients: expected comma-separated integers above 0, got '4,0'"),
        ((*_TUNE, "--latency-ms", "0"), "--latency-ms: expected a number greater than 0, got 0.0"),
        ((*_TUNE, "--model", "fused"), "--model: expected 'ensemble' or 'ensemble_pixels', got 'fused'"),
        (_TUNE, "junk: expected a model repository folder, got a file"),
        ((*_GATEWAY, "--triton", "http://127.0.0.1:8000"), "--triton: expected HOST:PORT or unix:PATH"),
        ((*_GATEWAY, "--keys", "absent"), "--keys: expected a readable text file, got absent: No such file"),
        ((*_GATEWAY, "--tls-cert", "cert.pem"), "--tls-cert, --tls-key: expected both or neither, got only one"),
        ((*_GATEWAY, "--tls-cert", "junk", "--tls-key", "junk"), "expected a certificate and its private key"),
        ((*_GATEWAY, "--deadline-s", "200"), "expected at most 120, the --max-deadline-s, got 200"),
        ((*_GATEWAY, "--host", "192.0.2.1"), "got 0 on 192.0.2.1: "),
        ((*_UI, "--export", "out.csv"), "has no decisions yet"),
        ((*_UI, "--store", "precious"), "precious: expected a review store or an empty folder, got other files"),
        ((*_UI, "--run", "absent"), "absent is not a run"),
        ((*_UI, "--url", "127.0.0.1:8001/path"), "url: expected host:port"),
        ((*_UI, "--timeout-s", "0"), "timeout_s: expected a number of seconds above 0"),
        ((*_UI, "--host", "192.0.2.1"), "--port: expected a port that can be listened on, got 8085 on 192.0.2.1: "),
        (("bench",), "REPO, --url: expected exactly one of them"),
        (("bench", ".", "--url", "127.0.0.1:8001"), "expected exactly one of them"),
        (("bench", "--url", "nowhere"), "--url: expected HOST:PORT for gRPC or http://HOST:PORT, got nowhere"),
        (("bench", "--url", "a:1", "--url", "b:1"), "got two for grpc"),
        (("bench", ".", "--concurrency", "1,x"), "--concurrency: expected comma-separated integers above 0, got '1,x'"),
        (("bench", ".", "--rate", "0"), "--rate: expected comma-separated numbers above 0, got '0'"),
        (("bench", ".", "--concurrency", ""), "expected at least one load"),
        (("bench", ".", "--out", "."), "--out .: expected a new folder or one with earlier results"),
        (("bench", "--compare", "a", "b"), "a can't be read: No such file or directory"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(
    words: tuple[object, ...], said: str, plurum: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "precious" / "data"))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("mine")
    (tmp_path / "junk").write_text("junk")
    assert said in plurum.refused(*words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junk", "precious"]
