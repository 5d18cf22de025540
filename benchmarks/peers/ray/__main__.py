"""Ray Serve with ONNX Runtime: a replica per core, and a core per replica, as Ray assigns them by default."""
# mypy: disable-error-code="import-not-found, import-untyped, misc, untyped-decorator, attr-defined"

from __future__ import annotations

import os
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from plurum.benchmarks.peers.application import OnnxMembers, job_from_environment

__all__ = ["RayMembers"]

job = job_from_environment()


@serve.deployment(num_replicas=job.workers, ray_actor_options={"num_cpus": 1})
class RayMembers:
    """The members of one replica."""

    def __init__(self) -> None:
        self.members = OnnxMembers(job_from_environment())

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Predict a JPEG in the body."""
        return self.members.predict(await request.body())


if __name__ == "__main__":
    # The sockets lie in a folder that is removed with this run.
    ray.init(
        num_cpus=job.workers,
        include_dashboard=False,
        object_store_memory=100_000_000,
        _temp_dir=os.environ["RAY_TMPDIR"],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": job.port}, logging_config={"enable_access_log": False})
    serve.run(RayMembers.bind(), route_prefix="/predict", blocking=True)
