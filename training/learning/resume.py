"""Where an unfinished training is kept, so that it can go on after whatever ended it."""

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
    """A file with the last saved state of one training, whole at every moment."""

    def __init__(self, path: Path, every_s: float = 30.0) -> None:
        """Take the file `path`, to be written once in `every_s` seconds: that much work is lost at most."""
        self.path = path
        self.every_s = every_s
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last writing is long enough ago."""
        return time.monotonic() - self._last >= self.every_s

    def read(self) -> dict[str, Any] | None:
        """Return what was written last; None where nothing is, or nothing that can be read.

        Nothing but tensors and plain values is unpickled.
        """
        try:
            with open_regular(self.path) as file:
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        # On a broken file the unpickler stumbles over anything: KeyError and IndexError, too.
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            _LOG.warning("%s can't be read (%s); this training starts over", self.path, reason)
            return None
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Write `state`, tensors and plain values, in place of what is there.

        Raises:
            OutputError: it can't be written, the disk being full, say; what was there before still is.
        """
        with atomic_file(self.path) as hidden:
            try:
                torch.save(state, hidden)
            except RuntimeError as error:
                # PyTorch's writer turns what the system said into this.
                raise OutputError(
                    f"{self.path} can't be written: {str(error).splitlines()[0]}; is the disk full? The training goes "
                    f"on from the last state that could be, with the same command"
                ) from error
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the file, and its folder if it was the last: its training is over."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()
