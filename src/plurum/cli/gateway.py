"""`plurum gateway`: run the HTTP gateway in front of Triton."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from plurum.cli.options import with_options
from plurum.errors import needs_extra
from plurum.settings.serving import GatewaySettings

if TYPE_CHECKING:
    from plurum.serving.gateway import GatewayUrls

__all__ = ["gateway"]


@with_options
def gateway(
    settings: GatewaySettings,
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

    run_gateway(settings, lambda urls: _announce(urls, as_json=as_json))


def _announce(urls: GatewayUrls, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(urls)))
    else:
        typer.echo(f"HTTP     {urls.http}\nmetrics  {urls.metrics}")
        typer.echo(f"try it:  curl --data-binary @IMAGE {urls.http}/predict\nstop it: Ctrl-C")
    # The parent process may wait for this line on a pipe.
    sys.stdout.flush()
