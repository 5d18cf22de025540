"""Choose the form in which a repository serves its ensemble: members and vote as one graph, or a chain of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plurum.errors import SettingsError
from plurum.export.repository.configs import stage_models
from plurum.export.settings import ExportSettings, Form, Precision
from plurum.spec import Ensemble

__all__ = ["ServedForm", "choose_form", "without_unserved_cascade"]


@dataclass(frozen=True)
class ServedForm:
    """Form of a repository.

    Attributes:
        name: Form of `ensemble` and `ensemble_pixels`.
        reason: Reason for this form, in words.
        has_fused_graph: True if the repository has the fused graph.
    """

    name: Form
    reason: str
    has_fused_graph: bool


def without_unserved_cascade(ensemble: Ensemble, settings: ExportSettings) -> Ensemble:
    """Return the ensemble that an export serves: without its cascade if the settings leave it out.

    Raises:
        SettingsError: the ensemble has a cascade, and the form is a chain or a member has the name of a stage's model.
    """
    if ensemble.cascade is None or settings.without_cascade:
        return ensemble.with_cascade(None)
    taken = {one.name for one in ensemble.members}.intersection(stage_models(ensemble))
    if settings.target == "gpu" and taken:
        raise SettingsError(
            f"--target: expected cpu for a cascade with a member named {min(taken)}, got gpu. "
            f"Give --without-cascade, or train the member under another name."
        )
    if settings.form == "chain":
        raise SettingsError(
            "--form: expected fused for an ensemble with a cascade, got chain. Give --without-cascade to run all "
            "members in a chain."
        )
    return ensemble


def choose_form(ensemble: Ensemble, settings: ExportSettings, precisions: Mapping[str, Precision]) -> ServedForm:
    """Return the form of a repository.

    Args:
        ensemble: Ensemble that is served.
        settings: Settings of the export.
        precisions: Precision of each graph, by model.
    """
    rounded = [name for name, precision in precisions.items() if precision == "bf16"]
    name: Form = "fused"
    if ensemble.cascade is not None:
        reason = "its cascade runs a graph for each stage"
    elif settings.form is not None:
        name, reason = settings.form, "as requested"
    elif settings.target == "gpu":
        name, reason = "chain", "the default for a GPU"
    elif rounded:
        name, reason = "chain", f"a fused graph would compute {', '.join(rounded)} in FP32 instead of BF16"
    else:
        reason = "each core computes a whole image, and an image alone gets all cores"
    return ServedForm(name, reason, name == "fused" or settings.fused)
