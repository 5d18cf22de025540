"""The ways to serve an ensemble that `plurum tune` chooses among."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plurum.export.settings import Backend, Form
from plurum.spec import Metadata

__all__ = ["AS_IS", "Backend", "Batching", "Form", "Placement", "Variant"]

Count = Annotated[int, Field(ge=1)]

# Name of the artefacts of the repository to tune.
AS_IS = "as exported"


class Placement(Metadata):
    """Backend, instances and threads of one graph.

    Attributes:
        backend: Backend that computes the graph.
        instances: Number of instances that compute at the same time; for TensorRT, on each GPU.
        threads: Threads of each instance; 1 on a GPU.
    """

    backend: Backend
    instances: Count
    threads: Count = 1

    def __str__(self) -> str:
        if self.backend == "tensorrt":
            return f"{self.instances} {self.backend}"
        return f"{self.instances} x {self.threads} {self.backend}"


class Batching(Metadata):
    """Settings of Triton's dynamic batcher. The largest batch of the repository stays unchanged.

    Attributes:
        dynamic: If True, Triton batches requests.
        preferred: Batch sizes to form when that many requests wait; if empty, all that wait, up to the maximum.
        delay_us: Time that an idle instance waits for such a size, microseconds.
    """

    dynamic: bool = True
    preferred: tuple[Count, ...] = ()
    delay_us: Annotated[int, Field(ge=0)] = 0

    def __str__(self) -> str:
        if not self.dynamic:
            return "no batching"
        sizes = f"batches of {', '.join(map(str, self.preferred))}" if self.preferred else "batches of what waits"
        return f"{sizes}, up to {self.delay_us / 1000:g} ms late" if self.delay_us else sizes


class Variant(Metadata):
    """One way to serve an ensemble.

    Attributes:
        artefacts: Export of the graphs: `as exported`, or the precision of another export of the same run.
        form: `chain` runs a model per member, then the voter; `fused` runs members and vote in one graph.
        graphs: Placement of each graph that the form uses, by model.
        batching: Batching of those graphs, and of decoding.
    """

    artefacts: str = AS_IS
    form: Form
    graphs: dict[str, Placement]
    batching: Batching = Batching()

    def __str__(self) -> str:
        placements = set(map(str, self.graphs.values()))
        how = (
            placements.pop()
            if len(placements) == 1
            else ", ".join(f"{name} {one}" for name, one in self.graphs.items())
        )
        artefacts = "" if self.artefacts == AS_IS else f" {self.artefacts}"
        return f"{self.form}{artefacts}, {how}, {self.batching}"

    def with_graphs(self, **graphs: Placement) -> Variant:
        """Return a copy with other placements of these graphs."""
        return self.model_copy(update={"graphs": {**self.graphs, **graphs}})
