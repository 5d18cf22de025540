"""Triton's gRPC over TLS: who is answered, who is refused, and what is said of files that can't be used."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from plurum.client import EnsembleClient, Tls
from plurum.errors import ServerError
from plurum.run import Run
from plurum.serving import Server
from plurum.serving.triton.certificates import check_certificates
from plurum.serving.triton.settings import Ports, server_arguments
from plurum.settings.serving import ServerTls
from tests.cli.processes import plurum_command, server_of, serving
from tests.serving.certificates import Authority, new_authority, openssl, tls_options
from tests.serving.servers import FREE, listening, nothing_is_left

EVERYWHERE = "0.0.0.0"  # noqa: S104 - what these tests are about


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return new_authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return new_authority(tmp_path_factory.mktemp("tls") / "theirs")


def here(server: Server) -> str:
    """Return where to ask a server that listens everywhere."""
    return server.urls.grpc.replace(EVERYWHERE, "127.0.0.1")


def is_answered(url: str, tls: Tls, run: Run) -> bool:
    """Whether this client is answered; one that isn't does not get as far as TLS goes."""
    said = ""
    with EnsembleClient(url, tls=tls, timeout_s=3) as client:
        try:
            return len(client.predict(np.array(run.pixels()[:2]))) == 2
        except ServerError as error:
            said = str(error)
    assert "no gRPC server responds" in said
    return False


def test_tls_settings_become_arguments_of_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tls = ServerTls(cert=Path("cert.pem"), key=Path("key.pem"))
    settings = FREE.model_copy(update={"grpc_tls": tls, "grpc_host": EVERYWHERE})
    told = server_arguments(settings, Ports(1, 2, 3), "models", "name")
    assert {f"--grpc-server-cert={tmp_path}/cert.pem", f"--grpc-server-key={tmp_path}/key.pem"} <= set(told)
    assert {"--grpc-use-ssl=true", "--grpc-address=0.0.0.0", "--http-address=127.0.0.1"} <= set(told)
    assert not any(word.startswith(("--grpc-use-ssl-mutual", "--grpc-root-cert")) for word in told)
    both = settings.model_copy(update={"grpc_tls": tls.model_copy(update={"client_ca": Path("ca.pem")})})
    told = server_arguments(both, Ports(1, 2, 3), "models", "name")
    assert {"--grpc-use-ssl-mutual=true", f"--grpc-root-cert={tmp_path}/ca.pem"} <= set(told)
    assert not any("ssl" in word.partition("=")[0] for word in server_arguments(FREE, Ports(1, 2, 3), "models", "name"))


