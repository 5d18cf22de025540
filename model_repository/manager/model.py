"""Triton's manager model: load and unload the other models for `plurum serve`, which sends requests over a Unix socket.

Triton's own management endpoints would let every client that reaches them run code. A key for them would appear in
Triton's arguments, which every user of the machine can read. The socket lies in the server's own folder (mode 0700).

    {"action": "load", "model": NAME}     request: one line of JSON; the action is `load` or `unload`
    {"error": null}                       response: one line of JSON; a text if Triton refused

The model serves no inference.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

_LONGEST_REQUEST = 4096
_READ_S = 10.0
_ACTIONS = {"load": "load_model", "unload": "unload_model"}


class TritonPythonModel:
    """One of two managers; each reloads the other when its process has exited."""

    def initialize(self, args: dict[str, str]) -> None:
        """Listen on `MODEL.sock` in the folder above the model repository."""
        self._listener = _listener(Path(args["model_repository"]).parents[1], f"{args['model_name']}.sock")
        threading.Thread(target=self._accept, daemon=True).start()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Refuse inference requests."""
        error = pb_utils.TritonError("this model serves no inference", pb_utils.TritonError.UNSUPPORTED)
        return [pb_utils.InferenceResponse(output_tensors=[], error=error) for _ in requests]

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=_respond, args=(connection,), daemon=True).start()


def _listener(folder: Path, name: str) -> socket.socket:
    # Bind through the descriptor: a socket's path is limited to 107 bytes, and temporary folders can be longer.
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        path = Path(f"/proc/self/fd/{descriptor}/{name}")
        # An earlier process of this model may have left its socket.
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o600)
    finally:
        os.close(descriptor)
    listener.listen()
    return listener


def _respond(connection: socket.socket) -> None:
    with connection, connection.makefile("rwb") as file:
        connection.settimeout(_READ_S)
        try:
            request = json.loads(file.readline(_LONGEST_REQUEST))
            act = getattr(pb_utils, _ACTIONS[request["action"]])
            act(model_name=request["model"])
            error = None
        except Exception as failure:
            error = str(failure) or repr(failure)
        # The client may have disconnected.
        try:
            file.write(json.dumps({"error": error}).encode() + b"\n")
            file.flush()
        except OSError:
            pass
