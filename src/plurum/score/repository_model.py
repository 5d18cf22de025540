"""The fused graph of a repository in this process: decoding, graph, vote and labels as Triton serves them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format

from plurum.client.connection.description import served_from_description
from plurum.client.connection.predictions import Answer, Failure, Served
from plurum.errors import RepositoryError
from plurum.files import sha256_of
from plurum.images import UnreadableImageError, open_image, pixels_from_image, structure_of
from plurum.images.decoder import Decoder
from plurum.model_repository.voter.audit import draw_from_folder
from plurum.onnx_graphs.sessions import GraphRunner, Tensors, onnx_stage, openvino_stage
from plurum.onnx_graphs.stages import run_stages
from plurum.predictions.arrays import Bools, Bytes
from plurum.predictions.outputs import AUDIT, graph_outputs
from plurum.predictions.prediction import predictions_from_tensors
from plurum.repository.configs import read_config
from plurum.repository.listing import model_folders
from plurum.spec import INPUT_PIXELS, read_ensemble

__all__ = ["RepositoryModel", "graph_files", "identity_of", "served_from_repository"]

# Most images of one inference. The backend of the server may also have its own limit, the config's.
_BATCH = 16
# As in the preprocess model: what needs more work is decoded in a process that can be killed.
_WORK_AT_ONCE, _BYTES_LOOKED_AT = 8_000_000, 16 << 20


class RepositoryModel:
    """The fused graph of a repository, computed on one or more cores of this machine.

    Args:
        repository: Folder of the repository.
        threads: Threads per inference.

    Attributes:
        served: Description of the ensemble, as a server of this repository gives it.

    Raises:
        MissingExtraError: the library that computes the graph is not installed.
        RepositoryError: the repository has no fused graph, or can't be read.
    """

    def __init__(self, repository: Path, threads: int = 1) -> None:
        files = graph_files(repository)
        self.served = served_from_repository(repository)
        config = read_config(repository / "fused")
        self._stages = [_graph(config, file, threads) for file in files]
        self._outputs = graph_outputs(has_outliers=self.served.has_outliers, has_cascade=self.served.has_cascade)
        self._batch = min(_BATCH, max(1, config.max_batch_size))
        self._classes = np.array([name.encode() for name in self.served.classes], dtype=np.object_)
        self._audit = draw_from_folder(repository / "labels" / "1") if self.served.has_audit else None
        image = read_ensemble(repository / "ensemble.json").image
        self._rule, self._decoding = image.resizing, image.decoding
        self._decoder = Decoder(self._rule, **self._decoding)

    def answers(self, images: Sequence[bytes], patients: Sequence[str]) -> list[Answer]:
        """Return one prediction or failure per image, in order.

        Args:
            images: Encoded images.
            patients: Patient of each image; empty if unknown.
        """
        found: list[Answer] = []
        for start in range(0, len(images), self._batch):
            part = slice(start, start + self._batch)
            found += self._answer_batch(images[part], patients[part])
        return found

    def close(self) -> None:
        """End the process that decodes large images, if there is one."""
        self._decoder.close()

    def _answer_batch(self, images: Sequence[bytes], patients: Sequence[str]) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(images)
        pixels, places = [], []
        for place, data in enumerate(images):
            try:
                pixels.append(self._decode(data))
                places.append(place)
            except UnreadableImageError as error:
                answers[place] = Failure(place, f"image {place}", f"IMAGE: {error}")
        if pixels:
            predicted = self._predict(np.stack(pixels), [patients[place] for place in places])
            for place, answer in zip(places, predicted, strict=True):
                answers[place] = answer
        return [answer for answer in answers if answer is not None]

    def _decode(self, data: bytes) -> Bytes:
        structure = structure_of(data) if len(data) <= _BYTES_LOOKED_AT else None
        if structure is None or structure.apart or structure.work > _WORK_AT_ONCE:
            return self._decoder.pixels(data)
        return pixels_from_image(open_image(data, structure, **self._decoding), **self._rule)

    def _predict(self, pixels: Bytes, patients: list[str]) -> list[Answer]:
        """Return predictions for `pixels` `[batch, height, width, 3]`; a NaN of a member fails its image."""
        is_full = np.zeros(len(pixels), dtype=np.bool_)
        found = run_stages(self._stages, {INPUT_PIXELS: pixels}, is_full, self._outputs)
        failed = self._members_with_nan(found)
        tensors = {name: array for name, array in found.items() if name != "INDEX"}
        tensors["LABEL"] = self._classes[found["INDEX"][:, 0]][:, None]
        if self._audit is not None:
            tensors[AUDIT] = self._audit.draw(pixels, patients)
        predictions = predictions_from_tensors(tensors, self.served.classes, self.served.members, len(pixels))
        return [
            Failure(index, f"image {index}", f"no vote: NaN from {names}", "server") if names else prediction
            for index, (names, prediction) in enumerate(zip(failed, predictions, strict=True))
        ]

    def _members_with_nan(self, found: Tensors) -> list[str]:
        """Return the names of members that returned NaN for each image; empty texts for the others."""
        is_nan: Bools = np.asarray(np.isnan(found["MEMBER_PROBABILITIES"]).any(axis=2))
        names = [", ".join(compress(self.served.members, row)) for row in is_nan]
        if "OUTLIER" in found:
            names = [
                one or "a detector" * bool(nan)
                for one, nan in zip(names, np.isnan(found["OUTLIER"][:, 0]), strict=True)
            ]
        return names


def served_from_repository(repository: Path) -> Served:
    """Return the description that a server of the repository gives.

    Raises:
        RepositoryError: its configs can't be read, or are not those of an ensemble.
    """
    model_folders(repository)
    try:
        # 64-bit integers become texts in JSON.
        config: dict[str, Any] = json_format.MessageToDict(
            read_config(repository / "ensemble"), preserving_proto_field_name=True
        )
        outputs = [{"name": one["name"], "shape": [-1, *one["dims"]]} for one in config["output"]]
        return served_from_description(config, outputs, [], encoded=True)
    except (KeyError, ValueError) as error:
        raise RepositoryError(
            f"{repository} is not a repository of Plurum ({error!r}). Export it again with plurum export."
        ) from error


def graph_files(repository: Path) -> list[Path]:
    """Return the files of the fused graph: one, or those of a cascade's stages.

    Raises:
        RepositoryError: the folder is not a repository, or has no fused graph.
    """
    model_folders(repository)
    folder = repository / "fused"
    missing = RepositoryError(
        f"{repository}: expected a fused graph in fused/1, got none. Export it again with plurum export --form fused."
    )
    if not (folder / "config.pbtxt").is_file():
        raise missing
    stages = read_config(folder).parameters["stages"].string_value.split()
    # TensorRT's plan is made from the same file.
    files = [folder / "1" / name for name in stages or ["model.onnx"]]
    if not all(file.is_file() for file in files):
        if stages and all((repository / name / "config.pbtxt").is_file() for name in stages):
            raise RepositoryError(
                f"{repository}: expected graphs of stages in fused/1, got models of stages, which only Triton runs. "
                "Give --url, or export for CPUs."
            )
        raise missing
    return files


def identity_of(repository: Path) -> str:
    """Return a hash of all that decides on the predictions: metadata, configs and graphs."""
    files = graph_files(repository)
    files += [repository / name for name in ("ensemble/config.pbtxt", "fused/config.pbtxt", "ensemble.json")]
    hashes = [sha256_of(file) for file in files]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _graph(config: Any, file: Path, threads: int) -> GraphRunner:
    if config.backend == "openvino":
        return openvino_stage(file, threads, bf16=config.parameters["HINT_BF16"].string_value == "YES")
    return onnx_stage(file, threads)
