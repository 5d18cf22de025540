"""Stages of a cascade under load, from a server's /metrics page."""

from __future__ import annotations

import re
from collections import Counter

from plurum.benchmarks.bench.result import Case, StageFigures
from plurum.errors import ServerError
from plurum.serving.triton.metrics import metrics_at

__all__ = ["StageCounts", "count_stages", "settled_early", "stage_figures"]

# Sums since the server's start, by metric and number of the stage.
StageCounts = Counter[tuple[str, int]]
_SETTLED, _IMAGES, _SECONDS = "plurum_settled_total", "plurum_stage_images_total", "plurum_stage_seconds_total"
_STAGE = re.compile(r'stage="(\d+)"')


def count_stages(url: str | None) -> StageCounts:
    """Return the counters of a cascade's stages so far, over all classes; none without a page or a cascade.

    Raises:
        ServerError: the page can't be read.
    """
    counts = StageCounts()
    if url is None:
        return counts
    try:
        samples = metrics_at(url)
    except (OSError, ValueError) as error:
        raise ServerError(f"--metrics: no metrics at {url}: {error}. Give the URL of Triton's page.") from error
    for key, value in samples.items():
        name, stage = key.partition("{")[0], _STAGE.search(key)
        if stage is not None and name in {_SETTLED, _IMAGES, _SECONDS}:
            counts[name, int(stage[1])] += value  # type: ignore[assignment]
    return counts


def stage_figures(case: Case, counts: StageCounts) -> list[StageFigures]:
    """Return the figures of each stage from the counters of a case's turns; none if no prediction was counted.

    Predictions are counted up to a second late, so a few of them may belong to the case before.
    """
    stages = sorted(stage for name, stage in counts if name == _SETTLED)
    total = sum(counts[_SETTLED, stage] for stage in stages)
    figures = []
    for stage in stages if total else ():
        images, seconds = counts[_IMAGES, stage], counts[_SECONDS, stage]
        time_ms = 1000 * seconds / images if images else None
        settled = counts[_SETTLED, stage] / total
        figures.append(StageFigures(case=case, stage=stage, settled=settled, ms_per_image=time_ms))
    return figures


def settled_early(counts: StageCounts) -> float | None:
    """Return the fraction of predictions that a stage before the last settled, 0 to 1; None without a cascade."""
    settled = {stage: count for (name, stage), count in counts.items() if name == _SETTLED}
    total = sum(settled.values())
    return 1 - settled[max(settled)] / total if total else None
