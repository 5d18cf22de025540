"""All pages: links and anchors exist, tables match the code, and the words are those of the field."""

from __future__ import annotations

import importlib.util
import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
import typer
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from plurum.cli.main import app
from plurum.serving.gateway.admission import Admission
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.status import Status
from tests.model_repository.triton_recorder import install_recorder, loaded
from tests.outliers.samples import outliers

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.name for page in PAGES]
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
# Words without an honest other use: archaic, or with another meaning in English.
BANNED = (
    r"\baskers?\b",
    r"\basked about\b",
    r"beyond chance",
    r"whole or not at all",
    r"wished for",
    r"broken off",
    r"\brightly\b",
    r"person should look",
    r"\bwho votes\b",
    r"\bwhosoever\b",
    r"\bas good as\b",
    r"tells the truth",
)


def prose(page: Path) -> str:
    """Return the text of a page without code blocks, code and link targets: those hold names and figures."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", text)


def banned(text: str) -> list[str]:
    found = re.findall("|".join(BANNED), " ".join(text.split()), flags=re.IGNORECASE)
    return sorted(set(found))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_no_page_uses_a_banned_word(page: Path) -> None:
    assert banned(prose(page)) == []


def test_banned_words_are_found_across_lines_and_in_any_case() -> None:
    assert banned("Whole or\nnot at all; better Beyond  chance") == ["Beyond chance", "Whole or not at all"]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_uses_a_banned_word(command: str) -> None:
    help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "400", "NO_COLOR": "1"}).output
    assert "Usage" in help_text
    assert banned(re.sub("[│╭╮╰╯─]", " ", help_text)) == []


def test_pages_name_only_options_that_commands_have() -> None:
    """The commands themselves run in the slow tests of each page."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        inline = re.findall(r"`(plurum [^`\n]*)`", text)
        for line in [*re.findall(r"^plurum .*$", text, flags=re.MULTILINE), *inline]:
            name, *words = line.split("&&")[0].split()[1:] or [""]
            options = {word.partition("=")[0] for word in words if word.startswith("--") and "…" not in word}
            if name in COMMANDS:
                command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
                known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
                found += [line for option in options if option not in known | {"--help"}]
    assert found == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    kept = string.ascii_lowercase + string.digits + "-_ "
    return {"".join(one for one in heading.lower() if one in kept).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|benchmarks|serving|src)/[\w/.-]+)`", text):
        # Capitals stand for what the reader fills in.
        assert re.search("FILE|NAME|COMMAND", path) or (ROOT / path).exists(), path
    for module in re.findall(r"python -m (plurum\.[\w.]+)", text):
        assert importlib.util.find_spec(module) is not None, module


