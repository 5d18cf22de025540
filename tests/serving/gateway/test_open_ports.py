"""Ports that another machine can reach with the default settings."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from plurum.client import Tls
from tests.serving.certificates import new_authority, tls_options
from tests.serving.servers import FREE_OPTIONS

pytestmark = pytest.mark.triton

# Many ports at a time; says which are open.
_SCAN = """
import json, socket, sys

address, first, last = sys.argv[1], *map(int, sys.argv[2:])
found = []
for port in range(first, last + 1):
    with socket.socket() as knocking:
        knocking.settimeout(5)
        if knocking.connect_ex((address, port)) == 0:
            found.append(port)
print(json.dumps(found))
"""
# Says whether a grey image is answered; with a certificate, or without.
_PREDICT = """
import sys
import numpy as np
from plurum.client import EnsembleClient, Tls
from plurum.errors import ServerError

url, ca, *own = sys.argv[1:]
tls = Tls(ca, *own) if own else Tls(ca)
try:
    with EnsembleClient(url, tls=tls, timeout_s=5) as client:
        print(len(client.predict(np.full((1, 32, 32, 3), 128, np.uint8))))
except ServerError as error:
    print(error)
"""
# Loopback alone, and a network cable, of this machine's own.
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Machines:
    """Two network namespaces with a cable between them: one with the servers, one of a stranger."""

    servers: str
    stranger: str
    address: str = "10.231.87.1"

    def scan(self, first: int = 1, last: int = 65535) -> list[int]:
        """Return the open ports that the stranger finds."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.stranger, sys.executable, "-c", _SCAN, self.address, str(first), str(last)],
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        found: list[int] = json.loads(done.stdout)
        return found

    def predict(self, url: str, tls: Tls) -> str:
        """Return what the stranger gets for an image: the number of answers, or why there is none."""
        files = [str(file) for file in (tls.ca_file, tls.cert_file, tls.key_file) if file]
        command = ["ip", "netns", "exec", self.stranger, sys.executable, "-c", _PREDICT, url, *files]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    @contextlib.contextmanager
    def run(self, *words: str) -> Iterator[dict[str, str]]:
        """Run a plurum command beside the servers; gives where it answers."""
        command = ["ip", "netns", "exec", self.servers, sys.executable, "-m", "plurum", *words, "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield json.loads(process.stdout.readline() if process.stdout else "")
            finally:
                process.terminate()
                process.wait(30)


def _ip(words: str) -> None:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"ip {words}: {done.stderr.strip()}")


@pytest.fixture
def machines() -> Iterator[Machines]:
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and the command ip")
    number = f"{os.getpid()}x{next(_NUMBERS)}"
    two = Machines(f"servers-{number}", f"stranger-{number}")
    try:
        for name in (two.servers, two.stranger):
            _ip(f"netns add {name}")
            _ip(f"-n {name} link set lo up")
        _ip(f"-n {two.servers} link add cable type veth peer name cable netns {two.stranger}")
        for name, address in ((two.servers, two.address), (two.stranger, "10.231.87.2")):
            _ip(f"-n {name} addr add {address}/24 dev cable")
            _ip(f"-n {name} link set cable up")
        yield two
    finally:
        for name in (two.servers, two.stranger):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _port(url: str) -> int:
    return int(url.removesuffix("/metrics").rpartition(":")[2])


def test_another_machine_reaches_only_the_gateway_that_faces_it(repository: Path, machines: Machines) -> None:
    with machines.run("serve", str(repository), *FREE_OPTIONS) as urls:
        near = ("gateway", "--triton", urls["grpc"], "--port", "0", "--metrics-port", "0")
        with machines.run(*near) as hidden:
            assert machines.scan(_port(hidden["http"]), _port(hidden["http"])) == []
        with machines.run(*near, "--host", machines.address) as facing:
            assert machines.scan() == [_port(facing["http"])]


def test_another_machine_reaches_only_grpc_and_needs_a_certificate(
    repository: Path, machines: Machines, tmp_path: Path
) -> None:
    authority = new_authority(tmp_path / "tls")
    known = authority.client()
    words = ("--grpc-host", machines.address, *tls_options(authority.server(mutual=True)))
    with machines.run("serve", str(repository), *FREE_OPTIONS, *words) as urls:
        assert machines.scan() == [_port(urls["grpc"])]
        assert machines.predict(urls["grpc"], known) == "1"
        assert "no gRPC server responds" in machines.predict(urls["grpc"], Tls(ca_file=authority.ca))
