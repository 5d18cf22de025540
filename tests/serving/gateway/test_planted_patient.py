"""Nothing that identifies a planted patient appears in anything that Plurum writes or says, byte by byte.

Exempt are paths that the user typed, and DICOM reports, which are about the patient.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plurum.client.connection.payload import without_patient
from plurum.serving import Server
from tests.cli.processes import plurum_command
from tests.client.ui.browser import page_at
from tests.fuzz.dicom_mutations import broken_dicom, dicom_corpus
from tests.images.dicom_files import PATIENT_ID, dicom, identifying_values
from tests.serving.gateway.gateways import Gateway, gateway, wait_until_ready

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(600)]

_BROKEN = 24


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Files of the patient: usual ones, of frames, compressed, broken, and of kinds that are refused."""
    grey, corpus = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8), dicom_corpus()
    found = {f"usual{number}.dcm": data for number, data in enumerate([dicom(grey), *corpus])}
    for number in range(_BROKEN):
        draw = random.Random(number)
        found[f"broken{number}.dcm"] = broken_dicom(draw, draw.choice(corpus))
    odd: list[dict[str, Any]] = [{"PhotometricInterpretation": "HSV"}, {"Rows": 60_000, "Columns": 60_000}]
    return found | {f"odd{number}.dcm": dicom(grey, **elements) for number, elements in enumerate(odd)}


def response_of(url: str, body: bytes | None = None) -> bytes:
    """Return headers and body of any response."""
    request = urllib.request.Request(url, body, {"x-file-name": "scan.dcm", "x-stay": "1"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return bytes(reply.headers) + bytes(reply.read())
    except urllib.error.HTTPError as error:
        return bytes(error.headers) + error.read()


def everything_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each name below a folder and its content."""
    for path in folder.rglob("*"):
        yield str(path.relative_to(folder)), b"" if path.is_dir() else path.read_bytes()


def from_predict(one: Gateway, folder: Path, files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield what `plurum predict` writes and says, with every format of files."""
    (folder / "in").mkdir(parents=True)
    for name, data in files.items():
        (folder / "in" / name).write_bytes(data)
    for suffix in ("csv", "jsonl", "parquet"):
        options = ["--out", f"out/answers.{suffix}", "--patients", f"out/patients.{suffix}", "--url", one.http]
        command = plurum_command("predict", "in", *options, "--pseudonym-key-file", "out/key")
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        # Broken files have no prediction.
        assert done.returncode == 1, done.stderr
        yield f"predict to {suffix}", done.stdout + done.stderr
    yield from everything_below(folder / "out")


def from_gateway(one: Gateway, files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the responses of the gateway to whole files, which other programs may send, and its metrics."""
    for name, data in files.items():
        reply = one.predict(data)
        assert reply.status == 200 or 400 <= reply.status < 429, reply.body
        yield f"response to {name}", repr(reply.headers).encode() + reply.body
    yield "metrics of the gateway", response_of(one.metrics)


def from_page(served: Server, folder: Path, files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the responses of the page, also to reviews, and its store."""
    with page_at("--url", served.urls.grpc, "--store", folder, "--reviewer", "Ada") as url:
        for name, data in files.items():
            yield f"page for {name}", response_of(f"{url}/answers", data)
        sha256 = hashlib.sha256(without_patient(files["usual0.dcm"])).hexdigest()
        for path, body in ((f"answers/{sha256}/review", b""), ("review", None), (f"pictures/{sha256}", None)):
            yield path, response_of(f"{url}/{path}", body)
    assert (folder / "images" / f"{sha256}.dcm").is_file()
    yield from everything_below(folder)


def test_nothing_identifies_the_patient(served: Server, files: dict[str, bytes], tmp_path: Path) -> None:
    assert len(identifying_values(files["usual0.dcm"])) == 8
    with gateway(served.urls.grpc, "--max-body-mib", "1") as one:
        wait_until_ready(one)
        said = [*from_predict(one, tmp_path / "predict", files), *from_gateway(one, files)]
        one.process.terminate()
        assert one.process.stderr is not None
        said.append(("log of the gateway", one.process.stderr.read().encode()))
    said += from_page(served, tmp_path / "store", files)
    said += [("log of Triton", served.log.path.read_bytes()), ("metrics of Triton", response_of(served.urls.metrics))]
    assert {"answers.csv", "patients.parquet", "log of Triton"} <= {name for name, _ in said}
    for name, content in said:
        found = identifying_values(name.encode() + b" " + content)
        assert found == [], (name, found)
    # The user may keep IDs.
    command = plurum_command("predict", "in/usual0.dcm", "--keep-patient-ids", "--patients", "ids.csv")
    subprocess.run([*command, "--url", served.urls.grpc], cwd=tmp_path / "predict", check=True, capture_output=True)
    assert identifying_values((tmp_path / "predict" / "ids.csv").read_bytes()) == [PATIENT_ID]
