"""Files of a model card in a repository: model_card.json for programs, model_card.md for people."""

from __future__ import annotations

from pathlib import Path

from plurum.export.manifest import MANIFEST, read_manifest
from plurum.export.repository.cards.card import ModelCard
from plurum.export.repository.cards.markdown import markdown_from_card
from plurum.files import sha256_of, write_text
from plurum.spec import write_metadata

__all__ = ["CARD_FILES", "update_card", "write_card"]

CARD_FILES = ("model_card.json", "model_card.md")


def write_card(repository: Path, card: ModelCard) -> bool:
    """Write the model card of a repository.

    Returns:
        False if the repository has this card already, so that nothing was written.
    """
    texts = dict(zip(CARD_FILES, (card.model_dump_json(indent=2) + "\n", markdown_from_card(card)), strict=True))
    if all(_has_text(repository / name, text) for name, text in texts.items()):
        return False
    for name, text in texts.items():
        write_text(repository / name, text)
    return True


def update_card(repository: Path, card: ModelCard) -> bool:
    """Write the card of a repository that is otherwise up to date, for example after a new evaluation.

    The manifest follows last. If an interruption prevents that, the next export finds a changed file and starts anew.

    Returns:
        False if the repository has this card already.
    """
    if not write_card(repository, card):
        return False
    manifest = read_manifest(repository)
    files = (manifest.files or {}) | {name: sha256_of(repository / name) for name in CARD_FILES}
    write_metadata(repository / MANIFEST, manifest.model_copy(update={"files": dict(sorted(files.items()))}))
    return True


def _has_text(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
