"""FastAPI with ONNX Runtime: a thread per request, as FastAPI runs functions that are not `async`.

uvicorn --host 127.0.0.1 --port PORT plurum.benchmarks.peers.fastapi.__main__:app
"""
# mypy: disable-error-code="import-not-found, import-untyped, misc, untyped-decorator"

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, FastAPI

from plurum.benchmarks.peers.application import OnnxMembers, job_from_environment

__all__ = ["app"]

app = FastAPI()
members = OnnxMembers(job_from_environment())


@app.post("/predict")
def predict(image: Annotated[bytes, Body(media_type="image/jpeg")]) -> dict[str, Any]:
    """Predict a JPEG in the body."""
    return members.predict(image)
