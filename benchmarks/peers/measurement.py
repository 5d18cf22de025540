"""Run a comparison: start every framework, compare predictions, then take turns while the others are paused."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import numpy as np

from plurum.benchmarks.bench.stages import StageCounts, count_stages, settled_early
from plurum.benchmarks.peers.application import Job, TorchMembers
from plurum.benchmarks.peers.catalogue import PLURUM_ENDPOINTS, MeasuredEndpoint, Peer
from plurum.benchmarks.peers.environment import installed_versions, python_with
from plurum.benchmarks.peers.load import Endpoint, LoadTask, run_elsewhere
from plurum.benchmarks.peers.material import Material, steps_of
from plurum.benchmarks.peers.processes import PeerServer, PlurumServer, free_port
from plurum.benchmarks.peers.result import LeftOutPeer, MeasuredPeer, PeersResult, PeerTurn
from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.servers import server_of
from plurum.errors import PlurumError, ServerError
from plurum.serving import usable_cores

__all__ = ["TOLERANCE", "PeersPlan", "disagreement", "measure_peers"]

_log = logging.getLogger(__name__)
# Of FP32 in two libraries. The run warns if the predictions of the images differ by less than this.
TOLERANCE = 1e-3
# Images whose predictions are compared.
_COMPARED = 16
_COUNTED_S = 1.5

Predictions = list[dict[str, Any]]


@dataclass(frozen=True)
class PeersPlan:
    """Plan of a comparison.

    Attributes:
        peers: Frameworks besides Plurum.
        clients: Numbers of requests in flight.
        rounds: Turns of every framework at each number of clients, after each start.
        starts: How often everything is started anew.
        seconds: Length of a turn.
        tolerance: Largest difference between a probability of Plurum and of PyTorch; that of peers, which compute in
            FP32, is 0.001. With 1 or more, probabilities and labels are not compared.
    """

    peers: tuple[Peer, ...]
    clients: tuple[int, ...]
    rounds: int
    seconds: float
    tolerance: float = TOLERANCE
    starts: int = 1


@dataclass(frozen=True)
class _Entry:
    """A framework that runs, with the endpoint that receives the images."""

    peer: MeasuredPeer
    endpoint: Endpoint
    server: PeerServer | PlurumServer


def measure_peers(plan: PeersPlan, material: Material, progress: Callable[[str], None]) -> PeersResult:
    """Carry out the plan and return the result.

    A peer that cannot be installed or started, whose predictions differ from PyTorch's, or that stops responding, is
    left out with the reason: none of its turns counts.

    Raises:
        ServerError: Plurum's server does not start, stops responding, or its predictions differ from PyTorch's.
    """
    state = machine()
    peers, expected = plan.peers, _predict_with_pytorch(material)
    spread = float(np.std([max(one["probabilities"].values()) for one in expected]))
    if spread < TOLERANCE:
        _log.warning("all images get nearly the same prediction (%.1e): equal predictions prove little here", spread)
    kept: tuple[MeasuredPeer, ...] = ()
    left_out: list[LeftOutPeer] = []
    turns: list[PeerTurn] = []
    counts = StageCounts()
    for start in range(1, plan.starts + 1):

        def say(line: str, start: int = start) -> None:
            progress(f"start {start} of {plan.starts}: {line}" if plan.starts > 1 else line)

        with ExitStack() as stack:
            entries, missing = _start_all(stack, replace(plan, peers=peers), material, expected, say)
            left_out += missing
            (ours,) = {entry.server for entry in entries if isinstance(entry.server, PlurumServer)}
            before = _count_stages(ours)
            turns += _take_turns(entries, left_out, plan, material, start, say)
            counts += _count_stages(ours) - before
        kept = tuple(entry.peer for entry in entries)
        peers = tuple(peer for peer in peers if peer.name in {one.name for one in kept})
    return PeersResult(
        members=tuple(member.arch for member in material.ensemble.members),
        size=material.ensemble.image.height,
        image_bytes=round(sum(path.stat().st_size for path in material.images) / len(material.images)),
        spread=spread,
        seconds=plan.seconds,
        rounds=plan.rounds,
        starts=plan.starts,
        tolerance=plan.tolerance,
        contenders=kept,
        left_out=tuple(left_out),
        turns=tuple(turn for turn in turns if turn.name in {one.name for one in kept}),
        settled=settled_early(counts),
        machine=state,
        versions=versions(),
    )


def _take_turns(
    entries: list[_Entry],
    left_out: list[LeftOutPeer],
    plan: PeersPlan,
    material: Material,
    start: int,
    progress: Callable[[str], None],
) -> list[PeerTurn]:
    """Return the turns after a start; a peer that stops responding moves from `entries` to `left_out`."""
    turns: list[PeerTurn] = []
    sent: Counter[str] = Counter()
    order = random.Random(start)  # noqa: S311 - an order, not a secret
    for turn, clients in product(range(1, plan.rounds + 1), plan.clients):
        # Another order in each round, so that other work on the machine does not always hit the same peer.
        for entry in order.sample(entries, len(entries)):
            name = entry.peer.name
            progress(f"round {turn} of {plan.rounds}, {clients} clients: {entry.peer.title}")
            try:
                figures = _take_turn(entry, material, clients, plan.seconds, sent[name])
            except ServerError as error:
                if entry.peer.ours:
                    raise
                entries.remove(entry)
                left_out.append(LeftOutPeer(name=name, reason=f"stopped responding: {error}"))
                continue
            turns.append(PeerTurn(name=name, clients=clients, round=turn, start=start, **figures))
            sent[name] += len(turns[-1].latencies_ms)
    return turns


def _count_stages(server: PlurumServer) -> StageCounts:
    server.resume()
    try:
        # Predictions are counted up to a second late.
        time.sleep(_COUNTED_S)
        return count_stages(server.metrics_url)
    finally:
        server.pause()


def disagreement(found: Predictions, expected: Predictions, tolerance: float = TOLERANCE) -> float:
    """Return the largest difference of a probability.

    Args:
        found: Predictions to compare.
        expected: Predictions of PyTorch.
        tolerance: Labels may differ if the probabilities of their classes differ by at most twice this.

    Raises:
        ServerError: A prediction has other classes, or another label that is no near tie.
    """
    largest = 0.0
    for one, other in zip(found, expected, strict=True):
        if one["probabilities"].keys() != other["probabilities"].keys():
            raise ServerError(f"classes: expected {list(other['probabilities'])}, got {list(one['probabilities'])}")
        gaps = [abs(share - other["probabilities"][name]) for name, share in one["probabilities"].items()]
        largest = max(largest, *gaps)
        lead = other["probabilities"][other["label"]] - other["probabilities"].get(one["label"], -np.inf)
        if lead > 2 * tolerance:
            raise ServerError(f"label: expected {other['label']!r} as PyTorch predicts, got {one['label']!r}")
    return largest


def _start_all(
    stack: ExitStack, plan: PeersPlan, material: Material, expected: Predictions, progress: Callable[[str], None]
) -> tuple[list[_Entry], list[LeftOutPeer]]:
    """Start every framework, compare its predictions with those of PyTorch, and leave all of them paused."""
    left_out: list[LeftOutPeer] = []
    progress("starting Plurum")
    ours = PlurumServer(stack.enter_context(server_of(material.served)))
    # A paused Triton would not end.
    stack.callback(ours.resume)
    entries = []
    for one in PLURUM_ENDPOINTS:
        path = one.endpoint.path
        if (material.served / path).is_dir():
            named = replace(one, setup=f"{steps_of(material.served, path)}; {one.setup}")
            entries.append(_compare(_entry(named, {}, ours), material, expected, plan.tolerance))
    ours.pause()
    for peer in plan.peers:
        try:
            progress(f"setting up {peer.title}")
            python = python_with(peer.requirements)
            progress(f"starting {peer.title}")
            with ExitStack() as own:
                server = own.enter_context(PeerServer(peer, python, _job(peer, material)))
                entry = _entry(peer, installed_versions(python, peer.requirements), server)
                entries.append(_compare(entry, material, expected, TOLERANCE))
                server.pause()
                # A peer that is left out ends here, the others with the run.
                stack.push(own.pop_all())
        except PlurumError as error:
            left_out.append(LeftOutPeer(name=peer.name, reason=str(error)))
    return entries, left_out


def _job(peer: Peer, material: Material) -> Job:
    return Job(
        repository=str(material.graphs.resolve()),
        weights=str(material.weights.resolve()),
        port=free_port(),
        workers=usable_cores() * peer.workers_per_core,
        threads=1 if peer.one_thread else 0,
    )


def _predict_with_pytorch(material: Material) -> Predictions:
    members = TorchMembers(Job(str(material.graphs), str(material.weights), port=0, workers=1, threads=0))
    return [members.predict(path.read_bytes()) for path in material.images[:_COMPARED]]


def _entry(one: MeasuredEndpoint, installed: dict[str, str], server: PeerServer | PlurumServer) -> _Entry:
    named = {"name": one.name, "title": one.title, "setup": one.setup}
    peer = MeasuredPeer(**named, versions=installed, ours=not isinstance(one, Peer), difference=0.0)
    return _Entry(peer, one.endpoint, server)


def _compare(entry: _Entry, material: Material, expected: Predictions, tolerance: float) -> _Entry:
    """Return the entry with the largest difference of its probabilities from PyTorch's.

    Raises:
        ServerError: The difference is larger than `tolerance`, or there is no response.
    """
    found = _run_task(entry, replace(material, images=material.images[:_COMPARED]), 0, 0.0)
    difference = disagreement(found, expected, tolerance)
    if difference > tolerance:
        raise ServerError(f"predictions of {entry.peer.title} differ from PyTorch's by up to {difference:.4f}")
    return replace(entry, peer=entry.peer.model_copy(update={"difference": difference}))


def _take_turn(entry: _Entry, material: Material, clients: int, seconds: float, sent: int) -> dict[str, Any]:
    """Return the figures of a turn, which begins with the image after the `sent` ones of earlier turns."""
    first = sent % len(material.images)
    turned = replace(material, images=material.images[first:] + material.images[:first])
    entry.server.resume()
    try:
        return cast("dict[str, Any]", _run_task(entry, turned, clients, seconds))
    finally:
        entry.server.pause()


def _run_task(entry: _Entry, material: Material, clients: int, seconds: float) -> Any:
    """Return what the load generator returns; raises as `run_elsewhere`."""
    address, images = entry.server.address(entry.endpoint.kind), tuple(str(one.resolve()) for one in material.images)
    ensemble = material.ensemble
    return run_elsewhere(LoadTask(entry.endpoint, address, images, ensemble.classes, ensemble.image, clients, seconds))
