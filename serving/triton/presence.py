"""Which processes the models of a server have, so that one that is missing is noticed.

Triton says that a model is ready while its process is dead, and lets those of former versions live on for as long as
somebody waits for their answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import psutil

from plurum.serving.triton.processes import ServerProcesses, is_alive

__all__ = ["Presence"]


class Presence:
    """The processes of each model's present version.

    Args:
        processes: The server's.
        instances: Says how many processes a model has; none where it is an ensemble or no Python runs it.
        is_loaded: Says whether Triton serves a model.
    """

    def __init__(
        self, processes: ServerProcesses, instances: Callable[[str], int], is_loaded: Callable[[str], bool]
    ) -> None:
        self._processes, self._instances, self._is_loaded = processes, instances, is_loaded
        self._present: dict[str, frozenset[psutil.Process]] = {}
        self._former: set[psutil.Process] = set()

    def __contains__(self, model: str) -> bool:
        """Whether its processes would be missed."""
        return model in self._present

    def watch(self, models: Iterable[str]) -> None:
        """Miss the processes of these models' present versions from now on."""
        stubs = self._processes.stubs()
        for model in models:
            # An ensemble has none, whatever had its name before.
            found = {process for process, of in stubs.items() if of == model and self._instances(model)}
            # Where Triton found nothing new to load they are still the same.
            present = found - self._former or found
            self._former -= present
            self._present[model] = frozenset(present)
        self._former &= stubs.keys()

    def loads_anew(self, model: str) -> None:
        """Miss no process of a model until it is watched again; those that it has are of a former version."""
        self._present.pop(model, None)
        self._former |= {process for process, of in self._processes.stubs().items() if of == model}

    def forget(self, model: str) -> None:
        """Miss no process of a model that will be unloaded."""
        self._present.pop(model, None)

    def missing(self) -> tuple[str, ...]:
        """Return the models, sorted, of which a process has died or was stopped, though Triton serves them.

        A model that is being loaded or unloaded is none of them: its processes come and go.
        """
        lost = [model for model, processes in list(self._present.items()) if not self._run(processes)]
        if not lost:
            return ()
        stubs, missing = self._processes.stubs(), []
        for model in sorted(lost):
            known = self._present.get(model, frozenset())
            others = {process for process, of in stubs.items() if of == model} - known - self._former
            if others and len(others) >= self._instances(model) and self._run(others):
                # Somebody else has loaded it anew.
                self._present[model] = frozenset(others)
            elif self._is_loaded(model) and model in self._present:
                missing.append(model)
        return tuple(missing)

    @staticmethod
    def _run(processes: Iterable[psutil.Process]) -> bool:
        return all(is_alive(process) for process in processes)
