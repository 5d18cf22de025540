"""Run the command line as `python -m plurum`."""

from plurum.cli.main import run

run()
