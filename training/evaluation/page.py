"""HTML template of an evaluation's report, for `plurum.training.statistics.page`."""

from plurum.training.drift.report import PICTURE, TABLE

__all__ = ["PAGE"]

PAGE = (
    """<p class="faint">{{ "{:,}".format(j.images) }} images
{%- if j.patients %} of {{ "{:,}".format(j.patients) }} patients{% endif %}, {{ j.classes|length }} classes,
predicted by {{ j.answered_by }}. In brackets: 95% intervals from {{ "{:,}".format(j.draws) }} bootstrap draws of
{{ j.drawn }} (seed {{ j.seed }}).</p>
<div class="verdict">{% for line in verdict %}<p>{{ line }}</p>{% endfor %}</div>
{% if j.notes %}<ul class="notes">{% for note in j.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}

<h2>The ensemble and its best member</h2>
<div class="wide"><table>
<tr><th>metric</th><th>ensemble</th><th>best single ({{ j.best_single }})</th><th>difference</th></tr>
{% for key, metric in distinct.items() %}{% set difference = j.differences[key] %}
<tr><td>{{ metric.title }} <small>{{ "↑" if metric.better == "higher" else "↓" }}</small></td>
<td>{{ j.judged[0].metrics[key]|figure }}</td><td>{{ j.judged[1].metrics[key]|figure }}</td>
<td class="{{ difference|significant_change(metric.better) }}">{{ difference|difference }}</td></tr>
{% endfor %}</table></div>
<p class="faint">↑ higher is better, ↓ lower is better; a difference is coloured if its interval excludes 0. The best
single is the member with the lowest NLL on the images that the vote was fitted on, with its own temperature
({{ "%.3f"|format(j.best_single_temperature) }}) fitted to them.</p>
{{ picture("comparison", "Values and intervals of all", "Every member without temperature, the best member with "
  ~ "its own temperature, and the vote. Lines are 95% intervals.") }}

<h2>Members</h2>
<div class="wide"><table>
<tr><th>member</th>{% for key in shown %}<th>{{ metrics[key].title }}</th>{% endfor %}</tr>
{% for judged in j.judged if judged.kind == "member" %}
<tr><td>{{ judged.name }}</td>{% for key in shown %}{{ cell(judged.metrics[key]) }}{% endfor %}</tr>
{% endfor %}</table></div>

<h2>Class by class</h2>
<div class="wide"><table>
<tr><th>class</th><th>images</th>{% for title in per_class.values() %}<th>{{ title }}</th>{% endfor %}</tr>
{% for name in j.classes %}<tr><td>{{ name }}</td><td>{{ j.class_counts[loop.index0] }}</td>
{%- for key in per_class %}{{ cell(j.judged[0].per_class[name][key]) }}{% endfor %}</tr>
{% endfor %}</table></div>
{{ picture("confusion", "Confusion matrix", "Number of images by true class (row) and predicted class (column).") }}
<div class="pair">
{{ picture("roc", "ROC curves", "Each class against all others: true-positive rate over false-positive rate.") }}
{{ picture("precision_recall", "Precision–recall curves",
  "Each class against all others: precision over recall.") }}
</div>

<h2>The decision, as clinicians read it</h2>
<p>{% if j.positive %}The positive class is {{ j.positive }}.{% else %}No positive class is chosen: each class is the
positive one in turn, against all others. Choose one with --positive.{% endif %} Figures are of images, not of
patients{% if j.diagnoses and j.diagnoses[0].intervals == "by patient" %}; intervals draw patients
{%- endif %}.
{%- if j.prevalence is not none %} The stated prevalence is {{ "%.4g"|format(j.prevalence) }}.{% endif %}</p>
<div class="wide"><table>
<tr><th>positive</th><th>predictions</th><th>TP, FN, FP, TN</th>
{%- for key in j.diagnoses[0].figures %}<th>{{ figures[key] }}</th>{% endfor %}</tr>
{% for d in j.diagnoses %}<tr><td>{{ d.positive }}</td>
<td>{{ "all" if d.answers == "all" else "without review" }}</td>
<td>{{ d.true_positives }}, {{ d.false_negatives }}, {{ d.false_positives }}, {{ d.true_negatives }}</td>
{%- for figure in d.figures.values() %}{{ cell(figure) }}{% endfor %}</tr>
{% endfor %}</table></div>
{% for d in j.diagnoses if d.decision_curve %}<div class="wide"><table>
<caption>Net benefit of deciding {{ d.positive }} by its probability, at a prevalence of
{{ "%.3f"|format(d.decision_curve.prevalence) }}; deciding none has 0</caption>
<tr><th>threshold probability</th><th>ensemble</th><th>deciding all</th></tr>
{% for row in curve_rows(d.decision_curve) %}<tr><td>{{ "%.2f"|format(row[0]) }}</td>{{ cell(row[1]) }}
<td>{{ row[2]|number }}</td></tr>
{% endfor %}</table></div>{% endfor %}
{{ picture("decision_curve", "Decision curves", "Net benefit by threshold probability. The ensemble is worth using "
  ~ "where its line is above both others. Bands are 95% intervals.") }}

<h2>Calibration of the probabilities</h2>
{{ picture("reliability", "Reliability diagram", "Accuracy of predictions of similar confidence; on the dotted line, "
  ~ "confidence equals accuracy. ECE is the mean gap, weighted by the numbers of predictions below.") }}

<h2>Review</h2>
<p>{{ j.review.share|percent }} of the predictions need review: those with
{% if j.review.condition %}{{ j.review.condition }}.{% else %}a confidence below
{{ "%.4f"|format(j.review.threshold) }}, and those with more than one class in their prediction set.{% endif %}
Of the predictions without review, {{ j.review.accuracy_kept|percent }} are correct; of the others,
{{ j.review.accuracy_sent|percent }}.</p>
{{ picture("risk_coverage", "Risk–coverage curves", "With only the most confident predictions (left), the error rate "
  ~ "should be lower. AURC is the mean height of a line.") }}

<h2>Prediction sets</h2>
<p>The set contains the true class for {{ j.sets.coverage|percent }} of the images
{%- if j.sets.wished is not none %} (target: {{ "%.1f"|format(j.sets.wished * 100) }}% in each class)
{%- endif %}. A set has {{ "%.2f"|format(j.sets.mean_size) }} classes on average.</p>
<div class="wide"><table>
<tr><th>class</th><th>images</th><th>coverage</th><th>mean set size</th></tr>
{% for name, sets in j.sets.by_class.items() %}<tr><td>{{ name }}</td><td>{{ sets.images }}</td>
<td>{{ sets.coverage|figure }}</td>
<td>{{ "–" if sets.mean_size is none else "%.2f"|format(sets.mean_size) }}</td></tr>
{% endfor %}</table></div>
{{ picture("prediction_sets", "Coverage by class, and sizes of sets", "Coverage with 95% intervals, and the number of "
  ~ "sets of each size.") }}
{% if j.diversity %}
<h2>Diversity of the members</h2>
<p>Two members predict different classes for {{ "%.1f"|format(j.diversity.disagreement * 100) }}% of the images, on
average. At least one member is correct for {{ "%.1f"|format(j.diversity.oracle_accuracy * 100) }}% of them.
</p>
<div class="wide"><table>
<tr><th>members</th><th>disagreement</th><th>Q statistic</th><th>correlation of errors</th></tr>
{% for pair in j.diversity.pairs %}<tr><td>{{ pair.first }}, {{ pair.second }}</td>
<td>{{ "%.4f"|format(pair.disagreement) }}</td><td>{{ pair.q|number }}</td><td>{{ pair.correlation|number }}</td></tr>
{% endfor %}</table></div>
{{ picture("diversity", "Disagreement and Q between members",
  "Q is 0 for members with independent errors, and 1 for members with errors on the same images.") }}
{% endif %}{% if j.patient_level %}
<h2>Patients</h2>
<p>{{ "{:,}".format(j.patient_level.patients) }} patients, each predicted from all images of the patient
({{ "{:,}".format(j.patient_level.images) }} in total): by the mean of the probabilities, by each class's highest
probability, or by the most frequent class.</p>
<div class="wide"><table>
<tr><th rowspan="2">model</th>{% for rule in rules %}<th colspan="2">{{ rule }}</th>{% endfor %}</tr>
<tr>{% for rule in rules %}<th>accuracy</th><th>NLL (nats)</th>{% endfor %}</tr>
{% for name, by_rule in j.patient_level.by_rule.items() %}<tr><td>{{ name }}</td>
{%- for rule in rules %}{{ cell(by_rule[rule].accuracy) }}{{ cell(by_rule[rule].nll) }}{% endfor %}
</tr>{% endfor %}</table></div>
{% endif %}
{% for column in j.by_group %}
<h2>By {{ column.column }}</h2>
<p>{% for line in group_lines(column) %}{{ line }} {% endfor %}</p>
<div class="wide"><table>
<caption>With 95% intervals. * differs from all other images (p ≤ 0.05, permutation of patients, corrected for all tests
of all columns by Holm's method).</caption>
<tr><th>{{ column.column }}</th><th>images</th><th>patients</th>
{%- for name in column.groups[0].figures %}<th>{{ name }}</th>{% endfor %}</tr>
{% for group in column.groups %}<tr><td>{{ group.name }}{{ "" if group.is_judged else " (few patients)" }}</td>
<td>{{ group.images }}</td><td>{{ group.patients }}</td>
{%- for name, figure in group.figures.items() %}<td>{{ group_cell(group, name) }}
{%- if figure.low is not none and figure.high is not none %}<br>
<small>{{ "%.3f–%.3f"|format(figure.low, figure.high) }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}{% if j.corruptions %}
<h2>Corrupted images</h2>
<p>{{ verdict[0] }} The same images, corrupted at three strengths (seed {{ j.seed }}).</p>
<div class="wide"><table>
<tr><th>corruption</th><th>setting</th>{% for title in corrupted.values() %}<th>{{ title }}</th>{% endfor %}</tr>
{% for one in j.corruptions %}<tr><td>{{ one.kind }} {{ one.strength or "" }}</td><td>{{ one.setting }}</td>
{%- for name in corrupted %}{% if name in ("nll", "ece") %}<td>{{ one[name]|number }}</td>{% else %}
{{ cell(one[name]) }}{% endif %}{% endfor %}</tr>
{% endfor %}</table></div>
{{ picture("corruptions", "Figures over the strength of corruption", "Each line is a kind of corruption; strength 0 is "
  ~ "the images as they are. Wrong without review is what nobody sees.") }}
{% endif %}{% if j.drift %}{% set d = j.drift %}
<h2>Difference from the validation images</h2>
<p>{% for line in drift %}{{ line }} {% endfor %}Promises of coverage and risk hold only for images like the validation
images. The test compares predictions, not labels. {% for note in d.notes %}{{ note }} {% endfor %}</p>
"""
    + PICTURE
    + TABLE
    + """{% endif %}
<h2>Definitions</h2>
<dl>{% for word, meaning in meanings.items() %}<dt>{{ word }}</dt><dd>{{ meaning }}</dd>{% endfor %}</dl>
"""
)
