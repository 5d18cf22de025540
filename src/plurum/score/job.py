"""Score a source on Ray: each part once, with as many workers as there are cores, whatever nodes come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum import errors
from plurum.client import EnsembleClient
from plurum.client.bulk.patients import PatientAnswer
from plurum.client.connection.predictions import Served
from plurum.conventions import PatientRule
from plurum.errors import OutputError, PlurumError, SettingsError
from plurum.repository.listing import check_exported
from plurum.score.cluster import connect, ray_errors
from plurum.score.destination import Destination, PartCounts, part_name
from plurum.score.parts import score_part
from plurum.score.patients import pool_patients
from plurum.score.plan import Plan, open_plan
from plurum.score.repository_model import identity_of, served_from_repository
from plurum.score.scorer import Scorer

__all__ = ["ScoreJob", "ScoreOptions", "open_job"]


@dataclass(frozen=True)
class ScoreOptions:
    """Options of a job.

    Attributes:
        repository: Folder of a repository with a fused graph, at the same path on each node; None with `urls`.
        urls: Addresses of servers; empty with a repository.
        address: Address of a Ray cluster; None starts Ray on this machine.
        workers: Most workers at the same time, one core each; None takes all cores.
        part_rows: Number of images in a file of results.
        timeout_s: Time limit of one request with its retries, seconds, with `urls`.
        fresh: If True, discard earlier results.
    """

    repository: Path | None = None
    urls: tuple[str, ...] = ()
    address: str | None = None
    workers: int | None = None
    part_rows: int = 1000
    timeout_s: float = 60.0
    fresh: bool = False


@dataclass
class ScoreJob:
    """A job whose plan is made; its results are a file per part.

    Attributes:
        plan: Images in parts.
        destination: Folder of the results.
        served: Description of the ensemble.
        options: Options of the job.
        found: Counts of the parts that were there at the start.
        counts: Counts of all parts that are there.
        left: Numbers of the parts without results at the start.
    """

    plan: Plan
    destination: Destination
    served: Served
    options: ScoreOptions
    found: PartCounts
    left: list[int]
    counts: PartCounts = field(init=False)

    def __post_init__(self) -> None:
        self.counts = self.found

    def run(self, ray: Any) -> Iterator[PartCounts]:
        """Score the parts that are left; yield the counts of each when its results are written.

        A part that a lost node had in work is scored again elsewhere. The pool of workers grows and shrinks with the
        nodes, because a fixed one waits for ever for cores that are gone.

        Raises:
            InterruptedRunError: Ray failed; the same job resumes.
            OutputError: the results can't be written.
            ServerError: no server responds.
        """
        if self.left:
            with ray_errors():
                most = self.options.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
                items = ray.data.from_items([{"part": one} for one in self.left], override_num_blocks=len(self.left))
                # The plan is one object that all workers read, not a copy for each.
                arguments = (ray.put(self.plan), self.destination.location, self.options)
                scored = items.map_batches(
                    _PartScorer,
                    batch_size=1,
                    fn_constructor_args=arguments,
                    compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(self.left))),
                    num_cpus=1,
                )
                for row in scored.iter_rows():
                    if row["fault"]:
                        kind, _, message = row["fault"].partition("\n")
                        raise getattr(errors, kind, PlurumError)(message)
                    counts = PartCounts(*map(int, row["counts"]))
                    self.counts += counts
                    yield counts
        if self.counts.images != self.plan.images:
            raise OutputError(
                f"{self.destination.location}: expected {self.plan.images:,} rows, got {self.counts.images:,}. Start "
                "again with --fresh."
            )

    def patients(self, ray: Any, rule: PatientRule | None) -> Iterator[PatientAnswer]:
        """Yield one prediction per patient, sorted by name; see `pool_patients`."""
        return pool_patients(ray, self.destination, self.served, rule)


@contextmanager
def open_job(source: str, out: str, options: ScoreOptions) -> Iterator[tuple[ScoreJob, Any]]:
    """Check source, ensemble and destination, connect to Ray, and yield the job and Ray's package.

    Args:
        source: Folder, pattern, manifest, Parquet files or address.
        out: Local folder or address for the results; those of the same job are kept.
        options: Options of the job.

    Raises:
        DataError: the source has no images, or can't be read.
        MissingExtraError: Ray is not installed.
        OutputError: the destination has other results, or can't be written to.
        RepositoryError: the repository has no fused graph, or is not as exported.
        ServerError: no server responds, or there is no cluster.
    """
    with ExitStack() as stack:
        served, ensemble = _describe(options)
        destination = Destination(out)
        stack.enter_context(destination.locked())
        if options.fresh:
            destination.clear()
        plan = open_plan(destination, source, ensemble, options.part_rows)
        found, left = _find_results(destination, plan)
        ray = stack.enter_context(connect(options.address, options.workers))
        yield ScoreJob(plan, destination, served, options, found, left), ray


class _PartScorer:
    """A worker of Ray Data: scores one part per call. The model loads in the first call, so that its errors arrive."""

    def __init__(self, plan: Any, location: str, options: ScoreOptions) -> None:
        self._reference, self._location, self._options = plan, location, options
        self._ready: tuple[Plan, Destination, Scorer] | None = None

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the counts of a part, or the name and the message of an error, which Ray would wrap in its own."""
        counts, fault = PartCounts(), ""
        try:
            plan, destination, scorer = self._ready or self._start()
            counts = score_part(plan.part(int(batch["part"][0])), plan, scorer, destination)
        except PlurumError as error:
            fault = f"{type(error).__name__}\n{error}"
        return {"counts": np.array([counts.values()], dtype=np.int64), "fault": np.array([fault])}

    def _start(self) -> tuple[Plan, Destination, Scorer]:
        import ray

        plan: Plan = ray.get(self._reference)
        options = self._options
        if options.repository is not None and (there := identity_of(options.repository)) != plan.ensemble:
            raise OutputError(
                f"{options.repository}: expected the repository of the job ({plan.ensemble[:12]}) on each node, got "
                f"{there[:12]}. Copy the repository to all nodes."
            )
        scorer = Scorer(options.repository, url=options.urls, timeout_s=options.timeout_s)
        self._ready = plan, Destination(self._location), scorer
        return self._ready


def _describe(options: ScoreOptions) -> tuple[Served, str]:
    """Return the description of the ensemble, and a hash of what decides on the predictions."""
    if (options.repository is None) == (not options.urls):
        raise SettingsError(
            "--repository: expected either --repository or --url, got both or neither. Give one of them."
        )
    if options.repository is not None:
        identity = identity_of(options.repository)
        check_exported(options.repository)
        return served_from_repository(options.repository), identity
    with EnsembleClient(options.urls, timeout_s=options.timeout_s) as client:
        return client.served, client.served.metadata_sha256


def _find_results(destination: Destination, plan: Plan) -> tuple[PartCounts, list[int]]:
    """Return the counts of the parts that are there, and the numbers of the others."""
    there, found, left = set(destination.parts()), PartCounts(), []
    for number in range(len(plan.parts)):
        counts = destination.counts(name) if (name := part_name(number)) in there else None
        if counts is None:
            left.append(number)
        else:
            found += counts
    return found, left
