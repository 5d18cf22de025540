"""Schemas of member.json and ensemble.json: inputs, outputs and vote of the members.

`member.json` lies beside a member's weights, `ensemble.json` at the top of a run and of a model repository. Export,
server, client and benchmarks read them, so that no constant is defined twice.
"""

from plurum.conventions import PatientRule
from plurum.spec.cascade import CascadeCost, CascadePromise, CascadeRule, EarlyStage
from plurum.spec.decisions import (
    ClassPromise,
    Conformal,
    DecisionPromise,
    OperatingPoint,
    RefusedPromise,
    Review,
    ReviewPromise,
    Voting,
)
from plurum.spec.ensemble import (
    RESERVED_NAMES,
    Baseline,
    Ensemble,
    FittedOn,
    SiteCalibration,
    read_ensemble,
    read_member,
    release_from_version,
    version_from_release,
)
from plurum.spec.fields import Classes, Metadata, Sha256, Text, name_from_file, read_metadata, write_metadata
from plurum.spec.members import IMAGE, INPUT_PIXELS, LOGITS, NOVELTY, ImageSpec, Member, Scores
from plurum.spec.outliers import OutlierRule

__all__ = [
    "IMAGE",
    "INPUT_PIXELS",
    "LOGITS",
    "NOVELTY",
    "RESERVED_NAMES",
    "Baseline",
    "CascadeCost",
    "CascadePromise",
    "CascadeRule",
    "ClassPromise",
    "Classes",
    "Conformal",
    "DecisionPromise",
    "EarlyStage",
    "Ensemble",
    "FittedOn",
    "ImageSpec",
    "Member",
    "Metadata",
    "OperatingPoint",
    "OutlierRule",
    "PatientRule",
    "RefusedPromise",
    "Review",
    "ReviewPromise",
    "Scores",
    "Sha256",
    "SiteCalibration",
    "Text",
    "Voting",
    "name_from_file",
    "read_ensemble",
    "read_member",
    "read_metadata",
    "release_from_version",
    "version_from_release",
    "write_metadata",
]
