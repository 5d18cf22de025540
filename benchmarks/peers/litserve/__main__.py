"""LitServe with ONNX Runtime: several workers of one session a member each.

Images come in JSON, in base 64: a file of a form can't be handed to a worker, which is a process of its own.
"""
# mypy: disable-error-code="import-not-found, import-untyped, misc, no-any-return"

from __future__ import annotations

import base64
from typing import Any

import litserve

from plurum.benchmarks.peers.answering import OnnxMembers, job_from_environment

__all__ = ["Ensemble"]


class Ensemble(litserve.LitAPI):
    """The three steps that LitServe asks for."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the members in a worker."""
        self.members = OnnxMembers(job_from_environment())

    def decode_request(self, request: dict[str, str]) -> bytes:
        """Take the image out of the JSON."""
        return base64.b64decode(request["image"])

    def predict(self, encoded: bytes) -> dict[str, Any]:
        """Answer a JPEG."""
        return self.members.answer(encoded)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Leave the answer as it is."""
        return output


if __name__ == "__main__":
    job = job_from_environment()
    server = litserve.LitServer(Ensemble(), accelerator="cpu", devices=1, workers_per_device=job.workers)
    server.run(host="127.0.0.1", port=job.port, generate_client_file=False, log_level="warning")
