"""`plurum gateway` in a separate process."""

from __future__ import annotations

import re
import signal
import socket
import time

import pytest

from tests.cli.command_line import CommandLine
from tests.cli.processes import run_until_signal

# No server listens there: a gateway may start before its Triton.
NOWHERE = ("--triton", "127.0.0.1:1", "--port", "0", "--metrics-port", "0")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_urls_and_exits_normally_on_a_signal(end: signal.Signals) -> None:
    # After half a second, it has started to connect to Triton.
    done = run_until_signal("gateway", *NOWHERE, lines=4, end=end, meanwhile=lambda _: time.sleep(0.5))
    assert re.fullmatch(r"HTTP     http://127\.0\.0\.1:\d+\n", done.lines[0])
    assert re.fullmatch(r"metrics  http://127\.0\.0\.1:\d+/metrics\n", done.lines[1])
    assert done.lines[2] == f"try it:  curl --data-binary @IMAGE {done.lines[0].split()[1]}/predict\n"
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("\n") == 1
    assert "Triton does not respond: failed to connect" in done.stderr


def test_warning_when_it_faces_a_network_without_keys_or_tls() -> None:
    done = run_until_signal("gateway", *NOWHERE, "--host", "0.0.0.0", "--json", lines=1)  # noqa: S104 (on purpose)
    assert '"metrics": "http://127.0.0.1:' in done.lines[0]
    assert "every client that reaches 0.0.0.0 may send requests" in done.stderr
    assert "images and keys cross the network unencrypted" in done.stderr


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_used_port_of_the_gateway_gives_one_line(option: str, plurum: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = plurum.refused("gateway", *NOWHERE, option, port)
    assert refused == (
        f"plurum: {option}: expected a port that can be listened on, got {port} on 127.0.0.1: Address already in use. "
        f"Stop the program that uses it, or change {option}.\n"
    )
