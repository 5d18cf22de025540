"""Report of a search as one HTML page."""

from __future__ import annotations

from plurum.training.canvas import BLUE, COLOURS, GREY, create_figure, png_from_figure, shorten_name, tidy_axes
from plurum.training.search.trials import SearchResult
from plurum.training.statistics.page import html_from_template

__all__ = ["plot_search", "write_page"]

_PAGE = """<p class="faint">{{ r.trials|length }} trials on {{ r.source }}, seed {{ r.training.seed }}. Each trained one
member for at most {{ r.training.epochs }} epochs. A trial is pruned if its NLL is above the median of the earlier
ones.</p>
<div class="verdict"><p>Best: trial {{ best.number }}, {{ best.arch }}, with a validation NLL of {{ best.nll|number }}
and an accuracy of {{ "%.1f"|format(best.accuracy * 100) }} %.</p><p>The best of many trials looks better on the
validation images than it is. Judge it on the test images: plurum evaluate.</p></div>
<p>This command trains it again:</p>
<div class="wide"><pre>{{ r.command }} --out RUN</pre></div>
{{ picture("search", "NLL by trial, by learning rate and by epoch", "Left: validation NLL of each trial, and the "
  ~ "lowest so far. Middle: by learning rate; each colour is an architecture. Right: by epoch; grey lines were "
  ~ "pruned.") }}
<h2>Trials</h2>
<div class="wide"><table>
<tr><th>trial</th><th>architecture</th><th>augmentation</th><th>learning rate</th><th>weight decay</th><th>epochs</th>
<th>NLL</th><th>accuracy</th><th>seconds</th><th>note</th></tr>
{% for t in r.trials %}<tr><td>{{ t.number }}</td><td>{{ t.arch }}</td><td>{{ t.augmentation }}</td>
<td>{{ "%.2g"|format(t.learning_rate) }}</td><td>{{ "%.2g"|format(t.weight_decay) }}</td><td>{{ t.epochs|length }}</td>
<td class="{{ "better" if t.number == best.number else "" }}">{{ "–" if t.nll is none else "%.4f"|format(t.nll) }}</td>
<td>{{ "–" if t.accuracy is none else "%.4f"|format(t.accuracy) }}</td><td>{{ "%.1f"|format(t.seconds) }}</td>
<td>{{ t.note or ("pruned" if t.state == "pruned" else "") }}</td></tr>
{% endfor %}</table></div>
"""


def write_page(result: SearchResult) -> str:
    """Return the HTML page of a search with at least one complete trial; it loads no external resources.

    Raises:
        MissingExtraError: matplotlib or Jinja2 is not installed.
    """
    pictures = {"search": plot_search(result)}
    return html_from_template(_PAGE, "Search for training settings", pictures, r=result, best=result.best)


def plot_search(result: SearchResult) -> bytes:
    """Return a plot of the validation NLL by trial, by learning rate and by epoch, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = create_figure(12.5, 3.8)
    by_trial, by_rate, by_epoch = figure.subplots(1, 3)
    archs = list(dict.fromkeys(trial.arch for trial in result.trials))
    colours = {arch: COLOURS[number % len(COLOURS)] for number, arch in enumerate(archs)}
    lowest: list[tuple[int, float]] = []
    for trial in result.trials:
        if trial.nll is None:
            continue
        is_complete = trial.state == "complete"
        style = {"color": colours[trial.arch] if is_complete else GREY, "marker": "o" if is_complete else "x"}
        for axes, place in ((by_trial, float(trial.number)), (by_rate, trial.learning_rate)):
            axes.plot([place], [trial.nll], linestyle="", markersize=5, **style)
        by_epoch.plot(list(trial.epochs), list(trial.epochs.values()), color=style["color"], linewidth=1)
        if is_complete:
            lowest.append((trial.number, min(trial.nll, lowest[-1][1]) if lowest else trial.nll))
    by_trial.step([number for number, _ in lowest], [nll for _, nll in lowest], where="post", color=BLUE)
    by_rate.set_xscale("log")
    tidy_axes(by_trial, "trial", "validation NLL, nats")
    tidy_axes(by_rate, "learning rate", "validation NLL, nats")
    tidy_axes(by_epoch, "epoch", "validation NLL, nats")
    for arch, colour in colours.items():
        by_rate.plot([], [], "o", color=colour, label=shorten_name(arch))
    figure.legend(loc="outside upper center", ncols=4, frameon=False, title="× pruned")
    return png_from_figure(figure)
