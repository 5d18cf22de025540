"""LitServe with ONNX Runtime: several workers, each with one session per member.

Images come as base64 in JSON: a worker is a process of its own, which cannot receive the file of a form.
"""
# mypy: disable-error-code="import-not-found, import-untyped, misc, no-any-return"

from __future__ import annotations

import base64
from typing import Any

import litserve

from plurum.benchmarks.peers.application import OnnxMembers, job_from_environment

__all__ = ["LitServeMembers"]


class LitServeMembers(litserve.LitAPI):
    """The three steps that LitServe requires."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the members in a worker."""
        self.members = OnnxMembers(job_from_environment())

    def decode_request(self, request: dict[str, str]) -> bytes:
        """Return the image in the JSON."""
        return base64.b64decode(request["image"])

    def predict(self, encoded: bytes) -> dict[str, Any]:
        """Predict a JPEG."""
        return self.members.predict(encoded)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return the prediction unchanged."""
        return output


if __name__ == "__main__":
    job = job_from_environment()
    server = litserve.LitServer(LitServeMembers(), accelerator="cpu", devices=1, workers_per_device=job.workers)
    server.run(host="127.0.0.1", port=job.port, generate_client_file=False, log_level="warning")
