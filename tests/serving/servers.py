"""Servers of tests: on free ports, and what is left of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from plurum.serving import Server, ServerSettings
from plurum.serving.triton.leftovers import SHARED_MEMORY
from plurum.serving.triton.processes import MARK

__all__ = ["FREE", "FREE_OPTIONS", "changed_repository", "listening", "nothing_is_left", "triton_of"]

FREE = ServerSettings(http_port=0, grpc_port=0, metrics_port=0)
FREE_OPTIONS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--status-port", "0")


def nothing_is_left(server: Server) -> bool:
    places = [*SHARED_MEMORY.glob(f"{server.name}*"), *Path(server.log.path).parent.glob(f"{server.name}*")]
    return not server.processes() and not [path for path in places if path != server.log.path]


def triton_of(server: Server) -> int:
    """Return the id of the server's main process."""
    (triton,) = (one.pid for one in psutil.Process().children() if one.environ().get(MARK) == server.name)
    return triton


def listening(ports: set[int]) -> dict[int, str]:
    """Return the addresses, as the kernel writes them, that listen on these ports; of IPv4 also as mapped into IPv6."""
    lines = [
        line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    places = [words[1].split(":") for words in lines if words[3] == "0A"]
    return {
        int(port, 16): address.removeprefix("0000000000000000FFFF0000")
        for address, port in places
        if int(port, 16) in ports
    }


def changed_repository(repository: Path, folder: Path, code: str, model: str = "voter") -> Path:
    """Return a copy of a repository in `folder`, with more code in one of its Python models."""
    copy = shutil.copytree(repository, folder / "repository")
    with (copy / model / "1" / "model.py").open("a") as file:
        file.write(code)
    return copy
