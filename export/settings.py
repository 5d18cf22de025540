"""Settings of an export, and the tolerances between an artefact and PyTorch."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plurum.conventions import OPSET
from plurum.settings.options import NOT_AN_OPTION, Option, Settings

__all__ = [
    "BUDGETS",
    "EXECUTIONS",
    "MEMBER_SLACK",
    "OPSET",
    "Backend",
    "Budget",
    "Execution",
    "ExportSettings",
    "Form",
    "Precision",
    "Target",
]

Target = Literal["cpu", "gpu"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Backend = Literal["onnxruntime", "openvino", "tensorrt"]
Form = Literal["fused", "chain"]


class Execution(NamedTuple):
    """Precision and backend that a graph is served with."""

    precision: Precision
    backend: Backend

    def __str__(self) -> str:
        return f"{self.precision} {self.backend}"


# Executions of each target, the reference first. Neither library has a fast FP16 on CPUs; ONNX Runtime has no BF16.
EXECUTIONS: dict[Target, tuple[Execution, ...]] = {
    "cpu": (
        Execution("fp32", "onnxruntime"),
        Execution("bf16", "openvino"),
        Execution("int8", "onnxruntime"),
        Execution("int8", "openvino"),
    ),
    "gpu": (Execution("fp32", "tensorrt"), Execution("fp16", "tensorrt")),
}

# A single member's limits are this many times those of the vote, which averages over members.
MEMBER_SLACK = 5.0


class Budget(BaseModel):
    """Limits on how much a conversion may change the vote on the held-out labelled images.

    Attributes:
        max_difference: Largest difference of any probability, 0 to 1.
        flips: Largest fraction of images whose label changes.
        accuracy_loss: Largest loss of accuracy, 0 to 1.
        nll_increase: Largest increase of the mean negative log-likelihood, nats.
        ece_increase: Largest increase of the expected calibration error, 0 to 1.
        review_flips: Largest fraction of images whose review flag changes.
        outlier_change: Largest mean change of an image's rank by novelty, or of its p-value, 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_difference: Annotated[float, Field(gt=0, le=1)]
    flips: Annotated[float, Field(ge=0, le=1)]
    accuracy_loss: Annotated[float, Field(ge=0, le=1)]
    nll_increase: Annotated[float, Field(gt=0)]
    ece_increase: Annotated[float, Field(gt=0, le=1)]
    review_flips: Annotated[float, Field(ge=0, le=1)]
    outlier_change: Annotated[float, Field(gt=0, le=1)] = 0.1


_EXACT = {"flips": 0.0002, "accuracy_loss": 0.0002, "nll_increase": 0.001, "ece_increase": 0.001, "review_flips": 0.002}
_COARSE = {"flips": 0.002, "accuracy_loss": 0.002, "nll_increase": 0.01, "ece_increase": 0.01, "review_flips": 0.02}
# BF16 and INT8 keep 8 significant bits; FP16 keeps 11, and has FP32's limits except for the largest difference.
BUDGETS: dict[Precision, Budget] = {
    "fp32": Budget(max_difference=1e-4, **_EXACT, outlier_change=0.002),
    "fp16": Budget(max_difference=0.02, **_EXACT, outlier_change=0.02),
    "bf16": Budget(max_difference=0.2, **_COARSE),
    "int8": Budget(max_difference=0.2, **_COARSE),
}


class ExportSettings(Settings):
    """Settings of an export.

    Attributes:
        target: Hardware to serve on.
        precision: Precision of all members: fp32, bf16 or int8 on a CPU, fp32 or fp16 on a GPU. `auto` chooses per
            member: on CPUs the fastest that passes, on GPUs FP16 where it passes. `int8` takes the faster of its two
            forms.
        form: `fused` serves members and vote as one graph, `chain` a model for each. By default, `fused` on a CPU if no
            member is bf16, else `chain`.
        fused: If True, a repository of the form `chain` has ensemble_fused, too: members and vote in one graph.
        without_promise: If True, export without the promise of `plurum fit` on the review risk, and do not certify it.
        without_cascade: If True, export without the cascade of `plurum fit`: all members run for each image.
        without_openvino: If True, export only graphs for ONNX Runtime and TensorRT, which a Triton that is started
            without `plurum serve` loads.
        max_batch_size: Largest batch that the server accepts or forms, 1 to 1024.
        tolerance: Largest allowed difference in any probability between PyTorch and an FP32 graph, 0 to 1.
        parity_images: Largest number of the run's validation images to check artefacts on.
        calibration_images: Largest number of the run's training images to calibrate INT8 and FP16 on.
        budgets: Tolerances of each precision; the vote gets those of its members' coarsest precision.
    """

    target: Target = "cpu"
    precision: Precision | Literal["auto"] = "fp32"
    form: Form | None = None
    fused: Annotated[bool, Option(is_hidden=True)] = False
    without_promise: bool = False
    without_cascade: bool = False
    without_openvino: bool = False
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    parity_images: Annotated[int, Field(ge=1), NOT_AN_OPTION] = 512
    calibration_images: Annotated[int, Field(ge=1), NOT_AN_OPTION] = 128
    budgets: Annotated[dict[Precision, Budget], NOT_AN_OPTION] = BUDGETS

    @model_validator(mode="after")
    def _target_has_precision(self) -> ExportSettings:
        known = list(dict.fromkeys(one.precision for one in EXECUTIONS[self.target]))
        if self.precision not in {*known, "auto"}:
            raise ValueError(
                f"--precision: expected {', '.join(known)} or auto for --target {self.target}, got {self.precision}"
            )
        offered = list(dict.fromkeys(one.precision for one in self.executions))
        if self.precision not in {*offered, "auto"}:
            raise ValueError(
                f"--precision: expected {', '.join(offered)} or auto with --without-openvino, got {self.precision}"
            )
        return self

    @property
    def executions(self) -> tuple[Execution, ...]:
        """Executions that the target offers, the reference first."""
        offered = EXECUTIONS[self.target]
        return tuple(one for one in offered if not (self.without_openvino and one.backend == "openvino"))

    def budget(self, precision: Precision) -> Budget:
        """Return the tolerances of artefacts in `precision`."""
        budget = self.budgets[precision]
        return budget.model_copy(update={"max_difference": self.tolerance}) if precision == "fp32" else budget
