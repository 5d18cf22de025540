"""Names and times that the server, the gateway and the client agree on."""

from __future__ import annotations

from typing import Literal

__all__ = ["HUNG_S", "MANAGERS", "PROBE_ID", "PatientRule"]

# A request that hangs the server has been inside for longer than this, in seconds, when `plurum serve` ends the server:
# `plurum serve` waits for at least 3 s.
HUNG_S = 2.5
# The models that load and unload others. Triton never restarts a process of its own: each loads the other again.
MANAGERS = ("plurum_manager_1", "plurum_manager_2")
# The id of probes. The voter leaves requests with this id out of its metrics.
PROBE_ID = "plurum-probe"
# Rule that combines the predictions of a patient's images; `plurum.voting.pool_groups` implements it.
PatientRule = Literal["mean", "max", "majority"]
