"""Outputs of every served ensemble: the table that configs, models, clients, files and docs read. NumPy only.

Export copies this file beside the voter. To add an output, add a row here, the field and its value in `plurum.voting`
(and in `plurum.export.graphs.fused` for the fused graph), and the field in `plurum.predictions.prediction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from plurum.voting import Verdict

__all__ = ["AUDIT", "OUTPUTS", "VOTED", "Output", "tensors_from_verdict"]


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
        is_optional: True if only some repositories have it, and the vote does not compute it.
    """

    name: str
    datatype: Literal["FP32", "BOOL", "BYTES"]
    dims: tuple[Literal["C", "M", 1], ...]
    column: str
    meaning: str
    in_files: bool = True
    is_optional: bool = False

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


# The only output that the vote does not compute.
AUDIT = "AUDIT"
_TABLE = (
    Output("LABEL", "BYTES", (1,), "label", "decided class"),
    Output("REVIEW", "BOOL", (1,), "review", "true if the prediction needs review"),
    Output(AUDIT, "BOOL", (1,), "audit", "true if drawn for audit, whatever the prediction", is_optional=True),
    Output("ENTROPY", "FP32", (1,), "entropy", "predictive entropy in nats, 0 to log(classes)"),
    Output("DISAGREEMENT", "FP32", (1,), "disagreement", "mutual information of prediction and member, in nats"),
    Output("PREDICTION_SET", "BOOL", ("C",), "prediction_set", "classes that can't be ruled out at the fitted risk"),
    Output("PROBABILITIES", "FP32", ("C",), "p_{name}", "probabilities by class, which sum to 1"),
    Output("STD", "FP32", ("C",), "std_{name}", "standard deviation over members, by class", in_files=False),
    Output("MEMBER_PROBABILITIES", "FP32", ("M", "C"), "{member}_p_{name}", "probabilities by member", in_files=False),
)
# In the order of the columns in tables.
OUTPUTS: dict[str, Output] = {output.name: output for output in _TABLE}
# Outputs that the vote computes, which every repository has.
VOTED: dict[str, Output] = {name: output for name, output in OUTPUTS.items() if not output.is_optional}
_TYPES = {"FP32": np.float32, "BOOL": np.bool_, "BYTES": np.object_}


def tensors_from_verdict(verdict: Verdict, classes: Sequence[bytes]) -> dict[str, Any]:
    """Return the outputs of the vote for a batch, in the data types of Triton's tensors.

    Args:
        verdict: Verdict on the batch.
        classes: Names of the classes.
    """
    values = vars(verdict) | {"label": np.array(classes, dtype=np.object_)[verdict.label]}
    tensors = {name: values[one.field].astype(_TYPES[one.datatype]) for name, one in VOTED.items()}
    return {name: tensor[:, None] if OUTPUTS[name].is_scalar else tensor for name, tensor in tensors.items()}
