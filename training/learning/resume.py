"""Save the state of an unfinished training, so that an interrupted training can resume."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import torch

from plurum.errors import OutputError
from plurum.files import atomic_file
from plurum.regular_files import open_regular

__all__ = ["StateFile"]

_LOG = logging.getLogger(__name__)


class StateFile:
    """File with the last saved state of one training, written atomically."""

    def __init__(self, path: Path, every_s: float = 30.0) -> None:
        """Use the file `path`, written every `every_s` seconds; an interruption loses at most that much work."""
        self.path = path
        self.every_s = every_s
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """True if the state should be written again."""
        return time.monotonic() - self._last >= self.every_s

    def read(self) -> dict[str, Any] | None:
        """Return the last written state; None if the file is missing or unreadable.

        Only tensors and plain values are unpickled.
        """
        try:
            with open_regular(self.path) as file:
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        # A broken file makes the unpickler raise errors of any type, such as KeyError and IndexError.
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            _LOG.warning("%s can't be read (%s); this training starts over", self.path, reason)
            return None
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Replace the file by `state`, which holds tensors and plain values.

        Raises:
            OutputError: the file can't be written, for example on a full disk; the previous state is kept.
        """
        with atomic_file(self.path) as hidden:
            try:
                torch.save(state, hidden)
            except RuntimeError as error:
                # PyTorch's writer turns the system's OSError into a RuntimeError.
                raise OutputError(
                    f"{self.path} can't be written: {str(error).splitlines()[0]}; is the disk full? Run the same "
                    f"command again to resume from the last saved state"
                ) from error
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the file after the training, and its folder if it is empty then."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()
