"""One way to serve an ensemble: what `plurum tune` chooses among."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plurum.spec import Metadata

__all__ = ["AS_IS", "Backend", "Batching", "Form", "Placement", "Variant"]

Form = Literal["chain", "fused"]
Backend = Literal["onnxruntime", "openvino", "tensorrt"]
Count = Annotated[int, Field(ge=1)]

# The artefacts of the repository that is tuned.
AS_IS = "as exported"


class Placement(Metadata):
    """How one graph is served.

    Attributes:
        backend: What computes it.
        instances: How many answer at the same time; of TensorRT's, on each GPU.
        threads: Of each instance; 1 where a GPU computes.
    """

    backend: Backend
    instances: Count
    threads: Count = 1

    def __str__(self) -> str:
        if self.backend == "tensorrt":
            return f"{self.instances} {self.backend}"
        return f"{self.instances} x {self.threads} {self.backend}"


class Batching(Metadata):
    """What Triton's dynamic batcher puts together. How much one request may hold is the repository's and stays.

    Attributes:
        dynamic: Whether requests are put together at all.
        preferred: Batch sizes to form when that many wait; empty takes whatever waits, up to the maximum.
        delay_us: How long an idle instance waits for such a size, microseconds.
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
        artefacts: Whose graphs: `as exported`, or the precision of another export of the same run.
        form: `chain` asks a model per member, then the voter; `fused` asks members and vote in one graph.
        graphs: How each graph that the form asks is served, by model.
        batching: Of those graphs, and of decoding.
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

    def placed(self, **graphs: Placement) -> Variant:
        """Return the same with these graphs served otherwise."""
        return self.model_copy(update={"graphs": {**self.graphs, **graphs}})
