"""Stage a repository for Triton: link to its models, and complete their configs for this machine.

Members and voter that no ensemble uses are left out. Values stated in a `config.pbtxt` are kept. Missing values (the
numbers of instances and threads) follow from the number of cores. The repository itself is never written to.

Every member gets as many one-thread instances as there are cores, although the members then compete for them. With
resnet18, efficientnet_b0 and densenet121 on two cores, this gave the highest throughput. Slower were one instance of
two threads, one instance of one thread, and Triton's rate limiter. More threads per instance lower the latency for a
single client; state them in the config if you need that.

The fused graph gets the same instances. In addition, an instance that computes alone uses the threads of all: see
`serving/backends/cores.py`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from plurum.conventions import MANAGERS
from plurum.onnx_graphs import stages
from plurum.repository.configs import read_config
from plurum.repository.listing import model_folders
from plurum.serving.triton.settings import ReleaseTrial
from plurum.spec import read_ensemble, version_from_release

__all__ = ["StagedRepository", "are_complete", "complete_config", "read_config", "stage"]

_CONFIG = "config.pbtxt"
_MODELS = Path(__file__).parents[2] / "model_repository"
# Names that export gives the steps of a fused ensemble.
_FUSED, _LABELS = "fused", "labels"
_VOTER = "voter"
_FRONT = _MODELS / "trial" / "model.py"
_BACKENDS = Path(__file__).parents[1] / "backends"
_OPENVINO = (
    _MODELS / "openvino" / "model.py",
    _BACKENDS / "graph_model.py",
    _BACKENDS / "cores.py",
    Path(stages.__file__),
)
_NAMING = _MODELS / "labels" / "labels.py"
_MANAGER = _MODELS / "manager" / "model.py"
# The coarsest resolution of file times.
_STEP_NS = 1_000_000_000
# Each instance holds a copy of the weights, so more instances gain little; further cores become threads.
_MAX_INSTANCES = 4
# Each backend's parameter for the number of threads per instance.
_THREADS = {"onnxruntime": "intra_op_thread_count", "openvino": "INFERENCE_NUM_THREADS"}
# Parameter of our backends for the number of threads of an instance that computes alone.
_THREADS_ALONE = "threads_alone"


def are_complete(configs: list[Any]) -> bool:
    """Return True if every config states inputs and outputs, so that Triton need not start models twice to get them."""
    return all(config.input and config.output for config in configs)


def stage(repository: Path, folder: Path, cores: int, *, cpu_only: bool, tag: str = "") -> list[Any]:
    """Stage `repository` in `folder` and return the staged configs, each with its model's name.

    Args:
        repository: Model repository.
        folder: Folder to stage in; created if missing. Models of other releases in it stay.
        cores: Number of cores, which all models share: each prediction of an ensemble needs all of them.
        cpu_only: If True, members compute on the CPU. Otherwise Triton places them on its GPUs.
        tag: Tag of the release, appended to its models' names so that several releases can be loaded; empty for none.

    Raises:
        MetadataError: its `ensemble.json` is broken.
        RepositoryError: `repository` is not a model repository, or a config in it can't be read.
    """
    folder.mkdir(exist_ok=True)
    configs = _read_configs(repository)
    for other in repository.iterdir():
        if other.is_file() and not tag:
            (folder / other.name).symlink_to(other.resolve())
    labels = _fold_labels(repository, {model.name: config for model, config in configs.items()})
    if labels is not None:
        del configs[repository / _LABELS]
    for model, config in configs.items():
        config.name = config.name or model.name
        complete_config(config, cores, cpu_only=cpu_only)
        if tag:
            config.name = f"{config.name}-{tag}"
            for step in config.ensemble_scheduling.step:
                step.model_name = f"{step.model_name}-{tag}"
        staged = folder / config.name if tag else folder / model.name
        staged.mkdir()
        for part in model.iterdir():
            if part.name != _CONFIG:
                (staged / part.name).symlink_to(part.resolve())
        if config.backend == "openvino":
            _use_openvino_model(staged, config, labels if model.name == _FUSED else None)
        _write_config(staged, config)
    return list(configs.values())


def _read_configs(repository: Path) -> dict[Path, Any]:
    """Return the configs of the models that a server needs, by folder.

    Members and voter that no ensemble has as a step are left out. With a fused graph they are there for `plurum tune`
    and `plurum doctor`; a server would only spend memory on them.
    """
    configs = {model: read_config(model) for model in model_folders(repository)}
    steps = {step.model_name for config in configs.values() for step in config.ensemble_scheduling.step}
    metadata = repository / "ensemble.json"
    if not steps or not metadata.is_file():
        return configs
    unused = {_VOTER, *(member.name for member in read_ensemble(metadata).members)} - steps
    return {model: config for model, config in configs.items() if model.name not in unused}


def complete_config(config: Any, cores: int, *, cpu_only: bool) -> None:
    """Complete `config` in place: the number of instances, and the threads of each."""
    instances = _stated_instances(config)
    # OpenVINO computes on the CPU even on machines with a GPU.
    if config.backend == "openvino" or (config.backend == "onnxruntime" and cpu_only):
        name = _THREADS[config.backend]
        stated = config.parameters[name].string_value if name in config.parameters else ""
        threads = int(stated) if stated.isdigit() and stated != "0" else 0
        if not instances:
            instances = max(1, min(cores, _MAX_INSTANCES) // (threads or 1))
            config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=instances)
        threads = threads or max(1, cores // instances)
        if not stated:
            config.parameters[name].string_value = str(threads)
        if config.name == _FUSED and instances > 1 and _THREADS_ALONE not in config.parameters:
            config.parameters[_THREADS_ALONE].string_value = str(instances * threads)
    elif config.name == "preprocess" and not instances:
        # Decoding is CPU-bound and stateless. The voter keeps a single instance because it counts its predictions.
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=min(cores, _MAX_INSTANCES))


def _fold_labels(repository: Path, configs: dict[str, Any]) -> Path | None:
    """Merge the labels model into Plurum's OpenVINO model of the fused graph, which saves a step per prediction.

    Remove the labels model from the ensembles in `configs`, which are keyed by folder name. Return its version folder,
    whose files belong beside the graph, or None if nothing changes.
    """
    version = repository / _LABELS / "1"
    if not {_FUSED, _LABELS} <= set(configs) or configs[_FUSED].backend != "openvino":
        return None
    # The OpenVINO model needs the current labels.py; an older repository holds another version.
    copy = version / _NAMING.name
    if not copy.is_file() or copy.read_bytes() != _NAMING.read_bytes():
        return None
    del configs[_FUSED].output[:]
    configs[_FUSED].output.extend(configs[_LABELS].output)
    for config in configs.values():
        steps = config.ensemble_scheduling.step
        by_model = {step.model_name: step for step in steps}
        if _LABELS in by_model:
            by_model[_FUSED].output_map.clear()
            by_model[_FUSED].output_map.update(by_model[_LABELS].output_map)
            steps.remove(by_model[_LABELS])
    return version


def _use_openvino_model(staged: Path, config: Any, labels: Path | None) -> None:
    """Link Plurum's OpenVINO model, and the files of `labels`, into each version of `staged`, and adapt `config`.

    Triton's own OpenVINO backend exists only in some installations, and accepts only batches of `max_batch_size`.
    """
    for version in [part for part in staged.iterdir() if part.name.isdigit()]:
        beside = [*(labels.iterdir() if labels else ()), *version.iterdir()]
        files = {file.name: file.resolve() for file in (*beside, *_OPENVINO)}
        version.unlink()
        version.mkdir()
        for name, file in files.items():
            (version / name).symlink_to(file)
    config.backend = "python"
    # The Python backend would take default_model_filename for its own script.
    config.parameters["graph"].string_value = config.default_model_filename
    config.ClearField("default_model_filename")


class StagedRepository:
    """The folder that Triton serves from, and the configs of the models in it.

    Args:
        folder: Folder to stage in; the first `add` creates it.
        cores: Number of cores that all models share.
        cpu_only: If True, members compute on the CPU. Otherwise Triton places them on its GPUs.

    Attributes:
        configs: Configs by model name.
        fronts: Public names that front models serve while a release is on trial.
    """

    def __init__(self, folder: Path, cores: int, *, cpu_only: bool) -> None:
        self.folder = folder
        self.configs: dict[str, Any] = {}
        self.fronts: list[str] = []
        self._cores, self._cpu_only = cores, cpu_only

    @property
    def chains(self) -> list[str]:
        """Names of the ensembles."""
        return [name for name, config in self.configs.items() if config.ensemble_scheduling.step]

    def instances(self, model: str) -> int:
        """Return a model's number of instances (per GPU on GPUs); 0 for ensembles and removed models."""
        config = self.configs.get(model)
        return 0 if config is None or config.ensemble_scheduling.step else _stated_instances(config) or 1

    def processes(self, *, all_backends: bool) -> int:
        """Return the number of Python processes of the models.

        Args:
            all_backends: If True, count every backend, as all of them run in Python on the wheel's Triton.
        """
        names = [name for name, config in self.configs.items() if all_backends or config.backend == "python"]
        return sum(map(self.instances, names))

    def add(self, repository: Path, tag: str = "") -> None:
        """Stage a repository; append `tag`, if not empty, to its models' names.

        Raises:
            RepositoryError: `repository` is not a model repository, or a config in it can't be read.
        """
        configs = stage(repository, self.folder, self._cores, cpu_only=self._cpu_only, tag=tag)
        self.configs.update({config.name: config for config in configs})

    def add_managers(self) -> None:
        """Stage the manager models, which load and unload the others."""
        for name in MANAGERS:
            version = _only_version(self.folder / name, 1)
            (version / "model.py").symlink_to(_MANAGER.resolve())
            config = pb.ModelConfig(name=name, backend="python")
            # Triton requires at least one input and one output.
            config.input.add(name="NONE", data_type=pb.TYPE_BOOL, dims=[1])
            config.output.add(name="NOTHING", data_type=pb.TYPE_BOOL, dims=[1])
            config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
            _write_config(version.parent, config)
            self.configs[name] = config

    def models_of(self, tag: str) -> list[str]:
        """Return the models of a release, ensembles last because their steps must be loaded first."""
        models = [name for name in self.configs if name.endswith(f"-{tag}")]
        return sorted(models, key=lambda name: name in self.chains)

    def publish(self, tag: str) -> list[str]:
        """Make a release's ensembles public, and return their public names, which the caller must load."""
        public = []
        for chain in self.models_of(tag):
            if chain in self.chains:
                config = pb.ModelConfig()
                config.CopyFrom(self.configs[chain])
                config.name = chain.removesuffix(f"-{tag}")
                _only_version(self.folder / config.name, version_from_release(tag))
                _write_config(self.folder / config.name, config)
                self.configs[config.name] = config
                public.append(str(config.name))
        self.fronts = []
        return public

    def put_on_trial(self, trial: ReleaseTrial, current: str) -> list[str]:
        """Replace each public ensemble that both releases have by a front model, and return their names."""
        fronts = []
        for chain in self.models_of(current):
            name = chain.removesuffix(f"-{current}")
            candidate = f"{name}-{trial.release}"
            if chain in self.chains and candidate in self.configs:
                # A Python model of Triton 2.51 can't add parameters to a response, so the release is not named there.
                version = _only_version(self.folder / name, 1)
                (version / "model.py").unlink(missing_ok=True)
                (version / "model.py").symlink_to(_FRONT.resolve())
                parts = {"current": chain, "candidate": candidate}
                config = _front_config(name, self.configs[chain], self.configs[candidate], parts, trial)
                _write_config(version.parent, config)
                self.configs[name] = config
                fronts.append(name)
        self.fronts = fronts
        return fronts

    def touch(self, model: str) -> None:
        """Mark a model as changed: Triton does not reload a model whose files are unchanged."""
        _touch(self.folder / model)

    def remove(self, tag: str) -> None:
        """Remove a release."""
        for model in self.models_of(tag):
            self.configs.pop(model)
        # An `add` that failed may have left folders that have no config.
        for model_folder in self.folder.glob(f"*-{tag}"):
            shutil.rmtree(model_folder, ignore_errors=True)


