"""Read folders of images: one folder per class, or one per split with a folder per class in each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plurum.errors import DataError
from plurum.file_trees import ImageTree, is_image_name, is_leftover, skipped_text, suffix_of
from plurum.images.image_formats import IMAGE_SUFFIXES
from plurum.run import Split
from plurum.training.data.labelled_files import LabelledFiles
from plurum.training.data.splits import split_from_word

__all__ = ["files_from_folder"]

# Names of folders that contain data and are hardly classes or patients; taken as such, they would hide the real ones.
_CONTAINER = re.compile(
    r"(images?|imgs?|masks?|annotations?|labels?|data|datasets?|(fold|split|cv)[ _-]?\d+"
    r"|(train|training|val|valid|validation|test|testing|dev|eval|evaluation|holdout)"
    r"([ _-]?(set|data|dataset|images?|imgs?|split|folder|\d+))?)",
    re.IGNORECASE,
)
_HIDDEN = "hidden or of an operating system"
_LOOSE = "outside of the classes' folders"


@dataclass(frozen=True)
class _Class:
    """Folder of one class in one split, its images, and its other files."""

    folder: Path
    images: tuple[Path, ...]
    tree: ImageTree


def files_from_folder(path: Path) -> LabelledFiles:
    """Return the image files below a folder with a folder per class, or with a folder per split.

    The layout is `CLASS/image.png`, or `CLASS/PATIENT/image.png` if patients are known. A patient's name means the same
    person in every class. Folders `train`, `val` (or `valid`, `validation`) and `test` may contain the class folders.
    Hidden files, files of operating systems and other file types are left out and counted in the notes.

    Raises:
        DataError: there is no class, a class has no image, or the layout is ambiguous.
    """
    folders = _folders(path)
    if not folders:
        raise DataError(f"{path}: expected a folder per class, as in {path}/CLASS/image.png, got none")
    splits = _split_folders(path, folders)
    if splits is None:
        if len(folders) == 1:
            raise DataError(
                f"{path}: expected at least 2 folders of classes, got only {folders[0].name!r}. If its folders are the "
                f"classes, name {folders[0]}"
            )
        _refuse_containers(path, folders)
        return _label_files(path, {"train": [_class(path, folder) for folder in folders]}, _count_others(path), [])
    parts = {split: [_class(path, one) for one in _class_folders(folder)] for split, folder in splits.items()}
    _check_classes_agree(parts)
    *first, last = (folder.name for folder in splits.values())
    names = f"{', '.join(first)} and {last}" if first else last
    where = "them" if len(splits) > 1 else "it"
    taken = f"folders {names} are taken as splits" if len(splits) > 1 else f"folder {names} is taken as a split"
    note = f"the {taken}, and the folders in {where} as classes"
    around = sum((_count_others(folder) for folder in splits.values()), _count_others(path))
    return _label_files(path, parts, around, [note])


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_leftover(entry.name))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error


def _split_folders(path: Path, folders: Sequence[Path]) -> dict[Split, Path] | None:
    """Return the folders of the splits, train first; None if no folder is named like a split."""
    named = [(split, folder) for folder in folders if (split := split_from_word(folder.name))]
    if not named:
        return None
    words = " and ".join(folder.name for _, folder in named)
    others = [folder.name for folder in folders if not split_from_word(folder.name)]
    if others:
        raise DataError(
            f"{path} has folders named like splits ({words}) and others ({_some(others)}). If the former are splits, "
            f"move the others away; if all are classes, list the images in a .csv with a column label"
        )
    splits = dict(named)
    if len(splits) < len(named):
        raise DataError(f"{path} has several folders for one split ({words}); merge or rename them")
    if "train" not in splits:
        raise DataError(f"{path} has the folders {words} and no folder train; add one, or rename one")
    order: tuple[Split, ...] = ("train", "validation", "test")
    return {split: splits[split] for split in order if split in splits}


def _class_folders(split: Path) -> list[Path]:
    """Return the class folders of one split."""
    folders = _folders(split)
    if loose := _loose_images(split):
        raise DataError(
            f"{split} has images outside of class folders ({loose:,}), so their classes are unknown; move them into "
            f"{split}/CLASS, or away"
        )
    if not folders:
        raise DataError(f"{split}: expected a folder per class, as in {split}/CLASS/image.png, got none")
    _refuse_containers(split, folders)
    return folders


def _check_classes_agree(parts: dict[Split, list[_Class]]) -> None:
    names = {split: {one.folder.name for one in some} for split, some in parts.items()}
    folders = {split: some[0].folder.parent for split, some in parts.items()}
    for split, some in names.items():
        if odd := sorted(some ^ names["train"]):
            pair = folders[split], folders["train"]
            has, lacks = pair if odd[0] in some else reversed(pair)
            raise DataError(
                f"{has} has a class {odd[0]!a}, and {lacks} has not; "
                f"{len(odd)} name{'s are' if len(odd) > 1 else ' is'} in one of them only. Every split needs the same "
                f"classes, with the same spelling"
            )


def _refuse_containers(path: Path, folders: Sequence[Path]) -> None:
    """Refuse folders that are hardly classes."""
    if odd := [folder for folder in folders if _CONTAINER.fullmatch(folder.name)]:
        others = _some([one.name for one in folders if one != odd[0]])
        raise DataError(
            f"{path} has a folder {odd[0].name!r}{f' beside {others}' * bool(others)}, which is hardly a class; "
            f"name the folder whose folders are the classes, call splits train, val and test, "
            f"or list the images in a .csv with a column label"
        )


def _class(top: Path, folder: Path) -> _Class:
    tree = ImageTree(folder, top)
    images = tuple(sorted(map(Path, tree.paths())))
    for image in images:
        if not (name := str(image.relative_to(folder))).isprintable():
            # Neither a table nor a terminal could show such a name.
            raise DataError(f"{folder} / {name!a} has a name with unprintable characters; rename it")
    if not images:
        others = f", but {skipped_text(tree.skipped)}" if tree.skipped else ""
        raise DataError(
            f"class {folder.name!r} has no image: expected a file in {folder} that ends in "
            f"{', '.join(IMAGE_SUFFIXES)}{others}"
        )
    patients = {_patient(image.relative_to(folder)) for image in images}
    if odd := sorted(name for name in patients if _CONTAINER.fullmatch(name)):
        raise DataError(
            f"class {folder.name!r} has a folder {odd[0]!r} in it, where patients are expected; lay splits out as "
            f"train/CLASS, val/CLASS and test/CLASS, and images as CLASS/image.png or CLASS/PATIENT/image.png"
        )
    return _Class(folder, images, tree)


def _label_files(path: Path, parts: dict[Split, list[_Class]], around: Counter[str], notes: list[str]) -> LabelledFiles:
    """Return the files of all splits; with a single split, splits are drawn later."""
    everything = [(split, one) for split, some in parts.items() for one in some]
    classes = tuple(sorted({one.folder.name for _, one in everything}))
    rows = [(split, one.folder, image) for split, one in everything for image in one.images]
    patients = tuple(_patient(image.relative_to(folder)) for _, folder, image in rows)
    skipped = sum((one.tree.skipped for _, one in everything), around)
    skipped[_HIDDEN] += sum(one.tree.hidden for _, one in everything)
    if others := skipped_text(+skipped):
        notes = [*notes, f"not read: {others}"]
    return LabelledFiles(
        name=str(path),
        root=path,
        classes=classes,
        paths=tuple(image for _, _, image in rows),
        labels=np.array([classes.index(folder.name) for _, folder, _ in rows], dtype=np.int64),
        patients=patients,
        splits=tuple(split for split, _, _ in rows) if len(parts) > 1 else (),
        notes=(*notes, *_same_folders(everything)),
    )


def _same_folders(everything: Sequence[tuple[Split, _Class]]) -> list[str]:
    """Return a note if all classes contain the same folders, which may be classes below sites."""
    found = [
        {_patient(image.relative_to(one.folder)) for image in one.images} - {""}
        for split, one in everything
        if split == "train"
    ]
    if len(found[0]) > 1 and all(names == found[0] for names in found):
        return [f"all classes have the same folders in them ({_some(sorted(found[0]))}), which are taken as patients"]
    return []


def _count_others(folder: Path) -> Counter[str]:
    """Count the files directly in `folder`, by the reason why they are not read."""
    entries = list(folder.iterdir())
    left = sum(is_leftover(entry.name) for entry in entries)
    counts = Counter({_HIDDEN: left, _LOOSE: _loose_images(folder)})
    files = [entry.name for entry in entries if not is_leftover(entry.name) and not entry.is_dir()]
    counts.update(suffix_of(name) for name in files if not is_image_name(name))
    return counts


def _loose_images(folder: Path) -> int:
    return sum(1 for entry in folder.iterdir() if is_image_name(entry.name) and not entry.is_dir())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _patient(below_class: Path) -> str:
    return below_class.parts[0] if len(below_class.parts) > 1 else ""
