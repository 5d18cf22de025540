"""Change the models of a running server: reload one, or load, publish, try and unload another release."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plurum.errors import ServerError
from plurum.serving.triton.admin import Admin
from plurum.serving.triton.model_processes import ModelProcesses
from plurum.serving.triton.probe import Probe
from plurum.serving.triton.settings import ReleaseTrial
from plurum.serving.triton.surroundings import check_names, name_failures
from plurum.spec import read_ensemble

if TYPE_CHECKING:
    from plurum.serving.triton.staging import StagedRepository

__all__ = ["ServedModels"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModels:
    """Models that a running server can load.

    Attributes:
        staged: Staged repository, with the models of every loaded release.
        admin: Loads and unloads the models.
        processes: Processes of the models, which are watched.
        url: URL of the HTTP endpoint, with scheme.
    """

    staged: StagedRepository
    admin: Admin
    processes: ModelProcesses
    url: str

    def reload(self, model: str, timeout_s: float) -> None:
        """Reload a model in new processes; do nothing if it is being reloaded already or is no longer served.

        Raises:
            ServerError: Triton could not reload the model in time.
        """
        if model not in self.processes:
            return
        with name_failures():
            self.staged.touch(model)
        self._load(model, timeout_s)

    def add_release(self, repository: Path, tag: str, timeout_s: float) -> Probe:
        """Load the models of another release beside those that are served, and return a probe of its ensembles.

        Args:
            repository: Model repository of the release.
            tag: Tag appended to its models' names.
            timeout_s: Time limit for each model, seconds.

        Raises:
            MetadataError: the release's `ensemble.json` is broken.
            RepositoryError: `repository` is not a model repository.
            ServerError: a model could not be loaded in time; models loaded before it stay until `remove_release`.
        """
        with name_failures():
            self.staged.add(repository, tag)
        models = self.staged.models_of(tag)
        check_names(repository, models)
        for model in models:
            self._load(model, timeout_s)
        return Probe(self.url, read_ensemble(repository / "ensemble.json"), models)

    def has_release(self, tag: str) -> bool:
        """Return True if the models of a release are loaded."""
        return bool(self.staged.models_of(tag))

    def publish(self, tag: str, timeout_s: float) -> None:
        """Serve a loaded release under the public names; requests in flight keep their release.

        Raises:
            ServerError: Triton could not load the public ensembles in time.
        """
        with name_failures():
            chains = self.staged.publish(tag)
        for chain in chains:
            self._load(chain, timeout_s)

    def put_on_trial(self, trial: ReleaseTrial, current: str, timeout_s: float) -> None:
        """Route a fraction of the public requests to a loaded release, or compare it with the public release.

        Raises:
            ServerError: Triton could not load the front models in time.
        """
        with name_failures():
            fronts = self.staged.put_on_trial(trial, current)
        for front in fronts:
            self._load(front, timeout_s)

    def remove_release(self, tag: str, timeout_s: float) -> None:
        """Unload and remove the models of a release that is not public."""
        models = self.staged.models_of(tag)
        # Stop watching their processes first, so that their exit is not taken for a fault.
        for model in models:
            self.processes.forget(model)
        self.staged.remove(tag)
        for model in reversed(models):
            try:
                self.admin.unload(model, timeout_s)
            except ServerError as error:
                # The model may never have been loaded.
                _log.debug("%s", error)

    def _load(self, model: str, timeout_s: float) -> None:
        self.processes.expect_reload(model)
        self.admin.load(model, timeout_s)
        self.processes.watch([model])
