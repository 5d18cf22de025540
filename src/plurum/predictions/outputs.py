"""Outputs of served ensembles: the table that configs, models, clients, files and docs read. NumPy only.

Export copies this file beside the voter. To add an output, add a row here, the field and its value in `plurum.voting`
(and in `plurum.export.graphs.fused` for the fused graph), and the field in `plurum.predictions.prediction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from plurum.voting import Verdict

__all__ = [
    "AUDIT",
    "BEFORE",
    "LEAVE",
    "OUTPUTS",
    "TESTED",
    "USED",
    "VOTED",
    "Output",
    "graph_outputs",
    "tensors_from_verdict",
    "voted_outputs",
]


@dataclass(frozen=True)
class Output:
    """An output of a served ensemble.

    Attributes:
        name: Name of the tensor.
        datatype: Data type of the tensor, as KServe names it.
        dims: Shape of the tensor without the batch: `C` classes, `M` members.
        column: Column in tables, with `{name}` for each class and `{member}` for each member.
        meaning: Meaning, for the docs.
        in_files: True if CSV and Parquet files have the column, too; pandas tables have all.
        needs: Key of `ensemble.json` without which there is no such output; None if every ensemble has it.
    """

    name: str
    datatype: Literal["FP32", "BOOL", "BYTES", "UINT8"]
    dims: tuple[Literal["C", "M", 1], ...]
    column: str
    meaning: str
    in_files: bool = True
    needs: str | None = None

    @property
    def is_optional(self) -> bool:
        """True if only some ensembles have it."""
        return self.needs is not None

    @property
    def field(self) -> str:
        """Attribute of `Verdict` and `Prediction`, and key in JSON."""
        return self.name.lower()

    @property
    def is_scalar(self) -> bool:
        """True if there is one value per image."""
        return self.dims == (1,)

    def shape(self, classes: int, members: int) -> tuple[int, ...]:
        """Return the shape without the batch, for numbers of classes and members."""
        sizes = {"C": classes, "M": members}
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)


# Outputs that the vote does not compute: a draw, and the members that ran for each image of a cascade.
AUDIT = "AUDIT"
USED = "MEMBERS_USED"
# Output of a cascade's stage before the whole vote: true for each image that it settles.
LEAVE = "LEAVE"
# Suffix of inputs that the graph of a cascade's stage gets from the stage before.
BEFORE = "_BEFORE"
_TABLE = (
    Output("LABEL", "BYTES", (1,), "label", "decided class"),
    Output("REVIEW", "BOOL", (1,), "review", "true if the prediction needs review"),
    Output(
        "REVIEW_REASON",
        "UINT8",
        (1,),
        "review_reason",
        "reasons for review: confidence or operating point (1), prediction set (2), outlier (4)",
        needs="outliers",
    ),
    Output(AUDIT, "BOOL", (1,), "audit", "true if drawn for audit, whatever the prediction", needs="audit_rate"),
    Output("ENTROPY", "FP32", (1,), "entropy", "predictive entropy in nats, 0 to log(classes)"),
    Output("DISAGREEMENT", "FP32", (1,), "disagreement", "mutual information of prediction and member, in nats"),
    Output(
        "OUTLIER", "FP32", (1,), "outlier", "p-value, low if the image is unlike the reference images", needs="outliers"
    ),
    Output("PREDICTION_SET", "BOOL", ("C",), "prediction_set", "classes that can't be ruled out at the fitted risk"),
    Output("PROBABILITIES", "FP32", ("C",), "p_{name}", "probabilities by class, which sum to 1"),
    Output("STD", "FP32", ("C",), "std_{name}", "standard deviation over members, by class", in_files=False),
    Output("MEMBER_PROBABILITIES", "FP32", ("M", "C"), "{member}_p_{name}", "probabilities by member", in_files=False),
    Output(
        USED, "BOOL", ("M",), "members_used", "members that ran: in a cascade, not all for each image", needs="cascade"
    ),
)
# In the order of the columns in tables.
OUTPUTS: dict[str, Output] = {output.name: output for output in _TABLE}
# Outputs that every ensemble has, and those of an outlier test; the vote computes both.
VOTED: dict[str, Output] = {name: output for name, output in OUTPUTS.items() if not output.is_optional}
TESTED: dict[str, Output] = {name: output for name, output in OUTPUTS.items() if output.needs == "outliers"}
_TYPES = {"FP32": np.float32, "BOOL": np.bool_, "BYTES": np.object_, "UINT8": np.uint8}


def voted_outputs(*, has_outliers: bool) -> dict[str, Output]:
    """Return the outputs that a vote computes, by name: those of every ensemble first, then those of a test."""
    return VOTED | (TESTED if has_outliers else {})


def graph_outputs(*, has_outliers: bool, has_cascade: bool = False) -> tuple[str, ...]:
    """Return the names of a fused graph's outputs; INDEX stands for LABEL, because TensorRT has no strings."""
    voted = ["INDEX" if name == "LABEL" else name for name in voted_outputs(has_outliers=has_outliers)]
    return (*voted, USED) if has_cascade else tuple(voted)


def tensors_from_verdict(
    verdict: Verdict, classes: Sequence[bytes], outputs: Mapping[str, Output] = VOTED
) -> dict[str, Any]:
    """Return the outputs of the vote for a batch, in the data types of Triton's tensors.

    Args:
        verdict: Verdict on the batch.
        classes: Names of the classes.
        outputs: Outputs to return, by name.
    """
    values = vars(verdict) | {"label": np.array(classes, dtype=np.object_)[verdict.label]}
    tensors = {name: values[one.field].astype(_TYPES[one.datatype]) for name, one in outputs.items()}
    return {name: tensor[:, None] if OUTPUTS[name].is_scalar else tensor for name, tensor in tensors.items()}
