"""What an export may be asked for, and how far an artefact may be from PyTorch."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "BUDGETS",
    "EXECUTIONS",
    "MEMBER_SLACK",
    "OPSET",
    "Backend",
    "Budget",
    "Execution",
    "ExportSettings",
    "Precision",
    "Target",
]

# From 23 on, timm's fused attention becomes an Attention op, which TensorRT parses and then fails to build.
OPSET = 20

Target = Literal["cpu", "gpu"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Backend = Literal["onnxruntime", "openvino", "tensorrt"]


class Execution(NamedTuple):
    """How a graph is served: what it computes in, and what computes it."""

    precision: Precision
    backend: Backend

    def __str__(self) -> str:
        return f"{self.precision} {self.backend}"


# What each target offers, the reference first. Neither library has a fast FP16 on a CPU, and ONNX Runtime no BF16.
EXECUTIONS: dict[Target, tuple[Execution, ...]] = {
    "cpu": (
        Execution("fp32", "onnxruntime"),
        Execution("bf16", "openvino"),
        Execution("int8", "onnxruntime"),
        Execution("int8", "openvino"),
    ),
    "gpu": (Execution("fp32", "tensorrt"), Execution("fp16", "tensorrt")),
}

# A single member may flip this many times as many labels, and lose as much, as the vote that averages over them.
MEMBER_SLACK = 5.0


class Budget(BaseModel):
    """How much the vote may change by a conversion, on the held-out labelled images.

    Attributes:
        max_difference: Largest difference of any probability, 0 to 1.
        flips: Largest share of images with another label.
        accuracy_loss: Largest loss of accuracy, 0 to 1.
        nll_increase: Largest increase of the mean negative log-likelihood, nats.
        ece_increase: Largest increase of the expected calibration error, 0 to 1.
        review_flips: Largest share of images that go to a person and did not, or the other way round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_difference: Annotated[float, Field(gt=0, le=1)]
    flips: Annotated[float, Field(ge=0, le=1)]
    accuracy_loss: Annotated[float, Field(ge=0, le=1)]
    nll_increase: Annotated[float, Field(gt=0)]
    ece_increase: Annotated[float, Field(gt=0, le=1)]
    review_flips: Annotated[float, Field(ge=0, le=1)]


_EXACT = {"flips": 0.0002, "accuracy_loss": 0.0002, "nll_increase": 0.001, "ece_increase": 0.001, "review_flips": 0.002}
_COARSE = {"flips": 0.002, "accuracy_loss": 0.002, "nll_increase": 0.01, "ece_increase": 0.01, "review_flips": 0.02}
# BF16 keeps 8 bits of a number, as INT8 does; FP16 keeps 11 and is held to what FP32 is held to but for the tail.
BUDGETS: dict[Precision, Budget] = {
    "fp32": Budget(max_difference=1e-4, **_EXACT),
    "fp16": Budget(max_difference=0.02, **_EXACT),
    "bf16": Budget(max_difference=0.2, **_COARSE),
    "int8": Budget(max_difference=0.2, **_COARSE),
}


class ExportSettings(BaseModel):
    """Options of `plurum export`.

    Attributes:
        target: What will serve.
        precision: Of all members; `auto` takes, per member, the fastest that passes, on a GPU target FP16; `int8` the
            faster of its two forms.
        fused: Whether `ensemble_fused`, members and vote in one graph, is added.
        max_batch_size: Largest batch that the repository takes in one request or puts together itself.
        tolerance: Largest difference of a probability between PyTorch and an FP32 graph, 0 to 1.
        parity_images: How many of the run's validation images artefacts are checked on, at most.
        calibration_images: How many of the run's training images INT8 and FP16 are calibrated on, at most.
        budgets: What each precision may change; the vote is held to the loosest budget among its members'.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target = "cpu"
    precision: Precision | Literal["auto"] = "fp32"
    fused: bool = False
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    parity_images: Annotated[int, Field(ge=1)] = 512
    calibration_images: Annotated[int, Field(ge=1)] = 128
    budgets: dict[Precision, Budget] = BUDGETS

    @model_validator(mode="after")
    def _target_has_precision(self) -> ExportSettings:
        known = list(dict.fromkeys(one.precision for one in EXECUTIONS[self.target]))
        if self.precision not in {*known, "auto"}:
            raise ValueError(
                f"precision {self.precision!r} is not for target {self.target!r}; it takes {', '.join(known)} or auto"
            )
        return self

    def budget(self, precision: Precision) -> Budget:
        """Return what artefacts of `precision` are held to."""
        budget = self.budgets[precision]
        return budget.model_copy(update={"max_difference": self.tolerance}) if precision == "fp32" else budget
