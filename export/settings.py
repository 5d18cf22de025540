"""What an export may be asked for."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["OPSET", "ExportSettings"]

# From 23 on, timm's fused attention becomes an Attention op, which TensorRT parses and then fails to build.
OPSET = 20


class ExportSettings(BaseModel):
    """Options of `plurum export`.

    Attributes:
        max_batch_size: Largest batch that the repository takes in one request or puts together itself.
        tolerance: Largest difference of a probability between PyTorch and the exported graph, 0 to 1.
        parity_images: How many of the run's validation images that is checked on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    parity_images: Annotated[int, Field(ge=1)] = 256
