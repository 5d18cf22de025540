"""Relay to a real server over real sockets; it can be cut, frozen and repaired."""

from __future__ import annotations

import contextlib
import select
import socket
import threading


class Relay:
    """Passes bytes between clients and the server at `target`, HOST:PORT."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener: socket.socket | None = None
        self._pairs: list[socket.socket] = []
        self._lock = threading.Lock()
        self.guests = 0
        self.frozen = threading.Event()
        # Pieces of at least this size cut the connection before the server gets them; the relay recovers soon.
        self.deadly_bytes = 1 << 40
        # Time until the connection is then cut, seconds.
        self.dying_s = 0.0
        self.deaths = 0
        # Bytes of one connection's responses after which it is cut, once.
        self.last_bytes = 1 << 40
        self._port = 0
        self.mend()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def mend(self) -> None:
        """Listen, on the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Refuse connections, and interrupt those in progress."""
        listener, self._listener = self._listener, None
        with contextlib.suppress(OSError):
            if listener:
                # Closing alone does not wake a thread that waits in accept.
                listener.shutdown(socket.SHUT_RDWR)
                listener.close()
        with self._lock:
            for one in self._pairs:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            self._pairs.clear()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.guests += 1
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server, contextlib.suppress(OSError):
            with self._lock:
                self._pairs += [client, server]
            answered = 0
            while True:
                for one in select.select([client, server], [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    if one is client and len(data) >= self.deadly_bytes:
                        self.deaths += 1
                        threading.Event().wait(self.dying_s)
                        self.cut()
                        threading.Timer(0.3, self.mend).start()
                        return
                    while self.frozen.is_set():
                        threading.Event().wait(0.02)
                    answered += len(data) if one is server else 0
                    if answered > self.last_bytes:
                        self.deaths += 1
                        self.last_bytes = 1 << 40
                        return
                    (server if one is client else client).sendall(data)
