from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

from plurum import errors
from plurum.errors import MissingExtraError, PlurumError, needs_extra


def test_every_error_is_drawn_in_the_tree() -> None:
    classes = [thing for thing in vars(errors).values() if inspect.isclass(thing) and issubclass(thing, PlurumError)]
    assert len(classes) > 5
    for error in classes:
        assert error.__name__ in errors.__all__
        line = next(line for line in str(errors.__doc__).splitlines() if f" {error.__name__} " in line)
        assert f"exit code {error.exit_code}" in line or error.exit_code == PlurumError.exit_code


def test_a_missing_package_names_the_extra_that_brings_it() -> None:
    missing = pytest.raises(MissingExtraError, match=r"'no_such_package_here'.*pip install 'plurum\[client\]'")
    with missing, needs_extra("client", "no_such_package_here"):
        pass


def test_a_package_that_the_block_misses_counts_too() -> None:
    missing = pytest.raises(MissingExtraError, match=r"'no_such_package_here'.*pip install 'plurum\[training\]'")
    with missing, needs_extra("training", "json"):
        importlib.import_module("no_such_package_here.below")


def test_a_module_of_our_own_that_is_missing_is_a_defect_and_says_so() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"plurum\.nowhere"), needs_extra("client", "plurum.nowhere"):
        pass


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), needs_extra("client"):
        raise ZeroDivisionError


def test_on_the_command_line_an_error_is_one_line_and_its_exit_code() -> None:
    script = """
import sys
import plurum.cli.main as main
from plurum.errors import ParityError, ServerError
error = {"parity": ParityError, "server": ServerError}[sys.argv.pop()]
def fail():
    raise error("first line\\n   and second")
main.app = fail
main.run()
"""
    for kind, code in (("parity", 1), ("server", 2)):
        done = subprocess.run([sys.executable, "-c", script, kind], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "plurum: first line and second\n")
