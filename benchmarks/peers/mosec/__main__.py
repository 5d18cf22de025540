"""Mosec with ONNX Runtime: a worker per core behind its HTTP server, which is written in Rust."""
# mypy: disable-error-code="import-not-found, import-untyped, misc"

from __future__ import annotations

from typing import Any

from mosec import Server, Worker

from plurum.benchmarks.peers.application import OnnxMembers, job_from_environment

__all__ = ["MosecMembers"]


class MosecMembers(Worker):
    """The members of one worker."""

    def __init__(self) -> None:
        self.members = OnnxMembers(job_from_environment())

    def deserialize(self, data: bytearray) -> bytes:
        """Return the body as it is; Mosec's default would read JSON."""
        return bytes(data)

    def forward(self, data: bytes) -> dict[str, Any]:
        """Predict a JPEG."""
        return self.members.predict(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(MosecMembers, num=job_from_environment().workers, route="/predict")
    server.run()
