"""Images that take long keep nobody out: neither small images, nor the supervisor, which would start Triton anew."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from plurum.serving import Server, ServerSettings
from tests.pixel_matrix.jpeg_cells import saved
from tests.pixel_matrix.tiff_cells import smooth

# A quarter of a minute of attacks, behind the fixtures, on machines that may be busy.
pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timing, pytest.mark.timeout(900)]

SMALL = saved(Image.fromarray(smooth()))


def slow_image() -> bytes:
    """64 megapixels in 0.8 MB, by ten scans: legal, and some seconds of a core."""
    return saved(Image.new("RGB", (8000, 8000), "pink"), progressive=True, subsampling=0)


def asked(port: int, *images: bytes, timeout_s: float = 120) -> tuple[int, str]:
    """Ask Triton over HTTP; return the status, and what it said of an error."""
    data = b"".join(struct.pack("<I", len(image)) + image for image in images)
    tensor = {"name": "IMAGE", "shape": [len(images), 1], "datatype": "BYTES"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}]}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        headers = {"Inference-Header-Content-Length": str(len(head)), "Connection": "close"}
        connection.request("POST", "/v2/models/ensemble/infer", head + data, headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        return answer.status, text if answer.status != http.client.OK else ""
    finally:
        connection.close()


@pytest.fixture
def service(repository: Path, tmp_path: Path) -> Iterator[tuple[psutil.Process, int, Path]]:
    """`plurum serve`, its HTTP port and its log."""
    log = tmp_path / "log"
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "plurum", "serve", str(repository), *ports]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield psutil.Process(process.pid), int(found.group(1)), log
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_endless_slow_images_do_not_delay_small_ones(service: tuple[psutil.Process, int, Path]) -> None:
    process, port, log = service
    slow, over = slow_image(), threading.Event()
    answers: list[tuple[int, str]] = []

    def ask_slowly() -> None:
        while not over.is_set():
            answers.append(asked(port, slow))

    assert asked(port, SMALL) == (200, "")
    senders = [threading.Thread(target=ask_slowly) for _ in range(8)]
    for sender in senders:
        sender.start()
    times, most_bytes, end = [], 0, time.monotonic() + 15
    while time.monotonic() < end:
        begin = time.monotonic()
        assert asked(port, SMALL) == (200, "")
        times.append(time.monotonic() - begin)
        family = process.children(recursive=True)
        most_bytes = max([most_bytes, *(one.memory_info().rss for one in family if one.is_running())])
    over.set()
    for sender in senders:
        sender.join()
    sys.stdout.write(
        f"\n{len(times):,} small images while 8 senders looped: median {sorted(times)[len(times) // 2]:.3f} s, longest "
        f"{max(times):.2f} s; {sum(status == 200 for status, _ in answers)} slow ones decoded, "
        f"{sum(status == 503 for status, _ in answers):,} sent away; largest process {most_bytes >> 20} MiB\n"
    )
    # Slow ones are decoded, too, as many as there is room for; the others are told to come again.
    assert {status for status, _ in answers} == {200, 503}
    assert all("other large images are being decoded" in text for status, text in answers if status == 503)
    assert max(times) < 3, sorted(times)[-5:]
    assert most_bytes < 1 << 30
    assert "ready again" not in log.read_text()
    assert asked(port, SMALL) == (200, "")


def test_costly_images_are_refused_by_name(service: tuple[psutil.Process, int, Path]) -> None:
    _, port, log = service
    data = saved(Image.fromarray(smooth()), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    status, text = asked(port, data[:-2] + last * 20_000 + data[-2:])
    assert status == 400
    assert "scans repeat" in text
    # Neighbours in a batch that is put aside are named as well.
    status, text = asked(port, slow_image(), b"no image")
    assert status == 400
    assert "IMAGE[1] of 2: 8 bytes that are not a JPEG" in text
    assert asked(port, slow_image(), SMALL) == (200, "")
    assert "ready again" not in log.read_text()


def test_a_killed_decoder_fails_only_its_image(service: tuple[psutil.Process, int, Path]) -> None:
    process, port, log = service
    slow = slow_image()
    assert asked(port, slow) == (200, "")
    for number, said in ((signal.SIGSEGV, "image crashed its decoder"), (signal.SIGPROF, "image takes more than 10 s")):
        answers: list[tuple[int, str]] = []
        sender = threading.Thread(target=lambda found=answers: found.append(asked(port, slow)))
        sender.start()
        time.sleep(0.5)
        for one in decoders(process):
            one.send_signal(number)
        assert asked(port, SMALL) == (200, "")
        sender.join()
        assert answers[0][0] == 400
        assert said in answers[0][1]
        assert asked(port, slow) == (200, "")
    assert "ready again" not in log.read_text()


def test_no_decoder_outlives_its_server(repository: Path) -> None:
    # A server that the tests share may keep a decoder of its own.
    others = decoders(psutil.Process())
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        port = int(server.urls.http.rpartition(":")[2])
        assert asked(port, slow_image()) == (200, "")
        found = [one for one in decoders(psutil.Process()) if one not in others]
        assert found
    _, left = psutil.wait_procs(found, 10)
    assert not left


def decoders(process: psutil.Process) -> list[psutil.Process]:
    """Return the decoding processes below `process`."""
    found = []
    for one in process.children(recursive=True):
        # One that has just exited has no command line.
        with contextlib.suppress(psutil.Error):
            if "images.decoder" in one.cmdline():
                found.append(one)
    return found
