"""Does an exported graph answer as the model it came from?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from pydantic import BaseModel, ConfigDict

from plurum.errors import ParityError
from plurum.export.graphs import PixelModel
from plurum.spec import INPUT_PIXELS, LOGITS
from plurum.voting import softmax

__all__ = ["Parity", "check_parity", "parity_of"]

_BATCH = 32


class Parity(BaseModel):
    """How far a graph's answers are from its original's on real images.

    Attributes:
        images: How many were asked.
        flips: How many got another label.
        max_difference: Largest difference of any probability, 0 to 1.
        mean_difference: Mean over images of the largest difference.
        tolerance: What `max_difference` must not exceed.
    """

    model_config = ConfigDict(frozen=True)

    images: int
    flips: int
    max_difference: float
    mean_difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the graph may be published; NaN never passes."""
        return self.max_difference <= self.tolerance


def parity_of(model: PixelModel, path: Path, pixels: npt.NDArray[np.uint8], tolerance: float) -> Parity:
    """Compare PyTorch with ONNX Runtime on uint8 pixels `[images, height, width, 3]`."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected, received = [], []
    for start in range(0, len(pixels), _BATCH):
        batch = np.ascontiguousarray(pixels[start : start + _BATCH])
        with torch.inference_mode():
            expected.append(model(torch.from_numpy(batch.copy())).numpy())
        received.append(session.run([LOGITS], {INPUT_PIXELS: batch})[0])
    original, exported = softmax(np.concatenate(expected)), softmax(np.concatenate(received))
    differences = np.abs(original - exported).max(axis=1)
    return Parity(
        images=len(pixels),
        flips=int(np.count_nonzero(original.argmax(axis=1) != exported.argmax(axis=1))),
        max_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        tolerance=tolerance,
    )


def check_parity(name: str, parity: Parity) -> None:
    """Refuse to go on with a graph that answers otherwise.

    Raises:
        ParityError: a probability differs by more than the tolerance.
    """
    if not parity.passed:
        raise ParityError(
            f"the ONNX graph of {name} answers otherwise than PyTorch: probabilities differ by up to "
            f"{parity.max_difference:.2g} on {parity.images} validation images ({parity.flips} other labels), "
            f"at most {parity.tolerance:.2g} is allowed; nothing was written. Train a member that has "
            f"hardly learnt for longer, or allow more with --tolerance"
        )
