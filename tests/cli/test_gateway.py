"""`plurum gateway` in a separate process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time

import pytest

# No server listens there: a gateway may start before its Triton.
NOWHERE = ("--triton", "127.0.0.1:1", "--port", "0", "--metrics-port", "0")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "plurum", "gateway", *map(str, arguments)]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_answers_and_a_signal_ends_it_well(end: signal.Signals) -> None:
    with subprocess.Popen(command(*NOWHERE), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(4)]
            assert re.fullmatch(r"HTTP     http://127\.0\.0\.1:\d+\n", lines[0])
            assert re.fullmatch(r"metrics  http://127\.0\.0\.1:\d+/metrics\n", lines[1])
            assert lines[2] == f"try it:  curl --data-binary @IMAGE {lines[0].split()[1]}/predict\n"
            # By then it has started to connect to Triton.
            time.sleep(0.5)
            process.send_signal(end)
            out, err = process.communicate(timeout=15)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    assert err.count("\n") == 1
    assert "Triton does not respond: failed to connect" in err


def test_facing_a_network_without_keys_or_tls_is_warned_of() -> None:
    with subprocess.Popen(
        command(*NOWHERE, "--host", "0.0.0.0", "--json"),  # noqa: S104 (what is warned of)
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert '"metrics": "http://127.0.0.1:' in process.stdout.readline()
            process.terminate()
            _, err = process.communicate(timeout=15)
        finally:
            process.kill()
    assert "every client that reaches 0.0.0.0 may send requests" in err
    assert "images and keys cross the network unencrypted" in err


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_that_is_taken_is_one_line(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = subprocess.run(
            command(*NOWHERE, option, port), capture_output=True, text=True, check=False, timeout=60
        )
    assert outcome.returncode == 2
    assert outcome.stderr == (
        f"plurum: {option}: expected a port that can be listened on, got {port} on 127.0.0.1: Address already in use. "
        f"Stop the program that uses it, or change {option}.\n"
    )
