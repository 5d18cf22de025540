"""Keys and certificates are read only from regular files of limited size."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from plurum.client import EnsembleClient, Tls
from plurum.errors import PlurumError
from plurum.regular_files import MAX_SECRET_BYTES
from plurum.serving.gateway.connections.keys import read_keys
from plurum.serving.gateway.server import run_gateway
from plurum.serving.triton.certificates import check_certificates
from plurum.settings.serving import GatewaySettings, ServerTls


def _gateway(cert: Path, key: Path) -> None:
    run_gateway(GatewaySettings(port=0, metrics_port=0, tls_cert=cert, tls_key=key), lambda _: None)


READERS: dict[str, Callable[[Path], object]] = {
    "keys of a gateway": read_keys,
    "certificate of a gateway": lambda path: _gateway(path, path),
    "certificate of a server": lambda path: check_certificates(ServerTls(cert=path, key=path)),
    "authority of a client": lambda path: EnsembleClient("https://127.0.0.1:9", tls=Tls(ca_file=path)).served,
    "authority of a client over gRPC": lambda path: EnsembleClient("grpcs://127.0.0.1:9", tls=Tls(ca_file=path)).served,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "too large"])
def test_a_secret_that_is_not_a_small_regular_file_is_refused(reader: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    said = "it is a"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(MAX_SECRET_BYTES + 1)
        said = "1,048,577 bytes"
    with pytest.raises(PlurumError, match=said):
        READERS[reader](path)
