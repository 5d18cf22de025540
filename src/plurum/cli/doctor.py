"""`plurum doctor`: check a model repository."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["doctor"]

_SIGNS = {"ok": "ok", "error": "ERROR", "skipped": "skipped"}


def doctor(
    repository: Annotated[Path, typer.Argument(help="Model repository written by `plurum export`.", metavar="REPO")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
) -> None:
    """Check a model repository without serving it; exit with code 1 on any error.

    Checks that graphs load and match their configs, the manifest and ensemble.json, and that every member reaches the
    vote. Also checks that FP16 and INT8 are as declared and supported by the target, and that plans fit this TensorRT
    and this GPU. Reports stray files.

    [bold]Examples[/bold]

      plurum doctor runs/digits/model_repository

      plurum doctor /srv/models --json
    """
    from plurum.errors import needs_extra
    from plurum.export.checks import check_is_repository

    # Before seconds of imports.
    check_is_repository(repository)
    with needs_extra("export", "torch", "onnx", "onnxruntime", "tritonclient.grpc"):
        from plurum.export.doctor import check_repository
    from plurum.progress import show_status

    with show_status("checking") as say:
        findings = check_repository(repository, say)
    errors = sum(finding.state == "error" for finding in findings)
    if as_json:
        report = {"repository": str(repository), "errors": errors, "findings": [one.model_dump() for one in findings]}
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        for finding in findings:
            detail = f": {finding.detail}" if finding.detail else ""
            sys.stdout.write(f"{_SIGNS[finding.state]:8}{finding.check:16}{finding.subject}{detail}\n")
        sys.stdout.write(f"{len(findings)} checks, {errors} errors\n")
    if errors:
        raise typer.Exit(1)
