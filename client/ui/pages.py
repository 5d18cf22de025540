"""Render predictions and reviews as HTML; names of files and classes are always escaped."""

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
from plurum.client.ui.store import Progress, ReviewItem
from plurum.errors import ImageError, OutputError
from plurum.evidence import EvidenceMap
from plurum.images.image_formats import FORMAT_NAMES, FORMATS, IMAGE_SUFFIXES
from plurum.predictions.outputs import OUTPUTS
from plurum.voting import DecisionPoint

__all__ = ["MemberVote", "Pages", "member_votes", "more_probable", "percentage", "point_text"]

_BARS = 5
# Errors that are not faults of this program: an unreadable image, a full disk.
_STATUSES = {ImageError: 422, OutputError: 507}


@dataclass(frozen=True)
class MemberVote:
    """Prediction of one member.

    Attributes:
        name: Name of the member.
        label: Its most probable class.
        probability: Probability of that class, 0 to 1.
        agrees: True if the ensemble predicts the same class.
    """

    name: str
    label: str
    probability: float
    agrees: bool


class Pages:
    """Renders the templates.

    Args:
        has_evidence: True if Grad-CAM maps are available.
    """

    def __init__(self, has_evidence: bool) -> None:
        folder = Path(__file__).parent / "templates"
        self._templates = Environment(
            loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._templates.filters |= {"percentage": percentage, "bars": _bars, "votes": member_votes, "ln": math.log}
        self._templates.filters["more_probable"] = more_probable
        numbers = [one for one in OUTPUTS.values() if one.is_scalar and one.datatype == "FP32"]
        self._templates.globals |= {"has_evidence": has_evidence, "numbers": numbers}

    def start(self, progress: Progress, limit_mib: int) -> Response:
        """Return the page on which images are dropped."""
        accept = ",".join((*IMAGE_SUFFIXES, *(one.media_type for one in FORMATS.values())))
        return self._html(
            "classify.html", limit_mib=limit_mib, waiting=progress.waiting, accept=accept, formats=FORMAT_NAMES
        )

    def prediction(self, sha256: str, name: str, prediction: Prediction, item: ReviewItem | None) -> Response:
        """Return the part of that page for one image."""
        return self._html("prediction.html", sha256=sha256, name=name, p=prediction, item=item)

    def review(
        self, items: Sequence[ReviewItem], item: ReviewItem, done: ReviewItem | None = None, *, conflict: bool = False
    ) -> Response:
        """Return the page for the decision about one image.

        Args:
            items: All images in review.
            item: The image to decide.
            done: The image that was decided before; None if there is none.
            conflict: True if another decision was made in the meantime; the status is then 409.
        """
        values = _queue_values(items, done) | {"item": item, "place": items.index(item), "conflict": conflict}
        return self._html("review.html", 409 if conflict else 200, **values)

    def finished(self, items: Sequence[ReviewItem], done: ReviewItem | None) -> Response:
        """Return the page of an empty queue."""
        return self._html("finished.html", **_queue_values(items, done))

    def evidence(self, sha256: str, label: str, maps: Sequence[EvidenceMap]) -> Response:
        """Return the part of a page that shows an image's Grad-CAM maps."""
        return self._html("evidence.html", sha256=sha256, label=label, maps=maps)

    async def refusal(self, request: Request, error: Exception) -> Response:
        """Respond to a request that is refused."""
        status, text = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, str(error))
        if status == 404 and text == "Not Found":
            text = "this page does not exist"
        return self._error(request, status, text)

    async def fault(self, request: Request, error: Exception) -> Response:
        """Respond to a request that failed with an error of Plurum."""
        status = next((code for kind, code in _STATUSES.items() if isinstance(error, kind)), 500)
        return self._error(request, status, str(error))

    async def gone(self, _: Request, __: Exception) -> Response:
        """End a request whose browser has disconnected."""
        return Response(status_code=499)

    def _error(self, request: Request, status: int, text: str) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"error": text}, status)
        return self._html("refusal.html", status, text=text, waiting=None)

    def _html(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(values), status)


def percentage(value: float) -> str:
    """Return a probability as text; only exactly 0 and 1 are shown as 0% and 100%."""
    text = f"{value:.1%}"
    if text == "100.0%" and value < 1:
        return "> 99.9%"
    return "< 0.1%" if text == "0.0%" and value > 0 else text


def point_text(point: DecisionPoint | None, classes: Sequence[str]) -> str:
    """Return the operating point as the end of a sentence; empty for the most probable class."""
    if point is None:
        return ""
    if point.positive is None or point.threshold is None:
        return "; decides by cost"
    return f"; decides {classes[point.positive]} from {percentage(point.threshold)}"


def more_probable(prediction: Prediction) -> str:
    """Return the most probable class if the operating point decided for another; else an empty text."""
    name, probability = max(prediction.probabilities.items(), key=lambda one: one[1])
    return name if probability > prediction.confidence else ""


def member_votes(prediction: Prediction) -> list[MemberVote]:
    """Return the prediction of each member that ran, in the order of the vote."""
    votes = []
    for name, probabilities in prediction.member_probabilities.items():
        if probabilities is None:
            continue
        label, probability = max(probabilities.items(), key=lambda one: one[1])
        votes.append(MemberVote(name, label, probability, label == prediction.label))
    return votes


def _bars(probabilities: Mapping[str, float]) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Return the classes with their probabilities, most probable first: those to show, and the rest."""
    ranked = sorted(probabilities.items(), key=lambda one: -one[1])
    # A single class takes no more space than the control that would show it.
    return (ranked, []) if len(ranked) <= _BARS + 1 else (ranked[:_BARS], ranked[_BARS:])


def _queue_values(items: Sequence[ReviewItem], done: ReviewItem | None) -> dict[str, Any]:
    progress = Progress(sum(item.label is not None for item in items), len(items))
    return {"items": items, "done": done, "progress": progress, "waiting": progress.waiting}
