"""Names, times and numbers that several packages agree on."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "FULL",
    "HUNG_S",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MANAGERS",
    "OPSET",
    "PATIENTS",
    "PROBE_ID",
    "PatientRule",
    "ResizeRule",
]

# Parameter of a request: true runs all members of a cascade for each image.
FULL = "full"
# A request that hangs the server has been inside for longer than this, in seconds, when `plurum serve` ends the server:
# `plurum serve` waits for at least 3 s.
HUNG_S = 2.5
# Of the pixels of ImageNet by channel, on a scale of 0 to 1; timm's weights expect them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The models that load and unload others. Triton never restarts a process of its own: each loads the other again.
MANAGERS = ("plurum_manager_1", "plurum_manager_2")
# Opset of all graphs. From 23 on, timm's fused attention becomes an Attention op, which TensorRT parses and then fails
# to build.
OPSET = 20
# Parameter of a request, by which the voter draws audits: a JSON list of each image's patient, as text or null.
PATIENTS = "patients"
# The id of probes. The voter leaves requests with this id out of its metrics.
PROBE_ID = "plurum-probe"
# Rule that combines the predictions of a patient's images; `plurum.voting.pool_groups` implements it.
PatientRule = Literal["mean", "max", "majority"]
# Rule that brings an image to the members' size; `plurum.images.resize_to_pixels` implements it.
ResizeRule = Literal["stretch", "crop", "pad"]
