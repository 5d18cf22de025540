"""Complete requests in flight before the server is told to stop.

Triton's own drain does not know ensembles: after SIGTERM it refuses their next steps, and most requests in flight are
lost. The ensembles are therefore unloaded first: Triton refuses new requests for them and completes those in flight.
"""

from __future__ import annotations

import logging
import time

from plurum.errors import ServerError
from plurum.serving.triton.admin import Admin

__all__ = ["drain"]

_log = logging.getLogger(__name__)
_POLL_S = 0.05


def drain(admin: Admin, ensembles: list[str], timeout_s: float) -> None:
    """Unload `ensembles` and wait until they have no request in flight, at most `timeout_s`.

    Args:
        admin: Management interface of the server.
        ensembles: Names of the ensemble models.
        timeout_s: Time limit, seconds. Requests still in flight then, or when the server fails to respond, are
            abandoned.
    """
    deadline = time.monotonic() + timeout_s
    try:
        for model in ensembles:
            admin.unload(model, timeout_s)
        while time.monotonic() < deadline:
            if admin.list_in_memory(timeout_s).isdisjoint(ensembles):
                return
            time.sleep(_POLL_S)
        _log.warning("requests still in flight after %g s were abandoned", timeout_s)
    except ServerError as error:
        _log.warning("could not wait for requests in flight: %s", error)
