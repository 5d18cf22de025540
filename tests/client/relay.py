"""A way to a server that can be cut, frozen and mended: real sockets, and the real server behind them."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from types import TracebackType


class Relay:
    """Passes bytes between whoever comes and the server at `target`, HOST:PORT."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._door: socket.socket | None = None
        self._pairs: list[socket.socket] = []
        self._lock = threading.Lock()
        self.guests = 0
        self.frozen = threading.Event()
        # From pieces of this size on, what comes is cut off before the server sees it, and the way mended soon.
        self.deadly_bytes = 1 << 40
        # How long it then takes until the server is away.
        self.dying_s = 0.0
        self.deaths = 0
        self._port = 0
        self.mend()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cut()

    def mend(self) -> None:
        """Listen, again at the same port."""
        self._door = socket.create_server(("127.0.0.1", self._port))
        self._port = self._door.getsockname()[1]
        threading.Thread(target=self._serve, args=(self._door,), daemon=True).start()

    def cut(self) -> None:
        """Be away: refuse who comes, and break off what is under way."""
        door, self._door = self._door, None
        with contextlib.suppress(OSError):
            if door:
                # Closing alone does not wake a thread that waits in accept.
                door.shutdown(socket.SHUT_RDWR)
                door.close()
        with self._lock:
            for one in self._pairs:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            self._pairs.clear()

    def _serve(self, door: socket.socket) -> None:
        while True:
            try:
                guest, _ = door.accept()
            except OSError:
                return
            self.guests += 1
            threading.Thread(target=self._pass, args=(guest,), daemon=True).start()

    def _pass(self, guest: socket.socket) -> None:
        with guest, socket.create_connection(self._target) as server, contextlib.suppress(OSError):
            with self._lock:
                self._pairs += [guest, server]
            while True:
                for one in select.select([guest, server], [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    if one is guest and len(data) >= self.deadly_bytes:
                        self.deaths += 1
                        threading.Event().wait(self.dying_s)
                        self.cut()
                        threading.Timer(0.3, self.mend).start()
                        return
                    while self.frozen.is_set():
                        threading.Event().wait(0.02)
                    (server if one is guest else guest).sendall(data)
