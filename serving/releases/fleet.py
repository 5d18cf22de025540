"""Roll out a release on the servers of a fleet, one after another.

Each server has its own folder of releases and is asked through its own `plurum rollout`, on this machine or over SSH.
So no server needs a management port, and SSH decides who may change a release.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from plurum.errors import ServerError, SettingsError
from plurum.regular_files import read_regular
from plurum.serving.releases.releases import ReleaseState

__all__ = ["Fleet", "FleetServer", "read_fleet"]

# `[user@]host:folder`, as scp writes it; a path on this machine has a slash before its first colon.
_REMOTE = re.compile(r"(?P<host>[^\s/:]+):(?P<folder>\S.*)")
_NO_SERVER = "expected a line per server, FOLDER or HOST:FOLDER"


@dataclass(frozen=True)
class FleetServer:
    """A server of a fleet.

    Attributes:
        folder: Its folder of releases.
        host: Destination for SSH; None for this machine.
    """

    folder: str
    host: str | None = None

    def __str__(self) -> str:
        return self.folder if self.host is None else f"{self.host}:{self.folder}"

    def command(self, *words: str) -> list[str]:
        """Return the command line of `plurum rollout WORDS` for this server."""
        words = ("rollout", *words, "--releases", self.folder)
        if self.host is None:
            return [sys.executable, "-m", "plurum", *words]
        # Without a terminal nobody could type a password.
        return ["ssh", "-o", "BatchMode=yes", "--", self.host, shlex.join(["plurum", *words])]


def read_fleet(path: Path) -> tuple[FleetServer, ...]:
    """Return the servers that a file lists: FOLDER or HOST:FOLDER per line; empty lines and `#` comments don't count.

    Raises:
        SettingsError: the file can't be read, a line names no folder, or a server is listed twice.
    """
    try:
        text = read_regular(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--fleet: {path} can't be read: {error}. {_NO_SERVER}.") from error
    servers = list[FleetServer]()
    for number, line in enumerate(text.splitlines(), 1):
        if not (words := line.partition("#")[0].strip()):
            continue
        remote = _REMOTE.fullmatch(words)
        server = FleetServer(words) if remote is None else FleetServer(remote["folder"], remote["host"])
        if server.host is not None and server.host.startswith("-"):
            raise SettingsError(f"--fleet: line {number}: {_NO_SERVER}, got {words}. Remove the dash.")
        if server in servers:
            raise SettingsError(
                f"--fleet: line {number}: expected each server once, got {words} again. Remove the line."
            )
        servers.append(server)
    if not servers:
        raise SettingsError(f"--fleet: {_NO_SERVER}, got none in {path}. Add one.")
    return tuple(servers)


@dataclass
class Fleet:
    """The servers of a fleet.

    Attributes:
        servers: The servers, in the order of a rollout.
        say: Receives a line per step.
        changed: Servers that this object has changed, in their order.
    """

    servers: Sequence[FleetServer]
    say: Callable[[str], None]
    changed: list[FleetServer] = field(default_factory=list)

    def states(self) -> dict[FleetServer, ReleaseState]:
        """Return each server's releases.

        Raises:
            ServerError: a server can't be asked.
        """
        return {server: self._ask(server) for server in self.servers}

    def roll_out(self, tag: str, *words: str) -> None:
        """Run `plurum rollout WORDS` for each server whose public release is not `tag`, one after another.

        All servers are asked before any of them is changed. When a server refuses, those changed before it go back.

        Raises:
            ServerError: a server could not be asked, or refused. The message says which servers went back.
        """
        for server, state in self.states().items():
            if state.current == tag and state.trial is None:
                self.say(f"{server}: {tag} is already public")
                continue
            try:
                self._ask(server, *words)
            except ServerError as error:
                raise ServerError(f"{str(error).rstrip('.')}. {self._undo_all()}") from error
            self.changed.append(server)

    def roll_back(self) -> None:
        """Run `plurum rollout --back` for each server, one after another, and stop at the first that refuses.

        Raises:
            ServerError: a server could not be asked, or refused, or the servers would go back to different releases.
        """
        before = {server: one.current if one.trial else one.previous for server, one in self.states().items()}
        if len(set(before.values())) > 1:
            told = ", ".join(f"{server} to {tag or 'none'}" for server, tag in before.items())
            raise ServerError(f"the servers would go back to different releases: {told}. Roll out one that you choose.")
        for server in self.servers:
            try:
                self._ask(server, "--back")
            except ServerError as error:
                done = ", ".join(map(str, self.changed)) or "none"
                raise ServerError(f"{str(error).rstrip('.')}. Servers that went back: {done}.") from error
            self.changed.append(server)

    def _undo_all(self) -> str:
        """Return the changed servers to the release before, the last one first, and say which did."""
        back, failed = list[str](), list[str]()
        for server in reversed(self.changed):
            try:
                self._ask(server, "--back")
            except ServerError as error:
                self.say(str(error))
                failed.append(str(server))
            else:
                back.append(str(server))
        if failed:
            return f"These did not go back: {', '.join(failed)}. Run there: plurum rollout --back"
        return f"Servers that went back to the release before: {', '.join(back) or 'none had changed'}."

    def _ask(self, server: FleetServer, *words: str) -> ReleaseState:
        """Run `plurum rollout` for a server and return its releases afterwards.

        Raises:
            ServerError: it failed; the message names the server and ends with the last line.
        """
        command = server.command(*words, "--json")
        try:
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as asked:
                last = _Lines(asked.stderr or io.BytesIO(), lambda line: self.say(f"{server}: {line}"))
                answer = asked.stdout.read() if asked.stdout else b""
                last.join()
        except OSError as error:
            raise ServerError(f"{server}: {command[0]} can't be run: {error.strerror}.") from error
        if asked.returncode:
            reason = last.held.removeprefix("plurum: ") or f"exit code {asked.returncode} without a message."
            raise ServerError(f"{server}: {reason}")
        if last.held:
            self.say(f"{server}: {last.held}")
        try:
            return ReleaseState.model_validate_json(answer)
        except ValidationError as error:
            raise ServerError(f"{server}: expected the releases as JSON, got {answer[:80]!r}.") from error


class _Lines(threading.Thread):
    """Passes on each line of a stream but the last, which it holds: a command's last line says why it failed."""

    def __init__(self, stream: IO[bytes], say: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self._stream, self._say = stream, say
        self.held = ""
        self.start()

    def run(self) -> None:
        for line in self._stream:
            if self.held:
                self._say(self.held)
            self.held = line.decode(errors="replace").strip()
