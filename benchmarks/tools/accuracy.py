"""The accuracy of a served ensemble on a run's test images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferenceServerClient, InferInput

from plurum.run import Run
from plurum.spec import INPUT_PIXELS

__all__ = ["served_accuracy"]

_BATCH = 16
_MODEL = "ensemble_pixels"


def served_accuracy(url: str, run: Run) -> float:
    """Return the accuracy on the run's test images of the server at `url`, 0 to 1."""
    table, pixels, classes = run.table(), run.pixels(), run.ensemble().classes
    rows = table.rows("test")
    correct = 0
    with InferenceServerClient(url) as client:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            labels = _request_labels(client, np.array(pixels[batch]))
            correct += sum(label == classes[table.labels[row]] for label, row in zip(labels, batch, strict=True))
    return correct / len(rows)


def _request_labels(client: InferenceServerClient, pixels: npt.NDArray[np.uint8]) -> list[str]:
    tensor = InferInput(INPUT_PIXELS, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return [label.decode() for label in client.infer(_MODEL, [tensor]).as_numpy("LABEL")[:, 0]]
