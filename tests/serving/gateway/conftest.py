"""Fixtures for tests of the gateway."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plurum.run import Run
from plurum.serving import Server
from tests.serving.certificates import self_signed
from tests.serving.gateway.gateways import Gateway, gateway, wait_until_ready


@pytest.fixture(scope="package")
def small(served: Server) -> Iterator[Gateway]:
    """A gateway with low limits in front of the server that tests share."""
    with gateway(served.urls.grpc, "--max-body-mib", "1", "--max-files", "12", "--receive-s", "3") as one:
        wait_until_ready(one)
        yield one


@pytest.fixture(scope="package")
def images(run: Run) -> list[bytes]:
    kinds = ("PNG", "JPEG", "TIFF")
    found = []
    for at, pixels in enumerate(np.array(run.pixels()[40:50])):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kinds[at % 3])
        found.append(file.getvalue())
    return found


@pytest.fixture(scope="package")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="package")
def tls(certificate: tuple[Path, Path]) -> dict[str, Any]:
    """Settings of a gateway with TLS."""
    return {"tls_cert": str(certificate[0]), "tls_key": str(certificate[1])}
