"""The winner's name for what the fused graph answers, and the count of it.

Export copies it into `labels/1`, whose model asks it; where our OpenVINO computes the fused graph, `plurum serve` lays
it there too, so that an answer takes a step less. NumPy only, and Triton's own module for what is counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from plurum.model_repository.voter.metrics import Answers, Metrics
else:
    from metrics import Answers, Metrics

# `plurum serve` asks under this request id whether the ensemble answers; that is no prediction for anyone.
PROBE_ID = "plurum-probe"


class NoVoteError(ValueError):
    """A member answered with NaN."""


class Labels:
    """Of the contract in `folder`. Several processes may count at the same time: Triton adds them up."""

    def __init__(self, folder: Path) -> None:
        contract = json.loads((folder / "ensemble.json").read_text(encoding="utf-8"))
        self._members = [member["name"] for member in contract["members"]]
        self._classes = np.array([name.encode() for name in contract["classes"]], dtype=np.object_)
        self._metrics = Metrics(folder)

    def of(self, answers: Mapping[str, Any], request_ids: Sequence[str], sizes: Sequence[int]) -> Any:
        """Return LABEL, BYTES `[batch, 1]`, and have the answers counted.

        Args:
            answers: INDEX, PROBABILITIES, DISAGREEMENT, MEMBER_PROBABILITIES and REVIEW, arrays as the graph gives
                them; they may be overwritten afterwards.
            request_ids: Of the requests whose answers these are.
            sizes: How many images each of them holds.

        Raises:
            NoVoteError: a member says nothing.
        """
        index = answers["INDEX"][:, 0]
        members = answers["MEMBER_PROBABILITIES"]
        if (silent := np.isnan(members)).any():
            names = [name for name, rest in zip(self._members, silent.any(axis=(0, 2)), strict=True) if rest]
            raise NoVoteError(f"no vote: NaN from {', '.join(names)}")
        counted = np.repeat([one != PROBE_ID for one in request_ids], sizes)
        disagreement, review = answers["DISAGREEMENT"][:, 0], answers["REVIEW"][:, 0]
        given = Answers(index, answers["PROBABILITIES"], disagreement, members, review, counted)
        # Copies: what came in may lie in memory that the next request will be written to.
        self._metrics.observe(Answers(*map(np.array, given)))
        return self._classes[index][:, None]

    def close(self) -> None:
        """Count what was answered last."""
        self._metrics.close()
