"""`plurum serve`: serve a model repository on Triton."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from plurum.cli.options import Given, with_options
from plurum.errors import SettingsError, needs_extra
from plurum.settings.serving import ServerSettings, ServerTls

if TYPE_CHECKING:
    from plurum.serving.releases.releases import Releases
    from plurum.serving.releases.snapshot import Snapshot

__all__ = ["serve"]


@with_options
def serve(
    settings: ServerSettings,
    tls: Annotated[dict[str, Any], Given(ServerTls, ("cert", "key", "client_ca"))],
    repository: Annotated[
        str | None,
        typer.Argument(
            help="Model repository written by `plurum export`: a folder, or an address such as s3://BUCKET/REPO.",
            metavar="REPO",
            show_default=False,
        ),
    ] = None,
    releases: Annotated[
        Path | None,
        typer.Option(help="Releases folder: its public release is served, and `plurum rollout` replaces it."),
    ] = None,
    status_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            help="Port of the status page: /v2/health/ready, and /metrics of restarts; 0 takes a free one.",
        ),
    ] = 8003,
    as_json: Annotated[bool, typer.Option("--json", help="Print the URLs as one line of JSON.")] = False,
) -> None:
    """Serve a model repository on Triton until Ctrl-C.

    Uses tritonserver from PATH, or else the one in the package nvidia-pytriton. Its first start may install a Python
    environment in your cache folder. Prints its URLs after a successful test inference, and repeats that
    inference at intervals. A model or server that exits, hangs or returns errors is restarted within seconds. Ctrl-C,
    SIGTERM or SIGHUP completes requests in flight, then stops all processes and removes temporary files.

    [bold]Examples[/bold]

      plurum serve runs/digits/model_repository

      plurum serve s3://bucket/model_repository

      plurum serve REPO --http-port 0 --grpc-port 0 --metrics-port 0 --status-port 0 --json

      plurum serve REPO --releases live   # and later: plurum rollout NEWER_REPO --releases live

      curl -i http://127.0.0.1:8003/v2/health/ready

      plurum serve REPO --grpc-host 0.0.0.0 --grpc-tls-cert cert.pem --grpc-tls-key key.pem --grpc-tls-client-ca ca.pem
    """
    from plurum.repository.fetching import local_repository
    from plurum.repository.listing import model_folders

    # Before a second of imports.
    if tls:
        settings = settings.model_copy(update={"grpc_tls": _tls(tls)})
    folder = None if repository is None else local_repository(repository)
    first = folder or releases
    if first is None:
        raise SettingsError("REPO, --releases: expected at least one of them, got none")
    if folder is not None:
        model_folders(folder)
    with needs_extra("serving"):
        from plurum.serving import Supervisor
        from plurum.serving.status import Status, StatusServer

    status = Status()
    with (
        _interruptible(),
        _open_releases(folder, releases) as open_releases,
        StatusServer(status, settings.host, status_port) as status_server,
        Supervisor(first, settings, status=status, releases=open_releases) as supervisor,
    ):
        _announce({**asdict(supervisor.urls), "status": status_server.url}, supervisor.snapshot, as_json=as_json)
        supervisor.watch()


def _tls(given: dict[str, Any]) -> ServerTls:
    if not {"cert", "key"} <= given.keys():
        raise SettingsError("--grpc-tls-cert, --grpc-tls-key: expected both, got one. Add the other.")
    return ServerTls(**given)


@contextlib.contextmanager
def _open_releases(repository: Path | None, folder: Path | None) -> Iterator[Releases | None]:
    """Yield the releases folder, if there is one, locked against other servers and with `repository` in it."""
    from plurum.serving.releases.releases import Releases

    if folder is None:
        yield None
        return
    releases = Releases(folder)
    releases.lock()
    try:
        state = releases.state()
        if state is None and repository is None:
            raise SettingsError(
                f"--releases: {folder} has no release yet. Add one: plurum serve REPO --releases {folder}."
            )
        if state is not None and repository is not None and releases.add(repository) != state.current:
            typer.echo(
                f"serving {state.current}, the public release of {folder}; use plurum rollout to replace it", err=True
            )
        yield releases
    finally:
        releases.unlock()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """End the block on Ctrl-C, SIGTERM or SIGHUP; further signals don't interrupt the clean-up."""

    def interrupt(*_: object) -> NoReturn:
        for number in former:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    # Under nohup the server outlives its terminal.
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
        # plurum predict trusts only the system's authorities and has no client certificate.
        secure = urls["grpc"].startswith("grpcs://")
        example = (
            f"EnsembleClient('{urls['grpc']}', tls=Tls(...))"
            if secure
            else f"plurum predict IMAGE --url {urls['grpc']}"
        )
        typer.echo(f"serving  a copy of {copy.repository}: {copy.size_bytes / 1e6:.1f} MB in {copy.took_s:.2f} s")
        typer.echo(f"try it:  {example}\nstop it: Ctrl-C")
    # The parent process may wait for these lines on a pipe.
    sys.stdout.flush()