def test_unusable_certificates_give_one_line(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server")
    other_cert, other_key = authority.issue("other")
    locked, rsa, garbage, torn = (tmp_path / name for name in ("locked.key", "rsa.key", "garbage.pem", "torn.pem"))
    openssl("pkey -aes128 -passout pass:x", "-in", key, "-out", locked)
    openssl("genrsa", "-out", rsa, "2048")
    edwards, torn_key, shorter = (tmp_path / name for name in ("edwards.key", "torn.key", "shorter-torn.key"))
    openssl("genpkey -algorithm ed25519", "-out", edwards)
    torn_key.write_bytes(key.read_bytes()[:60])
    shorter.write_bytes(key.read_bytes()[:58])
    garbage.write_bytes(os.urandom(500))
    torn.write_bytes(cert.read_bytes()[:200])
    faults = [
        (tmp_path / "no.pem", key, None, r"--grpc-tls-cert: .*no\.pem: No such file or directory"),
        (cert, tmp_path / "no.key", None, r"--grpc-tls-key: .*no\.key: No such file"),
        (cert, key, tmp_path / "no.pem", r"--grpc-tls-client-ca: .*no\.pem: "),
        (tmp_path, key, None, r"--grpc-tls-cert: .*: it is a folder, not a regular file"),
        (garbage, key, None, r"--grpc-tls-cert: expected a certificate in PEM .*garbage\.pem"),
        (key, cert, None, r"expected a certificate in PEM .*server\.key"),
        (cert, garbage, None, r"--grpc-tls-key: expected a private key in PEM .*garbage\.pem"),
        (cert, key, garbage, r"--grpc-tls-client-ca: expected a certificate in PEM .*garbage\.pem"),
        (cert, edwards, None, r"edwards\.key, an Edwards key \(Ed25519\), which gRPC does not support"),
        (cert, torn_key, None, r"torn\.key \("),
        (cert, shorter, None, r"shorter-torn\.key \("),
        (torn, key, None, r"torn\.pem and .*server\.key \("),
        (cert, key, torn, r"--grpc-tls-client-ca: .* got .*torn\.pem \("),
        (cert, locked, None, r"without a password, got .*locked\.key"),
        (
            cert,
            other_key,
            None,
            r"expected the private key of the first certificate in .*server\.pem, got .*other\.key",
        ),
        (cert, rsa, None, r"expected the private key of the first certificate in .*server\.pem, got .*rsa\.key"),
        (
            other_cert,
            key,
            None,
            r"expected the private key of the first certificate in .*other\.pem, got .*server\.key",
        ),
    ]
    for cert_file, key_file, client_ca, message in faults:
        with pytest.raises(ServerError, match=message) as raised:
            check_certificates(ServerTls(cert=cert_file, key=key_file, client_ca=client_ca))
        assert "\n" not in str(raised.value)
    check_certificates(ServerTls(cert=cert, key=key, client_ca=authority.ca))


def test_a_key_that_others_can_read_gives_a_warning(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    tls = authority.server(mutual=False)
    tls.key.chmod(0o600)
    check_certificates(tls)
    assert caplog.messages == []
    tls.key.chmod(0o644)
    check_certificates(tls)
    assert caplog.messages == [
        f"other users of this machine can read the private key {tls.key}; run: chmod 600 {tls.key}"
    ]


@pytest.mark.triton
def test_a_client_that_trusts_the_authority_gets_predictions(
    repository: Path, run: Run, authority: Authority, another: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    settings = FREE.model_copy(update={"grpc_tls": authority.server(mutual=False), "grpc_host": EVERYWHERE})
    with Server(repository, settings) as server:
        assert server.urls.grpc.startswith(f"grpcs://{EVERYWHERE}:")
        assert [one for one in caplog.messages if "gRPC" in one] == [
            (
                "gRPC on 0.0.0.0 is open to every client that reaches it: --grpc-tls-client-ca admits only "
                "clients with a certificate"
            )
        ]
        url = here(server)
        assert is_answered(url, Tls(ca_file=authority.ca), run)
        assert not is_answered(url, Tls(ca_file=another.ca), run)
        assert not is_answered(url, Tls(), run)
        assert not is_answered(url.removeprefix("grpcs://"), Tls(), run)
    assert nothing_is_left(server)


@pytest.fixture(scope="module")
def mutual(repository: Path, authority: Authority) -> Iterator[Server]:
    settings = FREE.model_copy(update={"grpc_tls": authority.server(mutual=True), "grpc_host": EVERYWHERE})
    with Server(repository, settings) as server:
        yield server


@pytest.mark.triton
def test_mutual_tls_requires_a_certificate_of_the_authority(
    mutual: Server, run: Run, authority: Authority, another: Authority
) -> None:
    url = here(mutual)
    assert is_answered(url, authority.client(), run)
    assert not is_answered(url, Tls(ca_file=authority.ca), run)
    cert, key = another.issue("clinic")
    assert not is_answered(url, Tls(ca_file=authority.ca, cert_file=cert, key_file=key), run)
    assert not is_answered(url.removeprefix("grpcs://"), Tls(), run)
    assert is_answered(url, authority.client("another-clinic"), run)


@pytest.mark.triton
def test_only_grpc_leaves_this_machine(mutual: Server) -> None:
    urls = mutual.urls
    http, grpc, metrics = (urlsplit(url).port or 0 for url in (urls.http, urls.grpc, urls.metrics))
    assert listening({http, metrics}) == {http: "0100007F", metrics: "0100007F"}
    # Everywhere, as IPv4 or as IPv6 has it.
    assert set(listening({grpc})[grpc]) == {"0"}


@contextlib.contextmanager
def tritons_client(server: Server, tls: Tls | None) -> Iterator[Any]:
    address = here(server).removeprefix("grpcs://")
    files = {}
    if tls is not None:
        files = {"root_certificates": tls.ca_file, "private_key": tls.key_file, "certificate_chain": tls.cert_file}
    with tritonclient.grpc.InferenceServerClient(
        address, ssl=tls is not None, **{name: str(file) for name, file in files.items()}
    ) as client:
        yield client


@pytest.mark.triton
@pytest.mark.parametrize(
    "manage",
    [
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.load_model("voter"),
        lambda client: client.unload_model("voter"),
        lambda client: client.get_model_repository_index(),
        lambda client: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
        lambda client: client.update_log_settings({"log_verbose_level": 1}),
    ],
    ids=["shared", "load", "unload", "index", "trace", "log"],
)
def test_a_certificate_does_not_open_management(mutual: Server, authority: Authority, manage: Any) -> None:
    with (
        tritons_client(mutual, authority.client()) as client,
        pytest.raises(InferenceServerException, match="protocol is restricted"),
    ):
        manage(client)


@pytest.mark.triton
@pytest.mark.parametrize("mutual", [False, True])
def test_requests_in_flight_complete_and_no_process_is_left(
    slow: Path, authority: Authority, caplog: pytest.LogCaptureFixture, mutual: bool
) -> None:
    answers: queue.Queue[tuple[float, Any]] = queue.Queue()
    tensor = tritonclient.grpc.InferInput("PIXELS", [8, 32, 32, 3], "UINT8")
    tensor.set_data_from_numpy(np.zeros((8, 32, 32, 3), np.uint8))
    tls = authority.server(mutual=True) if mutual else None
    settings = FREE.model_copy(update={"grpc_tls": tls, "exit_timeout_s": 30})
    with contextlib.ExitStack() as asking, Server(slow, settings) as server:
        client = asking.enter_context(tritons_client(server, authority.client() if mutual else None))
        # The handshake takes its time on a busy machine.
        assert client.is_server_live()
        for _ in range(150):
            client.async_infer(
                "ensemble_pixels", [tensor], lambda result, error: answers.put((time.monotonic(), error or result))
            )
        time.sleep(0.3)
        end = time.monotonic()
    assert answers.qsize() == 150
    outcomes = [answers.get() for _ in range(150)]
    assert len([when for when, _ in outcomes if when > end]) > 20
    assert [str(answer) for _, answer in outcomes if isinstance(answer, Exception)] == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert nothing_is_left(server)
    assert not server.log.path.exists()


@pytest.mark.triton
def test_a_restarted_server_requires_the_same_certificates(repository: Path, run: Run, authority: Authority) -> None:
    words = ("--json", "--grpc-host", EVERYWHERE, *tls_options(authority.server(mutual=True)))
    with serving(repository, *words) as (process, line):
        urls = json.loads(line)
        url, http = urls["grpc"].replace(EVERYWHERE, "127.0.0.1"), urlsplit(urls["http"]).port or 0
        known = authority.client()
        assert is_answered(url, known, run)
        os.kill(server_of(process).session, signal.SIGKILL)
        # The certificate was renewed in the meantime.
        authority.server(mutual=True)
        deadline = time.monotonic() + 60
        while not is_answered(url, known, run):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not is_answered(url, Tls(ca_file=authority.ca), run)
        assert listening({http}) == {http: "0100007F"}
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    Path(err.splitlines()[0].split()[-1]).unlink()


@pytest.mark.triton
def test_plurum_serve_refuses_wrong_certificates_in_one_line(
    repository: Path, authority: Authority, tmp_path: Path
) -> None:
    tls = authority.server(mutual=False)
    for words, message in (
        (tls_options(tls.model_copy(update={"cert": tmp_path / "no.pem"})), f"{tmp_path}/no.pem: No such file"),
        (
            tls_options(tls.model_copy(update={"key": authority.issue("other")[1]})),
            "expected the private key of the first certificate",
        ),
        (tls_options(tls)[:2], "--grpc-tls-cert, --grpc-tls-key: expected both, got one"),
    ):
        command = plurum_command("serve", repository, *words)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("plurum: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
