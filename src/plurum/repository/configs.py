"""Triton's configs of a repository's models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from plurum.errors import RepositoryError

__all__ = ["read_config"]


def read_config(model: Path) -> Any:
    """Return the ModelConfig of the folder `model`.

    Raises:
        RepositoryError: the config can't be read.
    """
    path = model / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} is not a model configuration: {error}") from error
