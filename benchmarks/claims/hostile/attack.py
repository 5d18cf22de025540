"""Kinds of attacks, and the attacker that sends them."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from plurum.benchmarks.claims.hostile.honest import HonestRequest
from plurum.benchmarks.claims.hostile.wires import CLOSED, TIMEOUT, ServerPort, Wire
from plurum.benchmarks.tools.wire import http_request

__all__ = ["ANY", "EITHER", "REFUSED", "Attack", "AttackTally", "Attacker", "Kind", "Make", "Surroundings", "name_of"]

_T = TypeVar("_T")
# Allowed outcomes, by class. 500 is in neither of the first two: no request may break a server.
REFUSED = frozenset({"4xx", "5xx", "busy", "closed"})
EITHER = REFUSED | {"2xx", "3xx"}
ANY = EITHER | {"500", "timeout"}


def name_of(outcome: int) -> str:
    """Return the class of an outcome: 2xx, 3xx, 4xx, 500, busy (503 and 504), 5xx, closed or timeout."""
    special = {CLOSED: "closed", TIMEOUT: "timeout", 500: "500", 503: "busy", 504: "busy"}
    return special.get(outcome, f"{outcome // 100}xx")


@dataclass(frozen=True)
class Surroundings:
    """Knowledge of attackers.

    Attributes:
        places: Each port under attack, by name.
        images: Honest JPEG files.
        key: Key of the gateway with TLS.
        repository: Served repository.
        folder: Empty folder for files of attackers.
        temporary: Temporary folder of the attacked processes.
        header: Name and value of the header that opens management, which Triton's arguments reveal to all users.
        hold_s: Time to hold idle connections open, seconds.
    """

    places: dict[str, ServerPort]
    images: list[bytes]
    key: str
    repository: Path
    folder: Path
    temporary: Path
    header: tuple[bytes, bytes]
    hold_s: float


class Attacker:
    """A sender with one connection that is kept open, for one thread.

    Args:
        surroundings: Knowledge of the attacker.
        place: Port under attack.
        path: Path that takes images there.
        chance: Random numbers that vary the requests.
        keyed: If True, requests carry the gateway's key.
    """

    def __init__(
        self, surroundings: Surroundings, place: ServerPort, path: str, chance: random.Random, *, keyed: bool
    ) -> None:
        self.known, self.place, self.path, self.chance = surroundings, place, path, chance
        self._headers = {"authorization": f"Bearer {surroundings.key}"} if keyed else {}
        self._kept: Wire | None = None

    def choose(self, *options: _T) -> _T:
        """Return one of the options."""
        return self.chance.choice(options)

    def image(self) -> bytes:
        """Return one of the honest images."""
        return self.choose(*self.known.images)

    def send(self, method: str, path: str, body: bytes = b"", **headers: object) -> int:
        """Send a request over the kept connection; return the outcome."""
        return self.kept(http_request(method, path, body, **(self._headers | headers)))

    def kept(self, data: bytes) -> int:
        """Send bytes over the kept connection, and again over a new one if the server had closed it meanwhile."""
        for fresh in (self._kept is None or not self._kept.is_open, True):
            try:
                if fresh:
                    self.let_go()
                    self._kept = Wire(self.place)
                if self._kept is None:
                    return CLOSED
                self._kept.send(data)
                outcome = self._kept.status()
            except TimeoutError:
                outcome = TIMEOUT
            except OSError:
                outcome = CLOSED
            if outcome > 0 or fresh or outcome == TIMEOUT:
                break
        if outcome <= 0:
            self.let_go()
        return outcome

    def alone(self, data: bytes, seconds: float = 10.0) -> int:
        """Send bytes over a connection of their own; return the first outcome."""
        try:
            with Wire(self.place, seconds) as wire:
                wire.send(data)
                return wire.status()
        except TimeoutError:
            return TIMEOUT
        except OSError:
            return CLOSED

    def head(self, *lines: str) -> bytes:
        """Return the head of a request that uploads an image, with `lines` for its other headers."""
        own = [f"{name}: {value}" for name, value in self._headers.items()]
        return "\r\n".join([f"POST {self.path} HTTP/1.1", "host: 127.0.0.1", *own, *lines, "\r\n"]).encode()

    @functools.cached_property
    def channel(self) -> Any:
        """A gRPC channel to the port under attack."""
        import grpc

        # Each attacker has its own: channels to one address would share a connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        return grpc.insecure_channel(f"127.0.0.1:{self.place.port}", options)

    def let_go(self) -> None:
        """Close the connection that is kept."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def end(self) -> None:
        """Close everything."""
        self.let_go()
        if "channel" in vars(self):
            self.channel.close()


# Sends one or more requests, and gives the outcome of each.
Make = Callable[[Attacker], Iterable[int]]


@dataclass(frozen=True)
class Kind:
    """A kind of attack, whatever its target.

    Attributes:
        make: Function that sends the attack.
        cost: Divisor of the number of requests of a run.
        may: Allowed classes of outcomes.
        deadly: If True, one request can end Triton: few are sent, each after the server is healthy again.
    """

    make: Make
    cost: int = 1
    may: frozenset[str] = REFUSED
    deadly: bool = False


@dataclass(frozen=True)
class Attack:
    """A kind of attack on one target.

    Attributes:
        target: gateway, gateway-tls, triton, page or command.
        name: Name of the kind.
        port: Name of the port under attack.
        kind: Kind of the attack.
    """

    target: str
    name: str
    port: str
    kind: Kind

    @property
    def kind_name(self) -> str:
        """Name of the kind without the port."""
        return self.name.partition(", at the port")[0]


@dataclass
class AttackTally:
    """Counts of one attack.

    Attributes:
        outcomes: Count of each outcome: an HTTP status, `CLOSED` or `TIMEOUT`.
        took_s: Length of the attack, seconds.
        outage_s: Longest time that each honest client waited for a correct response, with all its tries, seconds.
        wrong: Wrong responses to honest clients.
        answers: Correct responses to honest clients.
        unanswered: Commands of honest users without a response.
        reasons: Reasons why tries of honest clients failed, by client.
    """

    outcomes: Counter[int] = field(default_factory=Counter)
    took_s: float = 0.0
    outage_s: dict[str, float] = field(default_factory=dict)
    wrong: int = 0
    answers: int = 0
    unanswered: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def sent(self) -> int:
        """Number of requests."""
        return self.outcomes.total()

    def classes(self) -> dict[str, int]:
        """Return the outcomes by class."""
        return dict(sorted(Counter(map(name_of, self.outcomes.elements())).items()))

    def add_command(self, is_right: bool | None) -> None:
        """Count a command of an honest user; None if it got no response."""
        self.answers += bool(is_right)
        self.unanswered += is_right is None
        self.wrong += is_right is False

    def add(self, seen: Iterable[HonestRequest]) -> None:
        """Count the requests of honest clients."""
        for one in seen:
            self.outage_s[one.client] = max(self.outage_s.get(one.client, 0.0), one.end_s - one.start_s)
            self.answers += one.is_right
            if not one.is_right and one.reason != "no response":
                self.wrong += 1
                self.reasons[f"{one.client}: a wrong response"] += 1
            if one.reason:
                self.reasons[f"{one.client}: {one.reason}"] += one.failures
