"""Options from settings: their descriptions, names, and the imports that `--help` needs."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from plurum.cli.options import Given, with_options
from plurum.export.settings import ExportSettings
from plurum.settings import benchmarks, client, distilling, search, serving, training
from plurum.settings.options import Option, Settings, descriptions_from_docstring, option_from_field

KINDS = [
    ExportSettings,
    *(
        getattr(module, name)
        for module in (benchmarks, client, distilling, search, serving, training)
        for name in module.__all__
    ),
]
KINDS = [kind for kind in KINDS if isinstance(kind, type)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_docstring_describes_every_field_and_nothing_else(kind: type[Settings]) -> None:
    assert list(descriptions_from_docstring(kind)) == list(kind.model_fields)


def test_an_option_is_called_as_its_field_with_few_exceptions() -> None:
    others = {(kind.__name__, name) for kind in KINDS for name in kind.model_fields if Option.of(kind, name).name}
    assert others == {
        ("TrainSettings", "archs"),
        ("ServerTls", "cert"),
        ("ServerTls", "key"),
        ("ServerTls", "client_ca"),
        ("SlideOptions", "folder"),
        ("SlideOptions", "every"),
    }
    assert option_from_field(training.TrainSettings, "batch_size") == "--batch-size"
    assert option_from_field(training.TrainSettings, "archs") == "--arch"


@pytest.mark.parametrize(
    ("words", "given"), [((), {}), (("--pretrained", "--epochs", "3"), {"epochs": 3, "pretrained": True})]
)
def test_only_given_options_reach_the_command(words: tuple[str, ...], given: dict[str, Any]) -> None:
    reached = []

    @with_options
    def command(
        settings: training.EvaluationSettings,
        some: Annotated[dict[str, Any], Given(training.TrainSettings, ("epochs", "pretrained"), {"epochs": 8})],
    ) -> None:
        reached.append((settings, some))

    app = typer.Typer()
    app.command()(command)
    assert CliRunner().invoke(app, [*words, "--draws", "200"]).exit_code == 0
    assert reached == [(training.EvaluationSettings(draws=200), given)]
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "[default: 8]" in shown
    assert "[default: test]" in shown


@pytest.mark.parametrize("words", [(), ("train",), ("serve",), ("gateway",), ("ui",)])
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "plurum", *words, "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    modules = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "plurum.settings.training" in modules
    assert not modules & {"numpy", "onnxruntime", "pandas", "PIL", "torch", "tritonclient", "uvicorn"}
