"""What an export and a check of a repository can refuse before PyTorch is imported, which takes seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from plurum.errors import ContractError, OutputError, RepositoryError, SettingsError
from plurum.export.settings import ExportSettings
from plurum.regular_files import check_regular

__all__ = ["check_checkpoints", "check_is_repository", "checked_names", "claim"]


def check_checkpoints(files: Sequence[Path]) -> None:
    """Make sure that the files are there.

    Raises:
        ContractError: one is not, or is no file.
    """
    for file in files:
        try:
            check_regular(file)
        except OSError as error:
            raise ContractError(
                f"{file} is no file ({error.strerror}); name a checkpoint, or a run's folder"
            ) from error


def check_is_repository(path: Path) -> None:
    """Make sure that there is a repository of ours at `path`.

    Raises:
        RepositoryError: there is none.
    """
    if not (path / "voter" / "config.pbtxt").is_file():
        raise RepositoryError(f"{path} is no model repository of ours; plurum export RUN writes one")


def claim(out: Path) -> None:
    """Make sure that `out` is free or a repository of ours.

    Raises:
        OutputError: it is a file, or holds something else.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; name a new folder for the repository")
    if out.is_dir() and any(out.iterdir()) and not (out / "voter" / "config.pbtxt").is_file():
        raise OutputError(f"{out} holds something else than a model repository; name a new or an empty folder")


def checked_names(
    checkpoints: Sequence[Path], archs: Sequence[str], settings: ExportSettings, *, has_images: bool
) -> list[str]:
    """Return what the member of each checkpoint is called: like its file, in letters that a model's name may have.

    Args:
        checkpoints: Files with a state dict.
        archs: Names of architectures.
        settings: Of the export.
        has_images: Whether there are labelled images.

    Raises:
        SettingsError: numbers of files and architectures differ, the precision needs labelled images, or two members
            would be called alike.
    """
    if settings.precision != "fp32" and not has_images:
        raise SettingsError(
            f"--precision {settings.precision} is checked on labelled images, and checkpoints come without; name some "
            f"with --images DATA, or export in fp32"
        )
    if len(archs) not in {1, len(checkpoints)}:
        raise SettingsError(f"{len(archs)} --arch for {len(checkpoints)} checkpoints; name one for all or one for each")
    names: dict[str, Path] = {}
    for file in checkpoints:
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", file.name.rsplit(".", 1)[0]).lstrip("_.-")[:100] or "member"
        if name in names:
            raise SettingsError(
                f"the members of {names[name]} and {file} would both be called {name!r}; rename one of the files"
            )
        names[name] = file
    return list(names)
