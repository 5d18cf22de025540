"""What `plurum tune` tries: a few sensible variants in stages, each around the best of the stage before.

On a CPU the choice is between one image a core (many instances of one thread: most images a second) and all cores on
one image (one instance of many threads: the soonest answer), and what lies between; in a chain members also compete
with each other for the cores, in a fused graph they can't. On a GPU it is between one instance, which copies and
computes in turn, and several that do both at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from plurum.benchmarks.tune.repository import Artefacts
from plurum.benchmarks.tune.variant import Backend, Batching, Form, Placement, Variant
from plurum.export.repository.configs import FUSED

__all__ = ["batchings", "forms", "members", "precisions", "shapes"]

# More instances than this repeat the weights in memory for little; cores beyond go to threads.
_MAX_INSTANCES = 16
_GPU_SHAPES = ((1, 1), (2, 1), (4, 1))
_BATCHINGS = (
    Batching(),
    Batching(dynamic=False),
    Batching(preferred=(2,)),
    Batching(preferred=(4,)),
    Batching(preferred=(4, 8), delay_us=2000),
)


def shapes(cores: int) -> list[tuple[int, int]]:
    """Return (instances, threads of each) from one image a core to all cores on one image."""
    counts = []
    count = cores
    while count >= 1:
        counts.append(count)
        count //= 2
    return [(count, cores // count) for count in counts if count <= _MAX_INSTANCES]


def forms(artefacts: Artefacts, cores: int, backends: Sequence[Backend]) -> list[Variant]:
    """Return each form in each shape, computed by each of `backends` that can serve its graphs."""
    found: dict[str, Variant] = {}
    for form in artefacts.forms:
        on_gpu = all(artefacts.backends[model] == ("tensorrt",) for model in artefacts.graphs(form))
        wanted = list(_GPU_SHAPES) if on_gpu else shapes(cores)
        if form == "chain" and not on_gpu:
            # Members run side by side: with a share of the cores each they need not compete.
            wanted.append((1, max(1, cores // len(artefacts.members))))
        for instances, threads in dict.fromkeys(wanted):
            for backend in (None, *backends):
                variant = _variant(artefacts, form, instances, threads, backend)
                found.setdefault(str(variant), variant)
    return list(found.values())


def precisions(best: Variant, own: Artefacts, others: Sequence[Artefacts], cores: int) -> list[Variant]:
    """Return the `others`, exports of the same run as `own`: in the shape of `best`, and with one image a core."""
    taken = next(iter(best.graphs.values()))
    found: dict[str, Variant] = {}
    known = {own.hashes.get(FUSED)}
    for artefacts in others:
        for form in artefacts.forms:
            if form == "fused":
                # BF16 members are their FP32 graphs in it: the same graph need not be tried again.
                if artefacts.hashes[FUSED] in known:
                    continue
                known.add(artefacts.hashes[FUSED])
            for instances, threads in ((taken.instances, taken.threads), shapes(cores)[0]):
                variant = _variant(artefacts, form, instances, threads, taken.backend)
                found.setdefault(str(variant), variant)
    return list(found.values())


def members(best: Variant, artefacts: Artefacts, backends: Sequence[Backend]) -> list[Variant]:
    """Return a chain with one member at a time served otherwise: by the other backend, by fewer instances."""
    if best.form == "fused":
        return []
    found = []
    for model, placement in best.graphs.items():
        others = [one for one in artefacts.backends[model] if one in backends and one != placement.backend]
        found += [best.placed(**{model: placement.model_copy(update={"backend": other})}) for other in others]
        if placement.instances > 1:
            fewer = max(1, placement.instances // 2)
            found.append(best.placed(**{model: placement.model_copy(update={"instances": fewer})}))
    return found


def batchings(best: Variant, max_batch_size: int) -> list[Variant]:
    """Return the other ways to put requests together, with batches that the repository takes."""
    found = []
    for batching in _BATCHINGS:
        sizes = tuple(size for size in batching.preferred if size <= max_batch_size)
        if batching != best.batching and len(sizes) == len(batching.preferred):
            found.append(best.model_copy(update={"batching": batching}))
    return found


def _variant(artefacts: Artefacts, form: Form, instances: int, threads: int, backend: Backend | None) -> Variant:
    graphs = {}
    for model in artefacts.graphs(form):
        known = artefacts.backends[model]
        taken = backend if backend in known else known[0]
        graphs[model] = Placement(backend=taken, instances=instances, threads=threads)
    return Variant(artefacts=artefacts.name, form=form, graphs=graphs)
