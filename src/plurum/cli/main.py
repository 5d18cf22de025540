"""The root of the command line."""

from __future__ import annotations

import errno
import logging
import os
import sys
import tempfile
from typing import Annotated

import typer

from plurum import __version__
from plurum.cli.add.command import add
from plurum.cli.bench import bench
from plurum.cli.calibrate import calibrate
from plurum.cli.compare import compare
from plurum.cli.data import data
from plurum.cli.demo.command import demo
from plurum.cli.distill.command import distill
from plurum.cli.doctor import doctor
from plurum.cli.drift import drift
from plurum.cli.evaluate import evaluate
from plurum.cli.export import export
from plurum.cli.fit import fit
from plurum.cli.gateway import gateway
from plurum.cli.predict.command import predict
from plurum.cli.rollout import rollout
from plurum.cli.search.command import search
from plurum.cli.serve import serve
from plurum.cli.streams import close_output, prepare_streams
from plurum.cli.train import train
from plurum.cli.tune import tune
from plurum.cli.ui import ui
from plurum.errors import PlurumError, SettingsError
from plurum.telemetry import forbid_telemetry

__all__ = ["app", "run"]

_log = logging.getLogger(__name__)
# Commands that record paths in JSON files.
_WRITE_PATHS = {"add", "bench", "calibrate", "compare", "distill", "drift", "evaluate", "export", "fit"} | {
    *("search", "train", "tune")
}

app = typer.Typer(
    name="plurum",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Combine image classifiers into one calibrated prediction with an uncertainty estimate.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"plurum {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log debug messages to standard error.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if verbose:
        # Only our logger: libraries log every chunk of every file.
        logging.getLogger("plurum").setLevel(logging.DEBUG)


for _command in (
    *(add, bench, calibrate, compare, data, demo, distill, doctor, drift, evaluate, export),
    *(fit, gateway, predict, rollout, search, serve, train, tune, ui),
):
    app.command()(_command)


def run() -> None:
    """Run the command line; print a `PlurumError` as one line on standard error and exit with its code."""
    forbid_telemetry()
    prepare_streams()
    # Terminals of unknown width set COLUMNS to 0, with which Rich prints nothing.
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]
    try:
        _check_arguments(sys.argv[1:])
        try:
            app()
        finally:
            # Flush here, so that we report a full disk and not the interpreter at exit.
            sys.stdout.flush()
    except PlurumError as error:
        sys.stderr.write(f"plurum: {' '.join(str(error).split())}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("plurum: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader (such as head) has closed the pipe; keep the interpreter from reporting it at exit.
        close_output()
        sys.exit(141)
    except OSError as error:
        _log.debug("%s", error, exc_info=True)
        close_output()
        sys.stderr.write(f"plurum: {_reason(error)}\n")
        sys.exit(2)


def _check_arguments(arguments: list[str]) -> None:
    """Check that paths to be recorded in JSON are valid UTF-8."""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    for argument in arguments:
        if command in _WRITE_PATHS and any("\udc80" <= letter <= "\udcff" for letter in argument):
            raise SettingsError(f"{command}: expected paths in UTF-8, got {argument!a}. Rename the file or folder.")


def _reason(error: OSError) -> str:
    """Return the reason of an operating system error, with the file if known."""
    if isinstance(error, ConnectionError | TimeoutError) or error.strerror is None:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not names and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        names = [f"standard output or the temporary folder {tempfile.gettempdir()}"]
    return f"{' -> '.join(names) or 'a file'} can't be used: {error.strerror}"
