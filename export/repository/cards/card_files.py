"""Files of a model card in a repository: model_card.json for programs, model_card.md for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plurum.export.manifest import MANIFEST, PublishedGraph, read_manifest
from plurum.export.repository.cards.card import card_from_repository
from plurum.export.repository.cards.facts import CardFacts
from plurum.export.repository.cards.markdown import markdown_from_card
from plurum.export.repository.parity import Parity
from plurum.files import sha256_of, write_text
from plurum.spec import write_metadata

__all__ = ["CARD_FILES", "update_card", "write_card"]

CARD_FILES = ("model_card.json", "model_card.md")


def write_card(
    repository: Path, facts: CardFacts, artefacts: Sequence[PublishedGraph], parities: Sequence[Parity]
) -> bool:
    """Write the model card of a repository whose `ensemble.json` is there already.

    Args:
        repository: Folder of the repository.
        facts: Facts that the run knows about the ensemble.
        artefacts: Graphs of the repository.
        parities: Differences between the graphs and PyTorch.

    Returns:
        False if the repository has this card already, so that nothing was written.
    """
    card = card_from_repository(repository, facts, artefacts, parities)
    texts = dict(zip(CARD_FILES, (card.model_dump_json(indent=2) + "\n", markdown_from_card(card)), strict=True))
    if all(_has_text(repository / name, text) for name, text in texts.items()):
        return False
    for name, text in texts.items():
        write_text(repository / name, text)
    return True


def update_card(
    repository: Path, facts: CardFacts, artefacts: Sequence[PublishedGraph], parities: Sequence[Parity]
) -> bool:
    """Write the card of a repository that is otherwise up to date, for example after a new evaluation.

    The manifest follows last. If an interruption prevents that, the next export finds a changed file and starts anew.

    Returns:
        False if the repository has this card already.
    """
    if not write_card(repository, facts, artefacts, parities):
        return False
    manifest = read_manifest(repository)
    files = (manifest.files or {}) | {name: sha256_of(repository / name) for name in CARD_FILES}
    write_metadata(repository / MANIFEST, manifest.model_copy(update={"files": dict(sorted(files.items()))}))
    return True


def _has_text(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
