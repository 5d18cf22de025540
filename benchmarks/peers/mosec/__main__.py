"""Mosec with ONNX Runtime: a worker a core behind its own front, which is written in Rust."""
# mypy: disable-error-code="import-not-found, import-untyped, misc"

from __future__ import annotations

from typing import Any

from mosec import Server, Worker

from plurum.benchmarks.peers.answering import OnnxMembers, job_from_environment

__all__ = ["Ensemble"]


class Ensemble(Worker):
    """The members of one worker."""

    def __init__(self) -> None:
        self.members = OnnxMembers(job_from_environment())

    def deserialize(self, data: bytes) -> bytes:
        """Leave the body as it is; Mosec's own would read JSON."""
        return data

    def forward(self, data: bytes) -> dict[str, Any]:
        """Answer a JPEG."""
        return self.members.answer(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Ensemble, num=job_from_environment().workers, route="/predict")
    server.run()
