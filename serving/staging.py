"""The view of a repository that Triton is given: the same models by links, the configs filled in for this machine.

What a `config.pbtxt` states wins. What it leaves open (how many instances, how many threads) is filled in from the
cores there are. Nothing is ever written into the repository itself.

Every member gets as many one-thread instances as there are cores, although an ensemble's members then compete for
them: tried with resnet18, efficientnet_b0 and densenet121 on two cores, nothing else answered as many images a second,
neither one instance of two threads, nor one of one, nor Triton's rate limiter handing out the cores.
More threads an instance answer a single client sooner; who wants that states it in the config.
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
from plurum.errors import RepositoryError
from plurum.serving.releases import Trial
from plurum.spec import version_from_release

__all__ = ["Staged", "are_complete", "fill_in", "model_folders", "read_config", "stage"]

_CONFIG = "config.pbtxt"
_MODELS = Path(__file__).parents[1] / "model_repository"
# The steps of a fused ensemble, as export names them.
_FUSED, _LABELS = "fused", "labels"
_FRONT, _OPENVINO = _MODELS / "trial" / "model.py", _MODELS / "openvino" / "model.py"
_NAMING = _MODELS / "labels" / "labels.py"
_MANAGER = _MODELS / "manager" / "model.py"
# A file system may keep no finer times.
_STEP_NS = 1_000_000_000
# More instances than this repeat a model's weights in memory for little; cores beyond go to threads.
_MAX_INSTANCES = 4
# What a backend calls the threads of an instance.
_THREADS = {"onnxruntime": "intra_op_thread_count", "openvino": "INFERENCE_NUM_THREADS"}


def model_folders(repository: Path) -> list[Path]:
    """Return the folders of `repository` that are models, by name.

    Raises:
        RepositoryError: it is no folder, or one without a model.
    """
    if not repository.is_dir():
        what = "a file" if repository.exists() else "not there"
        raise RepositoryError(f"{repository} is {what}; a model repository is a folder: plurum export RUN writes one")
    # Hidden folders are being written, or are kept aside.
    folders = sorted(
        path for path in repository.iterdir() if (path / _CONFIG).is_file() and not path.name.startswith(".")
    )
    if not folders:
        raise RepositoryError(
            f"{repository} is no model repository: no folder in it has a {_CONFIG}; plurum export RUN writes one"
        )
    return folders


def read_config(model: Path) -> Any:
    """Return the ModelConfig of the folder `model`.

    Raises:
        RepositoryError: it can't be read.
    """
    path = model / _CONFIG
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} is no model configuration: {error}") from error


def are_complete(configs: list[Any]) -> bool:
    """Whether no config needs Triton to ask a model about its inputs and outputs, which takes a second start."""
    return all(config.input and config.output for config in configs)


def stage(repository: Path, folder: Path, cores: int, *, cpu_only: bool, tag: str = "") -> list[Any]:
    """Fill `folder` with a view of `repository` and return its configs, each with its model's name.

    Args:
        repository: With models.
        folder: Made where there is none; models of other releases in it stay.
        cores: For every model at once: one answer of an ensemble asks all of them.
        cpu_only: Whether members compute on the CPU. Otherwise Triton places them on its GPUs by itself.
        tag: Of the release, which then stands at the end of its models' names, so that several can be loaded.

    Raises:
        RepositoryError: it is no repository, or a config in it can't be read.
    """
    models = model_folders(repository)
    folder.mkdir(exist_ok=True)
    for other in repository.iterdir():
        if other.is_file() and not tag:
            (folder / other.name).symlink_to(other.resolve())
    configs = {model: read_config(model) for model in models}
    labels = _fold_labels(repository, {model.name: config for model, config in configs.items()})
    if labels is not None:
        del configs[repository / _LABELS]
    for model, config in configs.items():
        config.name = config.name or model.name
        fill_in(config, cores, cpu_only=cpu_only)
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
            _compute_by_openvino(staged, config, labels if model.name == _FUSED else None)
        _write_config(staged, config)
    return list(configs.values())


def fill_in(config: Any, cores: int, *, cpu_only: bool) -> None:
    """Complete `config` in place: instances, and the threads of each."""
    instances = _stated_instances(config)
    # OpenVINO computes on the CPU wherever it is.
    if config.backend == "openvino" or (config.backend == "onnxruntime" and cpu_only):
        name = _THREADS[config.backend]
        stated = config.parameters[name].string_value if name in config.parameters else ""
        threads = int(stated) if stated.isdigit() and stated != "0" else 0
        if not instances:
            instances = max(1, min(cores, _MAX_INSTANCES) // (threads or 1))
            config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=instances)
        if not stated:
            config.parameters[name].string_value = str(max(1, cores // instances))
    elif config.name == "preprocess" and not instances:
        # Decoding keeps a core busy and remembers nothing. The voter stays single: it counts what it answers.
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=min(cores, _MAX_INSTANCES))


def _fold_labels(repository: Path, configs: dict[str, Any]) -> Path | None:
    """Let the fused graph's own process name and count the winners where it is ours: a step less for each answer.

    Takes the labels model out of the ensembles in `configs`, by folder, and returns its version folder, whose files
    belong beside the graph; None where nothing changes.
    """
    version = repository / _LABELS / "1"
    if not {_FUSED, _LABELS} <= set(configs) or configs[_FUSED].backend != "openvino":
        return None
    # Our model asks the labels of its own time; a repository from before has others.
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


def _compute_by_openvino(staged: Path, config: Any, labels: Path | None) -> None:
    """Put our Python model beside the graph in each version of `staged`, and let `config` name it.

    Triton's own backend of that name is in some installations only, and takes only batches of `max_batch_size`.
    Files of the folder `labels` are put there too.
    """
    for version in [part for part in staged.iterdir() if part.name.isdigit()]:
        beside = [*(labels.iterdir() if labels else ()), *version.iterdir()]
        files = {file.name: file.resolve() for file in beside} | {"model.py": _OPENVINO.resolve()}
        version.unlink()
        version.mkdir()
        for name, file in files.items():
            (version / name).symlink_to(file)
    config.backend = "python"
    # Under that name the Python backend would look for its own file.
    config.parameters["graph"].string_value = config.default_model_filename
    config.ClearField("default_model_filename")


class Staged:
    """The folder that Triton is given, and the configs of the models in it.

    Args:
        folder: Made by the first `add`.
        cores: As in `stage`, likewise below.
        cpu_only: Whether members compute on the CPU.

    Attributes:
        configs: By the model's name.
        fronts: The public names under which a front model stands, while a release is on trial.
    """

    def __init__(self, folder: Path, cores: int, *, cpu_only: bool) -> None:
        self.folder = folder
        self.configs: dict[str, Any] = {}
        self.fronts: list[str] = []
        self._cores, self._cpu_only = cores, cpu_only

    @property
    def chains(self) -> list[str]:
        """The ensembles."""
        return [name for name, config in self.configs.items() if config.ensemble_scheduling.step]

    def instances(self, model: str) -> int:
        """Return how many instances a model has, on GPUs each of them; an ensemble, or what was removed, has none."""
        config = self.configs.get(model)
        return 0 if config is None or config.ensemble_scheduling.step else _stated_instances(config) or 1

    def processes(self, *, all_backends: bool) -> int:
        """Return how many Python processes the models have; with the wheel's Triton those of all backends have them."""
        names = [name for name, config in self.configs.items() if all_backends or config.backend == "python"]
        return sum(map(self.instances, names))

    def add(self, repository: Path, tag: str = "") -> None:
        """Stage a repository, its models' names with `tag` behind them where there is one.

        Raises:
            RepositoryError: it is no repository, or a config in it can't be read.
        """
        configs = stage(repository, self.folder, self._cores, cpu_only=self._cpu_only, tag=tag)
        self.configs.update({config.name: config for config in configs})

    def add_managers(self) -> None:
        """Stage the models that load and unload others for us."""
        for name in MANAGERS:
            version = _only_version(self.folder / name, 1)
            (version / "model.py").symlink_to(_MANAGER.resolve())
            config = pb.ModelConfig(name=name, backend="python")
            # Triton wants to know of one of each.
            config.input.add(name="NONE", data_type=pb.TYPE_BOOL, dims=[1])
            config.output.add(name="NOTHING", data_type=pb.TYPE_BOOL, dims=[1])
            config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
            _write_config(version.parent, config)
            self.configs[name] = config

    def of(self, tag: str) -> list[str]:
        """Return the models of a release, ensembles last: they can be loaded once their steps are."""
        models = [name for name in self.configs if name.endswith(f"-{tag}")]
        return sorted(models, key=lambda name: name in self.chains)

    def publish(self, tag: str) -> list[str]:
        """Make a release's ensembles the public ones, and return under which names: to be loaded then."""
        public = []
        for chain in self.of(tag):
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

    def put_on_trial(self, trial: Trial, current: str) -> list[str]:
        """Put a front model in the place of each public ensemble that both releases have, and return their names."""
        fronts = []
        for chain in self.of(current):
            name = chain.removesuffix(f"-{current}")
            candidate = f"{name}-{trial.release}"
            if chain in self.chains and candidate in self.configs:
                # Which of the two answers, it can't say: Python models of Triton 2.51 add nothing to an answer.
                version = _only_version(self.folder / name, 1)
                (version / "model.py").unlink(missing_ok=True)
                (version / "model.py").symlink_to(_FRONT.resolve())
                config = _front_config(name, self.configs[chain], {"current": chain, "candidate": candidate}, trial)
                _write_config(version.parent, config)
                self.configs[name] = config
                fronts.append(name)
        self.fronts = fronts
        return fronts

    def touch(self, model: str) -> None:
        """Make Triton load a model anew: it passes over one whose files have not changed since it was loaded."""
        _touch(self.folder / model)

    def remove(self, tag: str) -> None:
        """Take a release away."""
        for model in self.of(tag):
            self.configs.pop(model)
        # Also what was left by an `add` that failed half-way.
        for model_folder in self.folder.glob(f"*-{tag}"):
            shutil.rmtree(model_folder, ignore_errors=True)


