"""Letting requests in flight finish before a server is told to end.

Triton's own drain does not know ensembles: from SIGTERM on, their next steps are refused, and most requests in flight
are lost. So the ensembles are unloaded first: Triton refuses new requests for them and completes those inside, and
only then is the server told to end.
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
    """Unload `ensembles` and wait until no request is inside them, at most for `timeout_s`.

    Args:
        admin: Of the server.
        ensembles: Names of models.
        timeout_s: After it, or when the server does not answer, what is still inside is given up.
    """
    deadline = time.monotonic() + timeout_s
    try:
        for model in ensembles:
            admin.unload(model, timeout_s)
        while time.monotonic() < deadline:
            if admin.in_memory(timeout_s).isdisjoint(ensembles):
                return
            time.sleep(_POLL_S)
        _log.warning("requests were still in flight after %g s and are given up", timeout_s)
    except ServerError as error:
        _log.warning("requests in flight could not be waited for: %s", error)
