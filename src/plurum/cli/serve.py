"""`plurum serve`."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from plurum.errors import SettingsError, needs_extra

if TYPE_CHECKING:
    from plurum.serving.releases.releases import Releases
    from plurum.serving.releases.snapshot import Snapshot
    from plurum.serving.triton.certificates import ServerTls

__all__ = ["serve"]


def serve(  # noqa: PLR0913, PLR0917 - one parameter per option
    repository: Annotated[
        Path | None,
        typer.Argument(help="A model repository, as `plurum export` writes it.", metavar="REPO", show_default=False),
    ] = None,
    releases: Annotated[
        Path | None,
        typer.Option(help="A folder for releases: what is public there is served, and `plurum rollout` changes it."),
    ] = None,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8002,
    status_port: Annotated[
        int, typer.Option(min=0, max=65535, help="For a truthful /v2/health/ready and what was healed; 0: a free one.")
    ] = 8003,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_host: Annotated[
        str | None, typer.Option(help="Address for gRPC alone, to face a network with.", show_default="that of --host")
    ] = None,
    grpc_tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain in PEM: gRPC over TLS.")] = None,
    grpc_tls_key: Annotated[Path | None, typer.Option(help="Its private key in PEM.")] = None,
    grpc_tls_client_ca: Annotated[
        Path | None, typer.Option(help="Who signs clients' certificates, PEM: who has none is refused (mutual TLS).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say where it answers as one line of JSON.")] = False,
) -> None:
    """Serve a model repository on Triton until Ctrl-C.

    Takes tritonserver from PATH, else the one that the package nvidia-pytriton brings. Says where it answers once it
    has answered a real question, and goes on asking: a model or a server that has died, hangs or answers with errors is
    noticed within seconds and started anew. Ctrl-C, SIGTERM or SIGHUP lets requests in flight finish and
    leaves nothing behind.

    [bold]Examples[/bold]

      plurum serve runs/digits/model_repository

      plurum serve REPO --http-port 0 --grpc-port 0 --metrics-port 0 --status-port 0 --json

      plurum serve REPO --releases live   # and later: plurum rollout NEWER_REPO --releases live

      curl -i http://127.0.0.1:8003/v2/health/ready

      plurum serve REPO --grpc-host 0.0.0.0 --grpc-tls-cert cert.pem --grpc-tls-key key.pem --grpc-tls-client-ca ca.pem
    """
    with needs_extra("serving"):
        from plurum.serving import ServerSettings, Supervisor
        from plurum.serving.status import Status, StatusServer

    settings = ServerSettings(
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        grpc_host=grpc_host,
        grpc_tls=_tls(grpc_tls_cert, grpc_tls_key, grpc_tls_client_ca),
    )
    status = Status()
    with (
        _interruptible(),
        _held(repository, releases) as (first, held),
        StatusServer(status, host, status_port) as said,
        Supervisor(first, settings, status=status, releases=held) as supervisor,
    ):
        _announce({**asdict(supervisor.urls), "status": said.url}, supervisor.snapshot, as_json=as_json)
        supervisor.watch()


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    from plurum.serving.triton.certificates import ServerTls

    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise SettingsError("a certificate and its private key go together: give --grpc-tls-cert and --grpc-tls-key")
    return ServerTls(cert=cert, key=key, client_ca=client_ca)


@contextlib.contextmanager
def _held(repository: Path | None, folder: Path | None) -> Iterator[tuple[Path, Releases | None]]:
    """Give what is served at first, and the folder of releases, which no other server may use meanwhile."""
    from plurum.serving.releases.releases import Releases

    if folder is None:
        if repository is None:
            raise SettingsError("name a model repository, or with --releases a folder that holds one")
        yield repository, None
        return
    releases = Releases(folder)
    releases.lock()
    try:
        state = releases.state()
        if state is None and repository is None:
            raise SettingsError(f"{folder} holds no release yet; name a model repository: plurum serve REPO --releases")
        if state is not None and repository is not None and releases.add(repository) != state.current:
            typer.echo(f"{state.current} is public in {folder} and is served; change it with plurum rollout", err=True)
        yield repository or folder, releases
    finally:
        releases.unlock()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the block; later ones don't interrupt the clean-up."""

    def interrupt(*_: object) -> NoReturn:
        for number in former:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    # Under nohup a server outlives its terminal.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    former = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _announce(urls: dict[str, str], copy: Snapshot, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(urls))
    else:
        labels = {"http": "HTTP", "grpc": "gRPC"}
        for name, url in urls.items():
            typer.echo(f"{labels.get(name, name):8} {url}")
        # The command knows the system's authorities alone, and has no certificate of its own.
        secure = urls["grpc"].startswith("grpcs://")
        ask = (
            f"EnsembleClient('{urls['grpc']}', tls=Tls(...))"
            if secure
            else f"plurum predict IMAGE --url {urls['grpc']}"
        )
        typer.echo(f"served   a copy of {copy.repository}: {copy.size_bytes / 1e6:.1f} MB in {copy.took_s:.2f} s")
        typer.echo(f"ask it:  {ask}\nend it:  Ctrl-C")
    # Who started us may read this through a pipe, and waits for it.
    sys.stdout.flush()
