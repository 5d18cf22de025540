"""Compare a member's prediction with its average over the image and its mirror image, and with a second member.

    python -m plurum.benchmarks.claims.averaging.views --work runs/averaging

Measured, on draws of images of Fashion-MNIST, trained with `--flip`, and of scikit-learn's digits, trained without: NLL
and accuracy on all test images, at the temperature that is best on validation images. Probabilities are averaged over
an image and its mirror image (test-time augmentation), over two members, and over both. Differences
are paired by draw and by test image, and their intervals cover both. Not measured: other views, large networks, members
of several architectures, patients.

Finished members and epochs are kept in the work folder: run the same command again to resume.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import typer

from plurum.benchmarks.claims.averaging.__main__ import FASHION, Draws, Fashion, Work
from plurum.benchmarks.claims.averaging.comparison import Scored, score_draws
from plurum.benchmarks.claims.averaging.trained import AveragingStudy, MemberOutputs
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine
from plurum.benchmarks.tools.pages import Page, page_with_tables
from plurum.export.repository.cards.markup import table_from_rows
from plurum.files import write_text
from plurum.predictions.arrays import Floats, Ints
from plurum.training import load_data
from plurum.training.statistics.wording import difference_text

__all__ = ["VOTES", "views"]

# Number of members and of views of each vote.
VOTES = {
    "one member": (1, 1),
    "one member, mirrored too": (1, 2),
    "two members": (2, 1),
    "two members, mirrored too": (2, 2),
}
_RIVALS = ("one member", "one member, mirrored too")
_MEMBERS = 2
_COLUMNS = ("", "forward passes", "accuracy", "NLL", "NLL − one member", "NLL − mirrored too")


def views(
    work: Work,
    arch: Annotated[str, typer.Option(help="Architecture of all members.")] = "test_byobnet",
    images: Annotated[int, typer.Option(min=100, help="Images of Fashion-MNIST for training and validation.")] = 5000,
    epochs: Annotated[int, typer.Option(min=4, help="Epochs of each training.")] = 12,
    draws: Draws = 4,
    fashion: Fashion = FASHION,
    page: Page = None,
) -> None:
    """Measure all votes: a table on standard error, a line of JSON on standard output."""
    if page is not None:
        page_with_tables(page, {"views": ""})
    state = machine()
    studies = {
        "Fashion-MNIST": AveragingStudy(work / "fashion", load_data(str(fashion)), images, arch, epochs, flip=True),
        "digits": AveragingStudy(work / "digits", load_data("digits"), images, arch, epochs, flip=False),
    }
    found: dict[str, Any] = {}
    rows = []
    for name, study in studies.items():
        scored = _score_votes(study, draws)
        for vote, scores in scored.items():
            others = [other for other in _RIVALS if vote not in {_RIVALS[0], other}]
            differences = {other: scores.minus(scored[other]) for other in others}
            found[f"{name}, {vote}"] = scores.figures(differences)
            shown = [difference_text(differences[rival]["nll"]) if rival in differences else "" for rival in _RIVALS]
            rows.append((f"{name}, {vote}", str(np.prod(VOTES[vote])), *scores.cells(), *shown))
    table = command.new_table(*_COLUMNS)
    for row in rows:
        table.add_row(*row)
    report = {"arch": arch, "images": images, "epochs": epochs, "draws": draws, "votes": found}
    command.print_report(report, state, table)
    if page is not None:
        write_text(page, page_with_tables(page, {"views": table_from_rows(_COLUMNS, rows)}))


def _score_votes(study: AveragingStudy, draws: int) -> dict[str, Scored]:
    """Return the scores of each vote; those of one member are the means of all members."""
    drawn = [[study.outputs("none", draw, member) for member in range(_MEMBERS)] for draw in range(draws)]
    scored = {}
    for vote, (members, seen) in VOTES.items():
        starts = range(0, _MEMBERS, members)
        parts = [score_draws([_vote(one[start : start + members], seen) for one in drawn]) for start in starts]
        losses, hits = (np.mean([getattr(part, name) for part in parts], axis=0) for name in ("losses", "hits"))
        scored[vote] = Scored(losses, hits)
    return scored


def _vote(members: list[MemberOutputs], seen: int) -> tuple[Floats, Ints, Floats, Ints]:
    """Return the vote's probabilities and the classes of validation images, then of test images."""
    validation = [part for one in members for part in (one.validation, one.mirrored_validation)[:seen]]
    test = [part for one in members for part in (one.test, one.mirrored_test)[:seen]]
    labels = members[0].validation_labels, members[0].test_labels
    return np.mean(validation, axis=0), labels[0], np.mean(test, axis=0), labels[1]


if __name__ == "__main__":
    command.run_as_program(views)
