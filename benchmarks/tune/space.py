"""The variants that `plurum tune` tries: a few in each stage, around the best of the stage before.

On a CPU the choice lies between one image per core (many instances of one thread: the most images per second) and all
cores on one image (one instance of many threads: the lowest latency). In a chain members also compete for the cores; in
a fused graph they cannot. On a GPU it lies between one instance, which copies and computes in turn, and several that do
both at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from plurum.benchmarks.tune.repository import Artefacts
from plurum.benchmarks.tune.variant import Backend, Batching, Form, Placement, Variant

__all__ = ["alternatives", "batchings", "forms", "members", "precisions", "shapes"]

# More instances repeat the weights in memory for little gain; further cores go to threads.
_MAX_INSTANCES = 16
_GPU_SHAPES = ((1, 1), (2, 1), (4, 1))
_BATCHINGS = (
    Batching(),
    Batching(dynamic=False),
    Batching(preferred=(1,)),
    Batching(preferred=(2,)),
    Batching(preferred=(4,)),
    Batching(preferred=(4, 8), delay_us=2000),
)


def shapes(cores: int) -> list[tuple[int, int]]:
    """Return (instances, threads of each) from one image per core to all cores on one image."""
    counts = [cores >> halvings for halvings in range(cores.bit_length())]
    return [(count, cores // count) for count in counts if count <= _MAX_INSTANCES]


def forms(artefacts: Artefacts, cores: int, backends: Sequence[Backend]) -> list[Variant]:
    """Return each form in each shape, computed by each of `backends` that can serve its graphs."""
    found: dict[str, Variant] = {}
    for form in artefacts.forms:
        on_gpu = all(artefacts.backends[model] == ("tensorrt",) for model in artefacts.graphs(form))
        candidates = list(_GPU_SHAPES) if on_gpu else shapes(cores)
        if form == "chain" and not on_gpu:
            # Members run side by side: with a fraction of the cores each, they do not compete.
            candidates.append((1, max(1, cores // len(artefacts.members))))
        for instances, threads in dict.fromkeys(candidates):
            for backend in (None, *backends):
                variant = _variant(artefacts, form, instances, threads, backend)
                found.setdefault(str(variant), variant)
    return list(found.values())


def alternatives(own: Artefacts, cores: int, backends: Sequence[Backend]) -> list[Variant]:
    """Return at most two other ways to serve `own` with one image per core: its other form, and its other backend."""
    is_on_gpu = any("tensorrt" in known for known in own.backends.values())
    instances, threads = _GPU_SHAPES[0] if is_on_gpu else shapes(cores)[0]
    found = [_variant(own, form, instances, threads, None) for form in own.forms if form != own.form]
    present = {own.backends[model][0] for model in own.graphs(own.form)}
    others = {one for model in own.graphs(own.form) for one in own.backends[model] if one in backends} - present
    return [*found, *(_variant(own, own.form, instances, threads, one) for one in others)]


def precisions(best: Variant, own: Artefacts, others: Sequence[Artefacts], cores: int) -> list[Variant]:
    """Return the `others`, exports of the same run as `own`: in the shape of `best`, and with one image per core."""
    taken = next(iter(best.graphs.values()))
    found: dict[str, Variant] = {}
    known = {own.fused_hashes}
    for artefacts in others:
        for form in artefacts.forms:
            if form == "fused":
                # A fused graph has BF16 members as FP32: do not try the same graph again.
                if artefacts.fused_hashes in known:
                    continue
                known.add(artefacts.fused_hashes)
            for instances, threads in ((taken.instances, taken.threads), shapes(cores)[0]):
                variant = _variant(artefacts, form, instances, threads, taken.backend)
                found.setdefault(str(variant), variant)
    return list(found.values())


def members(best: Variant, artefacts: Artefacts, backends: Sequence[Backend]) -> list[Variant]:
    """Return chains with one member changed: by the other backend, or with fewer instances."""
    if best.form == "fused":
        return []
    found = []
    for model, placement in best.graphs.items():
        others = [one for one in artefacts.backends[model] if one in backends and one != placement.backend]
        found += [best.with_graphs(**{model: placement.model_copy(update={"backend": other})}) for other in others]
        if placement.instances > 1:
            fewer = max(1, placement.instances // 2)
            found.append(best.with_graphs(**{model: placement.model_copy(update={"instances": fewer})}))
    return found


def batchings(best: Variant, max_batch_size: int) -> list[Variant]:
    """Return the other ways to batch requests, with batches that the repository accepts."""
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
    return Variant(artefacts=artefacts.name, form=form, graphs=graphs, batching=artefacts.batching(form))
