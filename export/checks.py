"""Checks of an export's options and paths that run before PyTorch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plurum.errors import MetadataError, OutputError, RepositoryError, SettingsError
from plurum.export.settings import ExportSettings
from plurum.files import check_folder
from plurum.regular_files import check_regular
from plurum.spec import name_from_file

__all__ = ["check_checkpoints", "check_is_repository", "check_output_folder", "find_member_names"]


def check_checkpoints(files: Sequence[Path]) -> None:
    """Check that the files exist.

    Raises:
        MetadataError: one does not, or is not a regular file.
    """
    for file in files:
        try:
            check_regular(file)
        except OSError as error:
            raise MetadataError(
                f"{file} is not a file ({error.strerror}); name a checkpoint, or a run's folder"
            ) from error


def check_is_repository(path: Path) -> None:
    """Check that `path` is a Plurum model repository.

    Raises:
        RepositoryError: it is not.
    """
    if not (path / "voter" / "config.pbtxt").is_file():
        raise RepositoryError(f"{path} is not a Plurum model repository; create one with plurum export RUN")


def check_output_folder(out: Path) -> None:
    """Check that `out` is new, empty or a Plurum repository.

    Raises:
        OutputError: `out` is a file, or a folder with other files.
    """
    check_folder(out, "the repository")
    if out.is_dir() and any(out.iterdir()) and not (out / "voter" / "config.pbtxt").is_file():
        raise OutputError(f"{out} is not empty and not a model repository; name a new or an empty folder")


def find_member_names(
    checkpoints: Sequence[Path], archs: Sequence[str], settings: ExportSettings, *, has_images: bool
) -> list[str]:
    """Return each member's name: its file's name, restricted to characters that a Triton model name may have.

    Args:
        checkpoints: Files with a state dict.
        archs: Architecture names: one for all files, or one per file.
        settings: Export settings.
        has_images: True if there are labelled images to check and calibrate on.

    Raises:
        SettingsError: the numbers of files and architectures differ, the precision needs labelled images, or two
            members would have the same name.
    """
    if settings.precision != "fp32" and not has_images:
        raise SettingsError(
            f"--precision: {settings.precision} needs labelled images to calibrate and check on. Name some with "
            f"--images DATA, or choose fp32"
        )
    if len(archs) not in {1, len(checkpoints)}:
        expected = "1" if len(checkpoints) == 1 else f"1 or {len(checkpoints)}"
        raise SettingsError(f"--arch: expected {expected} for {len(checkpoints)} checkpoints, got {len(archs)}")
    names: dict[str, Path] = {}
    for file in checkpoints:
        name = name_from_file(file.name)
        if name in names:
            raise SettingsError(f"{names[name]} and {file} give the same member name {name!r}; rename one of the files")
        names[name] = file
    return list(names)
