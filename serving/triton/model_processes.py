"""Track the processes of a server's models, to detect a process that has exited.

Triton reports a model as ready even after its process has exited. It also keeps the processes of earlier versions
running until their requests in flight are complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import psutil

from plurum.serving.triton.processes import ServerProcesses, is_alive

__all__ = ["ModelProcesses"]


class ModelProcesses:
    """The processes of each model's current version.

    Args:
        processes: The processes of the server.
        instances: Returns the number of processes of a model; 0 for ensembles and models that do not run in Python.
        is_loaded: Returns True if Triton serves a model.
    """

    def __init__(
        self, processes: ServerProcesses, instances: Callable[[str], int], is_loaded: Callable[[str], bool]
    ) -> None:
        self._processes, self._instances, self._is_loaded = processes, instances, is_loaded
        self._present: dict[str, frozenset[psutil.Process]] = {}
        self._former: set[psutil.Process] = set()

    def __contains__(self, model: str) -> bool:
        """Return True if the model's processes are watched."""
        return model in self._present

    def watch(self, models: Iterable[str]) -> None:
        """Watch the processes of these models' current versions from now on."""
        stubs = self._processes.stubs()
        for model in models:
            # An ensemble has no process; a process with its name belongs to an earlier model.
            found = {process for process, of in stubs.items() if of == model and self._instances(model)}
            # If Triton found nothing new to load, the earlier processes are still the current ones.
            present = found - self._former or found
            self._former -= present
            self._present[model] = frozenset(present)
        self._former &= stubs.keys()

    def expect_reload(self, model: str) -> None:
        """Stop watching a model until `watch` is called again; its current processes become those of an old version."""
        self._present.pop(model, None)
        self._former |= {process for process, of in self._processes.stubs().items() if of == model}

    def forget(self, model: str) -> None:
        """Stop watching a model that will be unloaded."""
        self._present.pop(model, None)

    def find_unhealthy(self) -> tuple[str, ...]:
        """Return the models, sorted, that Triton serves although one of their processes has exited or was stopped.

        Models that are being loaded or unloaded are left out, because their processes come and go.
        """
        lost = [model for model, processes in list(self._present.items()) if not self._run(processes)]
        if not lost:
            return ()
        stubs, missing = self._processes.stubs(), []
        for model in sorted(lost):
            known = self._present.get(model, frozenset())
            others = {process for process, of in stubs.items() if of == model} - known - self._former
            if others and len(others) >= self._instances(model) and self._run(others):
                # The other manager has reloaded the model.
                self._present[model] = frozenset(others)
            elif self._is_loaded(model) and model in self._present:
                missing.append(model)
        return tuple(missing)

    @staticmethod
    def _run(processes: Iterable[psutil.Process]) -> bool:
        return all(is_alive(process) for process in processes)