def _stated_instances(config: Any) -> int:
    return sum(group.count or 1 for group in config.instance_group)


def _front_config(name: str, chain: Any, candidate: Any, parts: dict[str, str], trial: ReleaseTrial) -> Any:
    """Return the config of a front model: inputs of `chain`, outputs of both releases, and the trial's parameters."""
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=chain.max_batch_size)
    config.input.extend(chain.input)
    both = {one.name for one in candidate.output}
    config.output.extend(one for one in chain.output if one.name in both)
    # While one instance waits for responses, the others forward further requests.
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=_MAX_INSTANCES)
    config.dynamic_batching.SetInParent()
    config.parameters["contract"].string_value = chain.parameters["contract"].string_value
    for key, value in (parts | {"percent": f"{trial.percent:g}", "shadow": str(int(trial.shadow))}).items():
        config.parameters[key].string_value = value
    return config


def _only_version(model: Path, number: int) -> Path:
    """Create and return the folder of a model's version, and remove other versions: Triton serves the highest."""
    version = model / str(number)
    version.mkdir(parents=True, exist_ok=True)
    for other in model.iterdir():
        if other.is_dir() and other != version:
            shutil.rmtree(other)
    return version


def _touch(model: Path) -> None:
    """Give a model a file that is newer than all its others: Triton compares times, and clocks can jump back."""
    times = [time.time_ns()]
    for folder, _, files in os.walk(model, followlinks=True):
        for name in (".", *files):
            # A link may be broken.
            with contextlib.suppress(OSError):
                times.append(Path(folder, name).stat().st_mtime_ns)
    # Triton ignores files with this name.
    mark = model / "loaded_anew"
    mark.touch(mode=0o600)
    newest = max(times) + _STEP_NS
    os.utime(mark, ns=(newest, newest))


def _write_config(model: Path, config: Any) -> None:
    # Replace the file atomically: Triton may be reading the folder.
    hidden = model / f".{_CONFIG}"
    hidden.write_text(text_format.MessageToString(config), encoding="utf-8")
    hidden.replace(model / _CONFIG)
    _touch(model)
