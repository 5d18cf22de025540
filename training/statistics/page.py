"""Reports as HTML: one self-contained page for dark and light screens and for paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from plurum.errors import needs_extra
from plurum.sentences import figure_text, number_text, percent_text
from plurum.training.statistics.wording import difference_text, significant_change

__all__ = ["html_from_template"]

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --text: #1f2933; --faint: #5b6770; --line: #d9dee3; --back: #fff; --soft: #f4f6f8; --mark: #0067a5;
  --good: #0b6b3a; --bad: #a3261b; --note: #fff6df; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --faint: #a3adb6; --line: #3a434c; --back: #14181c;
  --soft: #1e242a; --mark: #6fb7e9; --good: #6fd39b; --bad: #ff9a8d; --note: #3a3218; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.2rem; }
p { margin: .5rem 0; max-width: 46rem; }
.faint, figcaption, caption { color: var(--faint); font-size: .9rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--mark); padding-left: .9rem; margin: 1.25rem 0; }
.notes { background: var(--note); border-radius: .5rem; padding: .6rem .9rem .6rem 2rem; margin: 1rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; font-size: .9rem; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; }
td small { color: var(--faint); font-size: .8rem; }
td { vertical-align: top; }
.better { color: var(--good); font-weight: 600; } .worse { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .5rem; padding: .5rem; }
figcaption { margin-top: .35rem; max-width: 46rem; }
.pair { display: flex; flex-wrap: wrap; gap: 0 1.25rem; } .pair figure { flex: 1 1 24rem; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0; max-width: 46rem; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } h2, figure, table { break-inside: avoid; } }
</style>
</head>
<body>
{% macro picture(name, alt, text="") %}{% if name in pictures %}
<figure><img alt="{{ alt }}" src="data:image/png;base64,{{ pictures[name] }}">
{%- if text %}<figcaption>{{ text }}</figcaption>{% endif %}</figure>{% endif %}{% endmacro %}
{% macro cell(figure) %}<td>{{ figure.value|number if figure else "–" }}
{%- if figure and figure.low is not none and figure.high is not none %}
<br><small>{{ "%.3f–%.3f"|format(figure.low, figure.high) }}</small>
{%- endif %}</td>{% endmacro %}
<h1>{{ title }}</h1>
"""
_END = """</body>
</html>
"""


def html_from_template(template: str, title: str, pictures: Mapping[str, bytes], **values: Any) -> str:
    """Return an HTML page with the pictures embedded; it loads no external resources.

    Args:
        template: Jinja template of what follows the page's title. It can use the macros `picture(name, alt, text)` and
            `cell(figure)`, a table cell of an `Estimate`.
        title: Title of the page.
        pictures: PNG files by name.
        **values: Variables of the template.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    with needs_extra("training"):
        from jinja2 import Environment, StrictUndefined
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "significant_change": significant_change,
        "difference": difference_text,
        "figure": figure_text,
        "number": number_text,
        "percent": percent_text,
    }
    encoded = {name: base64.b64encode(picture).decode("ascii") for name, picture in pictures.items()}
    return environment.from_string(_HEAD + template + _END).render(title=title, pictures=encoded, **values)
