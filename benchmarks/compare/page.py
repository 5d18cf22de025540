"""HTML template of a comparison, for `plurum.training.statistics.page`."""

__all__ = ["PAGE"]

PAGE = """<p class="faint">{{ "{:,}".format(c.images.train) }} training,
{{ "{:,}".format(c.images.validation) }} validation and {{ "{:,}".format(c.images.test) }} test images
{%- if c.patients %} ({{ "{:,}".format(c.patients) }} patients){% endif %} of {{ c.classes }} classes,
{{ c.height }} × {{ c.width }} pixels. In small print: 95% intervals from {{ "{:,}".format(c.draws) }} bootstrap draws
of {{ c.drawn }} (seed {{ c.seed }}).</p>
<div class="verdict">{% for line in lines %}<p>{{ line }}</p>{% endfor %}</div>
{% if c.notes %}<ul class="notes">{% for note in c.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}

<h2>How well they answer</h2>
<div class="wide"><table>
<tr><th>architecture</th>{% for key in shown %}<th>{{ metrics[key].title }}</th>{% endfor %}
<th>accuracy in INT8</th></tr>
{% for one in c.compared %}<tr><td>{{ one.name }}</td>{% for key in shown %}{{ cell(one.metrics[key]) }}{% endfor %}
{{ cell(one.accuracy.onnx_int8) }}</tr>
{% endfor %}</table></div>
<p class="faint">Test images; precision, recall, F1 and ROC-AUC are means over classes.</p>
{{ picture("accuracy_comparison", "Accuracy of architectures and ensembles with 95% intervals") }}
{{ picture("multi_metric_comparison", "Five metrics of every architecture with 95% intervals") }}

<h2>What they cost</h2>
<div class="wide"><table>
<tr><th>architecture</th><th>parameters</th><th>GFLOPs an image</th><th>training</th>
{% for name in runtimes.values() %}<th>size, {{ name }}</th>{% endfor %}
{% for name in runtimes.values() %}<th>peak memory, {{ name }}</th>{% endfor %}</tr>
{% for one in c.compared %}<tr><td>{{ one.name }}</td><td>{{ "{:,}".format(one.costs.parameters) }}</td>
<td>{{ "%.4g"|format(one.costs.gflops) }}</td><td>{{ training(one) }}</td>
{% for runtime in runtimes %}<td>{{ "%.1f MB"|format(one.costs.size_mb[runtime]) }}</td>{% endfor %}
{% for runtime in runtimes %}<td>{{ "%.0f MB"|format(one.costs.memory_mb[runtime].peak) }}<br>
<small>{{ "%.0f"|format(one.costs.memory_mb[runtime].idle) }} idle</small></td>{% endfor %}</tr>
{% endfor %}</table></div>
<p class="faint">A multiplication and its addition are two floating-point operations. Memory is that of a process of its
own that answers batches of {{ c.batch_size }}; idle is what it holds before the model is loaded.</p>
{{ picture("accuracy_vs_size", "Accuracy over size on disk, FP32 and INT8") }}

<h2>How fast they are</h2>
<div class="wide"><table>
<tr><th>architecture</th>{% for name in runtimes.values() %}<th>{{ name }}, ms an image</th>{% endfor %}
{% for name in runtimes.values() %}<th>{{ name }}, images/s</th>{% endfor %}</tr>
{% for one in c.compared %}<tr><td>{{ one.name }}</td>
{% for runtime in runtimes %}<td>{{ "%.2f"|format(one.speed[runtime].latency_ms.median) }}</td>{% endfor %}
{% for runtime in runtimes %}<td>{{ "{:,.0f}".format(one.speed[runtime].images_per_s.median) }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p class="faint">Latency: one image on one thread. Throughput: batches of {{ c.batch_size }}, one on each of
{{ c.machine.cores }} cores ({{ c.machine.processor }}). Medians of {{ c.turns }} turns, all cases in turn.
Decoding is not in it.</p>
{{ picture("inference_speed", "Latency and throughput by architecture and runtime") }}
{{ picture("pareto_front", "Accuracy over latency, with the Pareto front") }}
{% if c.votes %}
<h2>Which ensembles are worth their cost</h2>
<div class="wide"><table>
<tr><th>ensemble</th><th>latency</th><th>accuracy</th><th>NLL (nats)</th><th>best cheaper alternative</th>
<th>accuracy gained</th><th>NLL</th><th>verdict</th></tr>
{% for vote in c.votes %}<tr><td>{{ vote.name }}</td><td>{{ "%.2f ms"|format(vote.latency_ms) }}</td>
{{ cell(vote.accuracy) }}{{ cell(vote.nll) }}<td>{{ vote.beside|join(" + ") }}</td>
<td class="{{ vote.accuracy_gained|significant_change("higher") }}">{{ vote.accuracy_gained|difference }}</td>
<td class="{{ vote.nll_change|significant_change("lower") }}">{{ vote.nll_change|difference }}</td>
<td class="{{ {"worth its cost": "better", "worse": "worse"}.get(vote.verdict, "") }}">{{ vote.verdict }}</td></tr>
{% endfor %}</table></div>
<p class="faint">Soft votes, fitted on validation images. The alternative is the member or ensemble with a lower latency
that has the lowest validation NLL. An ensemble is worth its cost if its accuracy or NLL is significantly better (95%
interval excludes 0) and neither is significantly worse. Latencies (ONNX FP32) are added up.</p>
{% endif %}
<h2>Taken on</h2>
<p class="faint">{% for key, value in c.machine.items() %}{{ key|replace("_", " ") }}: {{ value }}; {% endfor %}
{% for key, value in c.versions.items() %}{{ key }} {{ value }}{{ "" if loop.last else ", " }}{% endfor %}</p>
"""
