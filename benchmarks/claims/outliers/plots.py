"""The picture of the outlier suite, as PNG."""

from __future__ import annotations

from plurum.benchmarks.claims.outliers.material import FAR, NEAR
from plurum.benchmarks.claims.outliers.methods import OURS
from plurum.benchmarks.claims.outliers.result import OutlierResult
from plurum.training.canvas import COLOURS, create_figure, png_from_figure, tidy_axes

__all__ = ["plot_from_outliers"]

_SHOWN = (OURS, "entropy", "disagreement", "MSP", "energy")
_TITLES = {"digits": "members trained on digits", "fashion": "members trained on Fashion-MNIST"}


def plot_from_outliers(result: OutlierResult) -> bytes:
    """Return a PNG with a panel per task: AUROC of each kind by method, a point per seed and a line at the mean."""
    tasks = result.tasks()
    figure = create_figure(1.2 + 4.6 * len(tasks), 4.6)
    kinds = (*FAR, *NEAR)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        for number, method in enumerate(_SHOWN):
            places = [place + (number - len(_SHOWN) // 2) * 0.14 for place in range(len(kinds))]
            for place, kind in zip(places, kinds, strict=True):
                values = result.aurocs(task, method, kind)
                panel.plot(values, [place] * len(values), "o", color=COLOURS[number], markersize=3.2, alpha=0.8)
            means = [result.mean_auroc(method, [kind], task) for kind in kinds]
            panel.plot(means, places, "|", color=COLOURS[number], markersize=9, label=method)
        panel.set_yticks(range(len(kinds)), kinds if task == tasks[0] else [""] * len(kinds))
        panel.set_title(_TITLES[task], fontsize=9)
        tidy_axes(panel, "AUROC", "")
        panel.set_ylim(len(kinds) - 0.4, -0.6)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(_SHOWN), frameon=False)
    return png_from_figure(figure)
