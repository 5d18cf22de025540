"""Letting requests in flight finish before a server is told to end.

Triton's own drain does not know ensembles: from SIGTERM on, their next steps are refused, and most requests in flight
are lost. So the ensembles are unloaded first: new requests for them are refused at the door, those inside go all
the way, and only then is the server told to end.
"""

from __future__ import annotations

import logging
import time

__all__ = ["drain"]

_log = logging.getLogger(__name__)
_POLL_S = 0.05


def drain(url: str, key: str, ensembles: list[str], timeout_s: float) -> None:
    """Unload `ensembles` and wait until no request is inside them, at most for `timeout_s`.

    Args:
        url: HOST:PORT of the gRPC endpoint.
        key: Opens the server's model control.
        ensembles: Names of models.
        timeout_s: After it, or when the server does not answer, what is still inside is given up.
    """
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    headers = {"triton-grpc-protocol-admin-key": key}
    deadline = time.monotonic() + timeout_s
    try:
        with InferenceServerClient(url) as client:
            for model in ensembles:
                client.unload_model(model, headers=headers, client_timeout=timeout_s)
            while time.monotonic() < deadline:
                index = client.get_model_repository_index(headers=headers, client_timeout=timeout_s)
                states = {model.name: model.state for model in index.models}
                if all(states.get(model) == "UNAVAILABLE" for model in ensembles):
                    return
                time.sleep(_POLL_S)
        _log.warning("requests were still in flight after %g s and are given up", timeout_s)
    except InferenceServerException as error:
        _log.warning("requests in flight could not be waited for: %s", error.message())
