"""From answers to HTML; whatever stands in a name of a file or a class is text and never markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from plurum.client.connection.predictions import Prediction
from plurum.client.ui.store import Item, Progress
from plurum.errors import ImageError, OutputError
from plurum.evidence import EvidenceMap
from plurum.image_structure.image_formats import FORMAT_NAMES, FORMATS, IMAGE_SUFFIXES
from plurum.predictions.outputs import OUTPUTS

__all__ = ["MemberVote", "Pages", "member_votes", "share"]

_BARS = 5
# What is no fault of this program: an image that can't be read, a disk that is full.
_STATUSES = {ImageError: 422, OutputError: 507}


@dataclass(frozen=True)
class MemberVote:
    """What one member says.

    Attributes:
        name: The member's.
        label: Its most probable class.
        probability: Of that, 0 to 1.
        agrees: Whether the ensemble says the same.
    """

    name: str
    label: str
    probability: float
    agrees: bool


class Pages:
    """Fills templates.

    Args:
        has_evidence: Whether answers offer to show where members looked.
    """

    def __init__(self, has_evidence: bool) -> None:
        folder = Path(__file__).parent / "templates"
        self._templates = Environment(
            loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._templates.filters |= {"share": share, "bars": _bars, "votes": member_votes, "ln": math.log}
        numbers = [one for one in OUTPUTS.values() if one.is_scalar and one.datatype == "FP32"]
        self._templates.globals |= {"has_evidence": has_evidence, "numbers": numbers}

    def ask(self, progress: Progress, limit_mib: int) -> Response:
        """Return the page where images are dropped."""
        accept = ",".join((*IMAGE_SUFFIXES, *(one.media_type for one in FORMATS.values())))
        return self._html(
            "ask.html", limit_mib=limit_mib, waiting=progress.waiting, accept=accept, formats=FORMAT_NAMES
        )

    def answer(self, sha256: str, name: str, prediction: Prediction, item: Item | None) -> Response:
        """Return what that page puts in for one image."""
        return self._html("answer.html", sha256=sha256, name=name, p=prediction, item=item)

    def item(self, items: Sequence[Item], item: Item, done: Item | None = None, *, conflict: bool = False) -> Response:
        """Return the page on which a person decides about one image.

        Args:
            items: All that were sent to review.
            item: One of these.
            done: The one that was decided a moment ago.
            conflict: Whether somebody else was faster; then the status is 409.
        """
        place = [one.sha256 for one in items].index(item.sha256)
        return self._html(
            "review.html",
            409 if conflict else 200,
            items=items,
            item=item,
            place=place,
            done=done,
            conflict=conflict,
            progress=_progress(items),
            waiting=_progress(items).waiting,
        )

    def finished(self, items: Sequence[Item], done: Item | None) -> Response:
        """Return the page that has nothing left to decide."""
        return self._html("finished.html", items=items, done=done, progress=_progress(items), waiting=0)

    def evidence(self, sha256: str, label: str, maps: Sequence[EvidenceMap]) -> Response:
        """Return where members looked, as pictures to be fetched."""
        return self._html("evidence.html", sha256=sha256, label=label, maps=maps)

    async def refusal(self, request: Request, error: Exception) -> Response:
        """Answer what can't be done."""
        status, text = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, str(error))
        if status == 404 and text == "Not Found":
            text = "there is no such page"
        return self._refused(request, status, text)

    async def fault(self, request: Request, error: Exception) -> Response:
        """Answer where Plurum itself says in one line what is wrong."""
        status = next((code for kind, code in _STATUSES.items() if isinstance(error, kind)), 500)
        return self._refused(request, status, str(error))

    async def gone(self, _: Request, __: Exception) -> Response:
        """Answer nobody: the browser hung up."""
        return Response(status_code=499)

    def _refused(self, request: Request, status: int, text: str) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"error": text}, status)
        return self._html("refusal.html", status, text=text, waiting=None)

    def _html(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(values), status)


def share(value: float) -> str:
    """Return a probability for people; one that is not 0 or 1 does not look as if it were."""
    text = f"{value:.1%}"
    if text == "100.0%" and value < 1:
        return "> 99.9%"
    return "< 0.1%" if text == "0.0%" and value > 0 else text


def member_votes(prediction: Prediction) -> list[MemberVote]:
    """Return what each member says, in the order of the vote."""
    votes = []
    for name, probabilities in prediction.member_probabilities.items():
        label, probability = max(probabilities.items(), key=lambda one: one[1])
        votes.append(MemberVote(name, label, probability, label == prediction.label))
    return votes


def _bars(probabilities: Mapping[str, float]) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Return the classes with their probabilities, the most probable first: those to show, and the rest."""
    ranked = sorted(probabilities.items(), key=lambda one: -one[1])
    # A rest of one would take as much room as what unfolds it.
    return (ranked, []) if len(ranked) <= _BARS + 1 else (ranked[:_BARS], ranked[_BARS:])


def _progress(items: Sequence[Item]) -> Progress:
    return Progress(sum(item.label is not None for item in items), len(items))
