"""Write a repository that serves a variant: each config.pbtxt states what tune has chosen."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from plurum.benchmarks.tune.variant import Backend, Batching, Form, Placement, Variant
from plurum.errors import RepositoryError
from plurum.export.manifest import MANIFEST, read_manifest
from plurum.export.repository.configs import FUSED, LABELS, ensemble_config, fused_ensemble_config, stage_models
from plurum.files import sha256_of
from plurum.repository.listing import model_folders
from plurum.serving.triton.staging import read_config
from plurum.spec import Ensemble, read_ensemble, write_metadata

__all__ = ["Artefacts", "read_artefacts", "write_variant"]

_CONFIG = "config.pbtxt"
_CHAINS = {"ensemble": True, "ensemble_pixels": False}
# Parameter for the threads of an instance, and file name of the graph, by backend.
_THREADS: dict[Backend, str] = {"onnxruntime": "intra_op_thread_count", "openvino": "INFERENCE_NUM_THREADS"}
_FILES: dict[Backend, str] = {"onnxruntime": "model.onnx", "openvino": "model.onnx", "tensorrt": "model.plan"}
_BF16 = "HINT_BF16"


@dataclass(frozen=True)
class Artefacts:
    """A repository whose graphs can be served in several ways.

    Attributes:
        name: Name, as in `Variant.artefacts`.
        path: Folder of the repository.
        ensemble: Metadata of the ensemble.
        configs: Configs of the models, by name.
        hashes: SHA-256 of every served graph or plan, by model.
        backends: Backends that can serve each graph, by model; the present one comes first.
    """

    name: str
    path: Path
    ensemble: Ensemble
    configs: Mapping[str, Any]
    hashes: Mapping[str, str]
    backends: Mapping[str, tuple[Backend, ...]]

    @property
    def members(self) -> tuple[str, ...]:
        """The members' models, in the order of the ensemble."""
        return tuple(member.name for member in self.ensemble.members)

    @property
    def forms(self) -> tuple[Form, ...]:
        """Forms that its ensembles can take."""
        if self.ensemble.cascade is not None:
            # Its stages are graphs of the fused model; a chain would run all members for each image.
            return ("fused",)
        return ("chain", "fused") if FUSED in self.configs and "ensemble_fused" in self.configs else ("chain",)

    @property
    def form(self) -> Form:
        """Form that its ensembles have."""
        return "fused" if _is_fused(self.configs["ensemble"]) else "chain"

    @property
    def max_batch_size(self) -> int:
        """Largest number of images in one request."""
        return int(self.configs["ensemble"].max_batch_size)

    def rounds(self, model: str) -> bool:
        """Return True if this model's graph is computed in BF16."""
        return _rounds(self.configs[model])

    def graphs(self, form: Form) -> tuple[str, ...]:
        """Return the models that compute in this form: on GPUs, a cascade's stages are models of their own."""
        return self.members if form == "chain" else _fused_models(self.ensemble, self.configs)

    @property
    def fused_hashes(self) -> tuple[str | None, ...]:
        """SHA-256 of the graphs of the fused form; None where it has none."""
        return tuple(self.hashes.get(model) for model in self.graphs("fused"))

    def batching(self, form: Form) -> Batching:
        """Return the batching of the first graph of this form."""
        config = self.configs[self.graphs(form)[0]]
        stated = config.dynamic_batching
        return Batching(
            dynamic=config.HasField("dynamic_batching"),
            preferred=tuple(stated.preferred_batch_size),
            delay_us=stated.max_queue_delay_microseconds,
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 over configs and graphs."""
        digest = hashlib.sha256()
        for name, config in sorted(self.configs.items()):
            digest.update(f"{name}\n{self.hashes.get(name, '')}\n".encode())
            digest.update(config.SerializeToString(deterministic=True))
        return digest.hexdigest()


def read_artefacts(name: str, path: Path) -> Artefacts:
    """Read the repository at `path`.

    Raises:
        MetadataError: Its `ensemble.json` is broken.
        RepositoryError: The folder is not a model repository of Plurum, or lacks a graph or a plan.
    """
    configs = {folder.name: read_config(folder) for folder in model_folders(path)}
    if not (path / "ensemble.json").is_file() or not set(_CHAINS) <= set(configs):
        raise RepositoryError(f"{path} is not a model repository; plurum export RUN writes one")
    ensemble = read_ensemble(path / "ensemble.json")
    members = [member.name for member in ensemble.members]
    if missing := [member for member in members if member not in configs]:
        raise RepositoryError(f"{path} has no model {missing[0]}, a member of its ensemble; export the run again")
    graphs = [model for model in (*members, *_fused_models(ensemble, configs)) if model in configs]
    files = {model: _file(path / model / "1", configs[model]) for model in graphs}
    hashes = {model: sha256_of(file) for model, file in files.items()}
    backends = {model: _backends(configs[model], file) for model, file in files.items()}
    return Artefacts(name, path, ensemble, configs, hashes, backends)


def _fused_models(ensemble: Ensemble, configs: Mapping[str, Any]) -> tuple[str, ...]:
    stages = tuple(stage_models(ensemble))
    return stages if stages and set(stages) <= set(configs) else (FUSED,)


def _file(version: Path, config: Any) -> Path:
    """Return the graph or plan of a model.

    Raises:
        RepositoryError: The file is missing, or tune does not support its backend.
    """
    backend = _backend(config)
    if backend not in _FILES:
        raise RepositoryError(f"{version.parent}: expected one of the backends {', '.join(_FILES)}, got {backend}")
    file = version / _FILES[backend]
    if not file.is_file():
        how = "build it with plurum export --build-engines" if backend == "tensorrt" else "export the run again"
        raise RepositoryError(f"{file} is missing; {how}")
    return file


def _backend(config: Any) -> Backend:
    return "tensorrt" if config.platform == "tensorrt_plan" else cast("Backend", config.backend or config.platform)


def write_variant(artefacts: Artefacts, variant: Variant, folder: Path, *, trial: bool) -> None:
    """Fill the empty `folder` with a repository that serves `artefacts` as `variant` says.

    Models that its form does not use stay in the folder, with one instance each, and `plurum serve` leaves members and
    voter out. For a trial they are missing, and files are links.

    Args:
        artefacts: Repository to tune, or another export of its run.
        variant: Settings that every `config.pbtxt` will state.
        folder: Existing, empty folder.
        trial: If True, the repository serves one trial only.
    """
    for other in artefacts.path.iterdir():
        # Evidence of an earlier tuning does not belong to this one.
        if other.is_file() and not other.name.startswith("tuning."):
            shutil.copyfile(other, folder / other.name)
    # The models that neither `ensemble` nor `ensemble_pixels` uses in this form.
    unused = {"ensemble_fused", FUSED, LABELS} if variant.form == "chain" else {*artefacts.members, "voter"}
    for name, stated in artefacts.configs.items():
        if trial and name in unused:
            continue
        config = pb.ModelConfig()
        config.CopyFrom(stated)
        model = folder / name
        model.mkdir()
        for part in (artefacts.path / name).iterdir():
            if part.name != _CONFIG:
                _place(part, model / part.name, link=trial)
        text = text_format.MessageToString(_tuned(name, config, artefacts, variant))
        (model / _CONFIG).write_text(text, encoding="utf-8")
    if (folder / MANIFEST).is_file():
        _correct_manifest(folder, variant)


def _correct_manifest(folder: Path, variant: Variant) -> None:
    """Record the backend of each graph in the manifest, and the hashes of the new configs.

    Other files keep the hashes of the export, so that later changes to them are still found.
    """
    manifest = read_manifest(folder)
    artefacts = tuple(
        one.model_copy(update={"backend": variant.graphs[one.model].backend}) if one.model in variant.graphs else one
        for one in manifest.artefacts
    )
    files = manifest.files
    if files is not None:
        written = (name for name in files if name.endswith(f"/{_CONFIG}") and (folder / name).is_file())
        files = files | {name: sha256_of(folder / name) for name in written}
    write_metadata(folder / MANIFEST, manifest.model_copy(update={"artefacts": artefacts, "files": files}))


def _place(part: Path, to: Path, *, link: bool) -> None:
    if link:
        to.symlink_to(part.resolve())
    elif part.is_dir():
        shutil.copytree(part, to)
    else:
        shutil.copyfile(part, to)


def _tuned(name: str, config: Any, artefacts: Artefacts, variant: Variant) -> Any:
    if name in _CHAINS:
        return _chain(name, config, artefacts, variant.form)
    if name in variant.graphs:
        _state(config, variant.graphs[name])
        _state_batching(config, variant.batching)
    elif name in artefacts.hashes:
        # No ensemble uses it: one instance takes the least memory.
        threads = max(one.instances * one.threads for one in variant.graphs.values())
        _state(config, Placement(backend=_backend(config), instances=1, threads=threads))
    elif name == "preprocess":
        _state_batching(config, variant.batching)
    return config


def _chain(name: str, config: Any, artefacts: Artefacts, form: Form) -> Any:
    """Return the config of a public ensemble in this form; one that has it already stays as it is."""
    if _is_fused(config) == (form == "fused"):
        return config
    ensemble, most, encoded = artefacts.ensemble, int(config.max_batch_size), _CHAINS[name]
    if form == "fused":
        return fused_ensemble_config(ensemble, most, name, encoded=encoded)
    return ensemble_config(name, ensemble, most, encoded=encoded)


def _is_fused(config: Any) -> bool:
    return any(step.model_name == FUSED for step in config.ensemble_scheduling.step)


def _state(config: Any, placement: Placement) -> None:
    del config.instance_group[:]
    if placement.backend == "tensorrt":
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, count=placement.instances)
        return
    for name in _THREADS.values():
        config.parameters.pop(name, None)
    config.backend = placement.backend
    config.parameters[_THREADS[placement.backend]].string_value = str(placement.threads)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=placement.instances)


def _state_batching(config: Any, batching: Batching) -> None:
    config.ClearField("dynamic_batching")
    if batching.dynamic:
        config.dynamic_batching.SetInParent()
        config.dynamic_batching.preferred_batch_size.extend(batching.preferred)
        config.dynamic_batching.max_queue_delay_microseconds = batching.delay_us


def _backends(config: Any, graph: Path) -> tuple[Backend, ...]:
    """Return the backends that can serve a graph, the present one first; only TensorRT serves a plan.

    Both serve FP32 graphs. INT8 graphs are for one of them, and only OpenVINO computes in BF16.
    """
    import onnx

    own = _backend(config)
    if own == "tensorrt":
        return (own,)
    if _rounds(config) or any(node.op_type == "QuantizeLinear" for node in onnx.load(graph).graph.node):
        return (own,)
    return (own, "openvino" if own == "onnxruntime" else "onnxruntime")


def _rounds(config: Any) -> bool:
    return _BF16 in config.parameters and config.parameters[_BF16].string_value.upper() == "YES"
