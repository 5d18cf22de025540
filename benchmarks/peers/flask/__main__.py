"""Flask with PyTorch: one model after the other, no batching.

As Flask's documentation deploys it, with Gunicorn:

    gunicorn --workers N --bind 127.0.0.1:PORT plurum.benchmarks.peers.flask.__main__:app
"""
# Flask is in this application's own environment only.
# mypy: disable-error-code="import-not-found, import-untyped, misc, untyped-decorator, no-any-return"

from __future__ import annotations

from typing import Any

from flask import Flask, jsonify, request

from plurum.benchmarks.peers.application import TorchMembers, job_from_environment

__all__ = ["app"]

app = Flask(__name__)
members = TorchMembers(job_from_environment())


@app.post("/predict")
def predict() -> Any:
    """Predict a JPEG in the body."""
    return jsonify(members.predict(request.get_data()))
