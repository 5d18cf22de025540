"""`plurum gateway`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plurum.errors import needs_extra

if TYPE_CHECKING:
    from plurum.serving.gateway import GatewayUrls

__all__ = ["gateway"]


def gateway(  # noqa: PLR0913, PLR0917 - one parameter per option
    triton: Annotated[str, typer.Option(help="Where Triton answers over gRPC: HOST:PORT or unix:PATH.")] = (
        "127.0.0.1:8001"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    metrics_host: Annotated[str, typer.Option(help="Address of /metrics, which needs no key.")] = "127.0.0.1",
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8081,
    keys: Annotated[
        Path | None, typer.Option(help="File with those who may ask: a line each, NAME:SHA256 or the key itself.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain in PEM: speak HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key in PEM.")] = None,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Requests that Triton is given at once.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that wait; more are refused at once.")] = 64,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest body of a request, MiB.")] = 32,
    max_files: Annotated[int, typer.Option(min=1, help="Most images in one request to /predict.")] = 64,
    deadline_s: Annotated[float, typer.Option(help="For requests that state none, seconds.")] = 30.0,
    max_deadline_s: Annotated[float, typer.Option(help="The most that a request may ask for, seconds.")] = 120.0,
    receive_s: Annotated[float, typer.Option(help="How long a request may take to arrive, seconds.")] = 30.0,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Each request as a line of JSON on standard output.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say where it answers as one line of JSON.")] = False,
) -> None:
    """Face a network for a Triton server on this machine, until Ctrl-C.

    POST /predict takes an image as the body or images in a form; POST /v2/models/ensemble/infer takes KServe v2
    requests. Too many at once, too large, too slow or without a key are refused; a Triton that restarts costs time, not
    errors. Ctrl-C or SIGTERM answers first what was accepted.

    [bold]Examples[/bold]

      plurum gateway --triton 127.0.0.1:8001 --port 8080

      curl --data-binary @scan.png http://127.0.0.1:8080/predict

      plurum gateway --host 0.0.0.0 --keys keys.txt --tls-cert cert.pem --tls-key key.pem
    """
    with needs_extra(
        "gateway",
        "uvicorn",
        "uvloop",
        "httptools",
        "starlette",
        "python_multipart",
        "prometheus_client",
        "tritonclient.grpc",
    ):
        from plurum.serving.gateway import run_gateway
        from plurum.serving.gateway.settings import settings_from_options

    settings = settings_from_options(
        triton=triton,
        host=host,
        port=port,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        keys=keys,
        tls_cert=tls_cert,
        tls_key=tls_key,
        max_in_flight=max_in_flight,
        max_waiting=max_waiting,
        max_body_mib=max_body_mib,
        max_files=max_files,
        deadline_s=deadline_s,
        max_deadline_s=max_deadline_s,
        receive_s=receive_s,
        access_log=access_log,
    )
    run_gateway(settings, lambda urls: _announce(urls, as_json=as_json))


def _announce(urls: GatewayUrls, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(urls)))
    else:
        typer.echo(f"HTTP     {urls.http}\nmetrics  {urls.metrics}")
        typer.echo(f"ask it:  curl --data-binary @IMAGE {urls.http}/predict\nend it:  Ctrl-C")
    # Who started us may read this through a pipe, and waits for it.
    sys.stdout.flush()
