"""`plurum gateway`: run the HTTP gateway in front of Triton."""

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
    triton: Annotated[str, typer.Option(help="Triton's gRPC address: HOST:PORT or unix:PATH.")] = ("127.0.0.1:8001"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    metrics_host: Annotated[str, typer.Option(help="Address to serve /metrics on, without API keys.")] = "127.0.0.1",
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of /metrics; 0 takes a free one.")] = 8081,
    keys: Annotated[
        Path | None, typer.Option(help="File of API keys, one client per line: NAME:SHA256 or the key itself.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain in PEM; enables HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of --tls-cert in PEM.")] = None,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Most requests sent to Triton at the same time.")] = 16,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Most requests waiting; further ones are refused immediately.")
    ] = 64,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest request body in MiB.")] = 32,
    max_files: Annotated[int, typer.Option(min=1, help="Most images in one request to /predict.")] = 64,
    deadline_s: Annotated[float, typer.Option(help="Default deadline of a request, in seconds.")] = 30.0,
    max_deadline_s: Annotated[float, typer.Option(help="Longest deadline that a request may set, in seconds.")] = 120.0,
    receive_s: Annotated[
        float, typer.Option(help="Longest time for a request to arrive completely, in seconds.")
    ] = 30.0,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Write each request as a line of JSON to standard output.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the URLs as one line of JSON.")] = False,
) -> None:
    """Run an HTTP gateway for a Triton server on this machine, until Ctrl-C.

    POST /predict accepts an image as the body, or images in a form. POST /v2/models/ensemble/infer accepts KServe v2
    requests. The gateway refuses requests that are too many, too large, too slow or without a key. While Triton
    restarts, requests wait instead of failing. Ctrl-C or SIGTERM completes accepted requests first.

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
        typer.echo(f"try it:  curl --data-binary @IMAGE {urls.http}/predict\nstop it: Ctrl-C")
    # The parent process may wait for this line on a pipe.
    sys.stdout.flush()
