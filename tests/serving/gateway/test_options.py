"""Keys, settings and ports of a gateway, and the page of the docs that describes them."""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from plurum.errors import ServerError, SettingsError
from plurum.serving.gateway.admission import Admission
from plurum.serving.gateway.connections.keys import read_keys
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.settings.options import settings_from
from plurum.settings.serving import GatewaySettings
from plurum.web.server import open_listener


def keys_file(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_keys_are_found_by_either_header(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"a secret of the clinic").hexdigest()
    keys = read_keys(keys_file(tmp_path, f"# comment\n\nclinic:{digest}\n  another-secret-key  \n"))
    assert keys.names == ["clinic", "line-4"]
    assert keys.owner({"authorization": "Bearer a secret of the clinic"}) == "clinic"
    assert keys.owner({"authorization": "bearer  another-secret-key"}) == "line-4"
    assert keys.owner({"x-api-key": "another-secret-key"}) == "line-4"
    # Knowing the file is not knowing the key.
    for headers in ({}, {"x-api-key": ""}, {"x-api-key": digest}, {"authorization": "Basic another-secret-key"}):
        assert keys.owner(headers) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "expected at least one key"),
        ("# nothing\n", "expected at least one key"),
        ("hunter2\n", "expected 16 or more .*line 1 of"),
        ("long enough but of words\n", "expected 16 or more .*line 1 of"),
        (f"a:{'0' * 64}\na:{'1' * 64}\n", "got a repeated one in line 2 of"),
        (f"a:{'0' * 64}\nb:{'0' * 64}\n", "got a repeated one in line 2 of"),
    ],
)
def test_invalid_key_files_are_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault) as raised:
        read_keys(keys_file(tmp_path, text))
    assert "hunter2" not in str(raised.value)


def test_warning_about_readable_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = keys_file(tmp_path, "0123456789abcdef\n")
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        read_keys(path)
    assert "chmod 600" in caplog.text
    with pytest.raises(SettingsError, match=r"--keys: .*: No such file"):
        read_keys(tmp_path / "absent")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"triton": "http://127.0.0.1:8000"}, "HOST:PORT or unix:PATH"),
        ({"triton": "localhost"}, "HOST:PORT or unix:PATH"),
        ({"tls_cert": "cert.pem"}, "Give both"),
        ({"max_body_mib": 200}, "expected at least 600, 3 times --max-body-mib, got 512. Raise it"),
        ({"deadline_s": 500.0}, "--deadline-s: expected at most 120, the --max-deadline-s, got 500"),
        ({"deadline_s": -1.0}, "--deadline-s: expected a number greater than 0"),
    ],
)
def test_invalid_settings_are_refused(options: dict[str, object], fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        settings_from(GatewaySettings, **options)


@pytest.mark.parametrize("triton", ["127.0.0.1:8001", "[::1]:8001", "triton.local:8001", "unix:/run/triton.sock:8001"])
def test_valid_addresses_of_triton(triton: str) -> None:
    assert settings_from(GatewaySettings, triton=triton).triton == triton


def test_port_in_use_is_refused() -> None:
    with open_listener("127.0.0.1", 0, "--port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"--port: .* got {port} on 127.0.0.1: .*change --port"):
            open_listener("127.0.0.1", port, "--port")


PAGE = (Path(__file__).resolve().parents[3] / "docs" / "gateway.md").read_text(encoding="utf-8")


def test_docs_name_existing_metrics_and_options() -> None:
    metrics = GatewayMetrics()
    metrics.watch(Admission(1, 1), lambda: 0)
    there = generate_latest(metrics.registry).decode()
    names = {name.removesuffix("_total") for name in re.findall(r"`(plurum_gateway_\w+)", PAGE)}
    assert len(names) > 7
    assert all(name in there for name in names)
    fields = {f"--{name.replace('_', '-')}" for name in GatewaySettings.model_fields}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) - fields == {"--data-binary"}
    defaults = GatewaySettings()
    text = " ".join(PAGE.split())
    assert f"{defaults.receive_s:.0f} s for the whole request, {defaults.receive_s / 3:.0f} s for its head" in text
    assert f"While no client sends requests, it sends its own probe every {defaults.probe_interval_s:.0f} s" in text
    assert f"unresponsive Triton within {defaults.probe_interval_s + defaults.probe_timeout_s:.0f} s" in text
    assert f"as their deadline allows, at most {defaults.max_outage_s:.0f} s" in text


def test_commands_of_the_docs_make_a_key(tmp_path: Path) -> None:
    (block,) = [block for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) if "openssl rand" in block]
    commands = [line for line in block.splitlines() if not line.startswith(("plurum", "curl"))]
    subprocess.run(["bash", "-ec", "\n".join(commands)], cwd=tmp_path, check=True)
    keys = read_keys(tmp_path / "keys.txt")
    assert keys.owner({"x-api-key": (tmp_path / "clinic.key").read_text().strip()}) == "clinic"
