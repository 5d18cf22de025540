"""Report of a test for drift: sentences, JSON, a plot and one HTML page."""

from __future__ import annotations

from pathlib import Path

from plurum.figures import Drift, OutputShift
from plurum.files import check_folder, write_bytes, write_text
from plurum.training.drift.plots import plot_from_drift
from plurum.training.statistics.page import html_from_template

__all__ = ["OUTPUTS", "PICTURE", "REPORT_FILES", "TABLE", "drift_lines", "sort_shifts", "write_drift"]

REPORT_FILES = ("drift.html", "drift.json", "drift.png")
# Outputs other than the probabilities of the classes.
OUTPUTS = {
    "labels": "Predicted classes. The distance is the fraction of predictions that would have to change.",
    "review": "Fraction of predictions that need review.",
    "confidence": "Probability of the predicted class.",
    "disagreement": "Mutual information of prediction and member, in nats: high where members contradict each other.",
    "outlier": "P-value of the outlier test: low for images unlike the reference images.",
    "p_CLASS": "Probability of a class.",
}
# Jinja templates of a `Drift` named `d`, for `plurum.training.statistics.page`.
TABLE = """<div class="wide"><table>
<tr><th>output</th><th>mean, reference</th><th>mean, predictions</th><th>distance</th><th>p-value</th></tr>
{% for shift in shifts %}<tr><td>{{ shift.output }}</td><td>{{ shift.reference|number }}</td>
<td>{{ shift.answers|number }}</td><td>{{ shift.distance|number }}</td>
<td class="{{ "worse" if shift.p_value <= d.alpha else "" }}">{{ shift.p_value|number }}</td></tr>
{% endfor %}</table></div>
"""
PICTURE = """{{ picture("drift", "Labels, confidence and distances", "Predictions by label and by confidence in both "
  ~ "samples; then the distance of each output, largest difference of the distribution functions.") }}
"""
_PAGE = (
    """<p class="faint">{{ "{:,}".format(d.images[1]) }} predictions from {{ d.answers|join(", ") }}, compared with
{{ "{:,}".format(d.images[0]) }} from {{ d.reference }}.</p>
<div class="verdict">{% for line in lines %}<p>{{ line }}</p>{% endfor %}</div>
{% if d.notes %}<ul class="notes">{% for note in d.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
"""
    + PICTURE
    + """<h2>Outputs</h2>
<p>P-values are those of {{ "{:,}".format(d.permutations) }} random permutations of {{ d.unit }} between the samples
(seed {{ d.seed }}), corrected for the number of outputs. All together give a false alarm with a probability of at most
{{ d.alpha }}.</p>
"""
    + TABLE
    + """<h2>Definitions</h2>
<dl>{% for word, meaning in outputs.items() %}<dt>{{ word }}</dt><dd>{{ meaning }}</dd>{% endfor %}</dl>
"""
)


def drift_lines(drift: Drift) -> list[str]:
    """Return the verdict in one sentence and, after drift, what changed most."""
    tests = f"p = {drift.p_value:.4f}, corrected for {len(drift.shifts)} outputs, at alpha {drift.alpha:g}"
    if not drift.is_found:
        return [f"No drift found: the predictions don't differ significantly from the reference ({tests})."]
    most = [shift for shift in sort_shifts(drift) if shift.p_value <= drift.alpha][:3]
    return [
        f"Drift: the predictions differ from the reference ({tests}).",
        f"Most changed: {', '.join(f'{shift.output} by {shift.distance:.3f}' for shift in most)}.",
    ]


def sort_shifts(drift: Drift) -> list[OutputShift]:
    """Return the shifts, the most significant first and of those the largest."""
    return sorted(drift.shifts, key=lambda shift: (shift.p_value, -shift.distance))


def write_drift(drift: Drift, folder: Path) -> Path:
    """Write drift.json, drift.png and drift.html into `folder`, each atomically, and return the path of the page.

    Raises:
        OutputError: `folder` is a file or can't be written.
        MissingExtraError: matplotlib or Jinja2 is not installed.
    """
    check_folder(folder, "the report")
    picture = plot_from_drift(drift)
    page = html_from_template(
        _PAGE,
        "Drift of predictions",
        {"drift": picture},
        d=drift,
        lines=drift_lines(drift),
        shifts=sort_shifts(drift),
        outputs=OUTPUTS,
    )
    write_text(folder / "drift.json", drift.model_dump_json(indent=1) + "\n")
    write_bytes(folder / "drift.png", picture)
    write_text(folder / "drift.html", page)
    return folder / "drift.html"