def test_the_readme_is_short_and_every_page_can_be_reached_from_it() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([^)#\s:]+\.md)[^)]*\)", page.read_text(encoding="utf-8"))
            waiting += [(page.parent / link).resolve() for link in links]
    # Those pages of the site are files at the top.
    included = {page for page in PAGES if page.read_text(encoding="utf-8").startswith("{% include-markdown")}
    assert len(included) == 4
    assert set(PAGES) - reached - included == set()


def test_the_module_map_names_every_folder() -> None:
    rows = README.read_text(encoding="utf-8").partition("## Module map")[2]
    named = {name.split("/")[0] for name in re.findall(r"^\| `([\w/]+)/` \|", rows, flags=re.MULTILINE)}
    stages = {path.name for path in (ROOT / "src" / "plurum").iterdir() if path.is_symlink()}
    assert named == stages | {"src", "tests"}


def test_the_glossary_is_sorted() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\*\*(.+?)\*\*", text, flags=re.MULTILINE)
    assert len(terms) > 30
    assert terms == sorted(terms, key=str.lower)


def listed(page: Path, start: str) -> dict[str, set[str]]:
    """Return the metrics in the tables of a page whose names begin with `start`, each with its labels."""
    rows = "\n".join(row for row in page.read_text(encoding="utf-8").splitlines() if row.startswith("| `plurum_"))
    found = re.findall(r"`(plurum_\w+)(?:\{([\w, ]+)\})?`", rows)
    return {name: set(re.findall(r"\w+", labels)) for name, labels in found if re.match(start, name)}


def registered(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Return the metrics of a registry under the names that Prometheus shows, each with its labels."""
    found: dict[str, set[str]] = {}
    for collector in set(registry._names_to_collectors.values()):
        named: Any = collector
        name = f"{named._name}_total" if named._type == "counter" else named._name
        found[name] = set(named._labelnames)
    return found


@pytest.fixture
def of_the_voter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, set[str]]:
    """Return the metrics that the voter registers with Triton, by name, with their labels except the common ones."""
    recorder = install_recorder(monkeypatch)
    baseline = {
        "images": 4,
        "class_shares": [0.5, 0.5],
        "confidence_limits": [0.5],
        "confidence_shares": [0.5, 0.5],
        "review_share": 0.5,
        "dissent_shares": [0.5],
    }
    member = {"name": "one", "arch": "resnet18", "parameters": 1, "sha256": "0" * 64}
    about = {"name": "demo", "data": {"data": "digits"}, "classes": ["CE", "LAA"], "audit_rate": 0.02}
    voting_of = {"mode": "soft", "weights": [1.0], "temperature": 1.0}
    about |= {"voting": voting_of, "conformal": None, "review": {"threshold": 0.9}}
    about["outliers"] = outliers(members=[True], detectors=["0" * 64], weights=[1.0])
    about["cascade"] = {"stages": [{"members": 1, "share": 0.9}]}
    (tmp_path / "ensemble.json").write_text(json.dumps({**about, "members": [member], "baseline": baseline}))
    loaded("voter/metrics.py").VoterMetrics(tmp_path).close()
    found: dict[str, set[str]] = {}
    for name, pairs in recorder.page:
        histogram = re.sub("_(sum|count|bucket)$", "", name)
        labels = {label for label, _ in pairs}
        assert {"ensemble", "release"} <= labels
        found.setdefault(histogram, set()).update(
            labels - {"ensemble", "release"} - ({"le"} if histogram != name else set())
        )
    return found


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "monitoring.md"], ids=["README.md", "monitoring.md"])
def test_a_table_lists_the_voters_metrics_with_their_labels(page: Path, of_the_voter: dict[str, set[str]]) -> None:
    others = "plurum_(?!gateway|trial|stage)"
    names = listed(page, others)
    served = registered(Status().registry)
    assert {name: labels for name, labels in names.items() if name not in served} == of_the_voter


def test_the_tables_of_the_pages_list_the_metrics_of_serve_and_gateway() -> None:
    served = registered(Status().registry)
    page = listed(ROOT / "docs" / "monitoring.md", "plurum_")
    assert {name: labels for name, labels in page.items() if name in served} == served
    metrics = GatewayMetrics()
    metrics.watch(Admission(1, 1), lambda: 0)
    assert listed(ROOT / "docs" / "gateway.md", "plurum_gateway") == registered(metrics.registry)


@pytest.mark.parametrize(
    ("code", "start", "number"),
    [("model_repository/trial/model.py", "plurum_trial", 4), ("serving/backends/graph_model.py", "plurum_stage", 2)],
)
def test_the_table_of_a_model_is_that_of_what_it_counts(code: str, start: str, number: int) -> None:
    text = (ROOT / code).read_text(encoding="utf-8")
    in_code = re.findall(rf"^ {{4}}({start}_\w+)\{{([\w, ]+)\}}", text, flags=re.MULTILINE)
    page = listed(ROOT / "docs" / "monitoring.md", start)
    assert page == {name: set(re.findall(r"\w+", labels)) for name, labels in in_code}
    assert len(page) == number
