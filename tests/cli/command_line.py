"""The command line in this process."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass

import pytest

from plurum import progress
from plurum.cli.main import run


@dataclass
class CommandLine:
    """Runner of the command line in this process."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def ended(self, *words: object) -> tuple[int, str, str]:
        """Return the exit code, standard output and standard error."""
        self.monkeypatch.setattr("sys.argv", ["plurum", *map(str, words)])
        # Lines of progress would depend on the machine's speed.
        self.monkeypatch.setattr(progress, "_LINE_S", threading.TIMEOUT_MAX)
        former = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as caught:
                run()
        finally:
            signal.signal(signal.SIGTERM, former)
        code = caught.value.code if isinstance(caught.value.code, int) else 0
        return code, *self.capsys.readouterr()

    def said(self, *words: object) -> str:
        """Return standard output after checking that the command succeeded."""
        code, out, err = self.ended(*words)
        assert (code, err) == (0, "")
        return out

    def refused(self, *words: object) -> str:
        """Return the single line that refuses the command."""
        code, _, err = self.ended(*words)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("plurum: ")
        return err
