"""The computation that every peer's application does: decode a JPEG, run each member, and vote as the ensemble does.

Decoding and resizing are Plurum's own code, so that predictions can be compared; only the framework differs.

Legend: arrays of pixels are uint8 `[1, height, width, 3]`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.images import open_image, pixels_from_image
from plurum.onnx_graphs.telemetry import import_onnxruntime
from plurum.spec import INPUT_PIXELS, LOGITS, ImageSpec, read_ensemble
from plurum.voting import soft_vote, softmax, temper

__all__ = ["Job", "OnnxMembers", "TorchMembers", "job_from_environment", "job_variable"]

_VARIABLE = "PLURUM_PEER_JOB"
Prediction = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Settings of an application.

    Attributes:
        repository: Model repository with the metadata and the members' graphs.
        weights: Folder with each member's weights, `ARCH.safetensors`.
        port: Port on 127.0.0.1 to listen on.
        workers: Number of computing processes, for frameworks that start several.
        threads: Threads of each session or process; 0 leaves their number to the library.
    """

    repository: str
    weights: str
    port: int
    workers: int
    threads: int


def job_variable(job: Job) -> dict[str, str]:
    """Return the environment variable that hands `job` to an application's processes."""
    return {_VARIABLE: json.dumps(asdict(job))}


def job_from_environment() -> Job:
    """Return the job that this process was started with."""
    return Job(**json.loads(os.environ[_VARIABLE]))


class _Members:
    """Decoding and voting, which are the same for all libraries."""

    def __init__(self, job: Job) -> None:
        self.ensemble = read_ensemble(Path(job.repository) / "ensemble.json")
        self.image: ImageSpec = self.ensemble.image
        self.weights, self.temperature = self.ensemble.voting.weights, self.ensemble.voting.temperature

    def predict(self, encoded: bytes) -> Prediction:
        """Return the label and the probabilities by class of one encoded image."""
        return self.predict_image(open_image(encoded, **self.image.decoding))

    def predict_image(self, image: Any) -> Prediction:
        """Return the label and the probabilities by class of an image that the framework has decoded."""
        pixels, classes = pixels_from_image(image, **self.image.resizing), self.ensemble.classes
        vote = temper(soft_vote(softmax(self.logits(pixels[None]))[None], self.weights), self.temperature)[0]
        return {
            "label": classes[int(vote.argmax())],
            "probabilities": {name: float(share) for name, share in zip(classes, vote, strict=True)},
        }

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the logits of the members, `[members, classes]`, which run one after the other."""
        raise NotImplementedError


class OnnxMembers(_Members):
    """Members in ONNX Runtime, one session each, with the library's settings except for the number of threads."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        ort = import_onnxruntime()

        options = ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        graphs = [Path(job.repository, member.name, "1", "model.onnx") for member in self.ensemble.members]
        self._sessions: list[Any] = [
            ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"]) for graph in graphs
        ]

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the logits of the members, `[members, classes]`."""
        return np.concatenate([session.run([LOGITS], {INPUT_PIXELS: pixels})[0] for session in self._sessions])


class TorchMembers(_Members):
    """Members in PyTorch, not compiled."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        import timm
        import torch
        from safetensors.torch import load_file

        self._torch = torch
        if job.threads:
            torch.set_num_threads(job.threads)
        self._models = []
        for member in self.ensemble.members:
            model = timm.create_model(member.arch, num_classes=len(self.ensemble.classes))
            model.load_state_dict(load_file(Path(job.weights) / f"{member.arch}.safetensors"))
            self._models.append(model.eval())
        self._mean, self._std = (torch.tensor(three).view(1, 3, 1, 1) for three in (self.image.mean, self.image.std))

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the logits of the members, `[members, classes]`."""
        with self._torch.inference_mode():
            tensor = self._torch.tensor(pixels).permute(0, 3, 1, 2).float().div(255)
            tensor = (tensor - self._mean) / self._std
            return np.concatenate([model(tensor).numpy() for model in self._models])