def _stated_instances(config: Any) -> int:
    return sum(group.count or 1 for group in config.instance_group)


def _front_config(name: str, chain: Any, parts: dict[str, str], trial: Trial) -> Any:
    """Return the config of a front model: what `chain` takes and gives, and whom to ask how often."""
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=chain.max_batch_size)
    config.input.extend(chain.input)
    config.output.extend(chain.output)
    # While one instance waits for its answers, the other passes on what has come since.
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=_MAX_INSTANCES)
    config.dynamic_batching.SetInParent()
    config.parameters["contract"].string_value = chain.parameters["contract"].string_value
    for key, value in (parts | {"percent": f"{trial.percent:g}", "shadow": str(int(trial.shadow))}).items():
        config.parameters[key].string_value = value
    return config


def _only_version(model: Path, number: int) -> Path:
    """Return the folder of a model's version, and take those of others away: Triton serves the highest."""
    version = model / str(number)
    version.mkdir(parents=True, exist_ok=True)
    for other in model.iterdir():
        if other.is_dir() and other != version:
            shutil.rmtree(other)
    return version


def _touch(model: Path) -> None:
    """Make a file of a model newer than all others: Triton looks for a later time, and clocks can jump back."""
    times = [time.time_ns()]
    for folder, _, files in os.walk(model, followlinks=True):
        for name in (".", *files):
            # A link may lead nowhere.
            with contextlib.suppress(OSError):
                times.append(Path(folder, name).stat().st_mtime_ns)
    # Triton reads no file of this name.
    mark = model / "loaded_anew"
    mark.touch(mode=0o600)
    newest = max(times) + _STEP_NS
    os.utime(mark, ns=(newest, newest))


def _write_config(model: Path, config: Any) -> None:
    # The folder may be in use.
    hidden = model / f".{_CONFIG}"
    hidden.write_text(text_format.MessageToString(config), encoding="utf-8")
    hidden.replace(model / _CONFIG)
    _touch(model)
