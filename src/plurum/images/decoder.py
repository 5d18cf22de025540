"""Image decoding in a separate process, whose time and memory the kernel limits.

libjpeg, zlib and libtiff can't be interrupted within a process. `plurum.images` bounds the cost of an image by its
structure before decoding. This module bounds everything else, such as a bug in a decoder.

    python -m images.decoder RULE
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .image_limits import UnreadableImageError
from .pixels import open_image, pixels_from_image
from .windows import WindowRule, window_from_json

__all__ = ["CPU_S", "MEMORY_BYTES", "WALL_S", "Decoder", "DecoderError", "main"]

# Limits per image. The slowest image of 64 megapixels from a usual encoder takes 4.3 s on a 2.5 GHz core and 0.9 GiB.
CPU_S, WALL_S, MEMORY_BYTES = 10.0, 30.0, 3 << 29
# Large images yield the CPU to requests for small ones.
_NICENESS = 5
_SET_DEATH_SIGNAL = 1
_FOLDER = Path(__file__).resolve().parent.parent
_HEAD = struct.Struct("<BQ")
_PIXELS, _REFUSED, _LARGE = 0, 1, 2
_TOO_LARGE = f"image takes more than {MEMORY_BYTES >> 20:,} MiB of memory to decode"


class DecoderError(RuntimeError):
    """The decoder process can't be started, or exits for a reason other than the image."""


class Decoder:
    """Image decoder in a child process, which starts at the first image and restarts after an exit.

    The process exits with the thread that first called `pixels`.

    Args:
        rule: Keyword arguments of `pixels_from_image`: those of `resizing_from_spec`.
        cpu_s: Limit of CPU time per image, in seconds.
        memory_bytes: Limit of the process's address space.
        window: Window for grey images of more than 8 bits and DICOM, as for `open_image`.
        reduce_to: Height and width for which large JPEGs are reduced, as for `open_image`.
    """

    def __init__(
        self,
        rule: dict[str, Any],
        cpu_s: float = CPU_S,
        memory_bytes: int = MEMORY_BYTES,
        window: WindowRule | None = None,
        reduce_to: tuple[int, int] | None = None,
    ) -> None:
        limits = {"cpu_s": cpu_s, "memory_bytes": memory_bytes}
        self._arguments = json.dumps({"rule": rule, "window": window, "reduce_to": reduce_to, **limits})
        self._cpu_s = cpu_s
        self._shape = (int(rule["height"]), int(rule["width"]), 3)
        self._process: subprocess.Popen[bytes] | None = None

    def pixels(self, data: bytes, within_s: float = WALL_S) -> npt.NDArray[np.uint8]:
        """Return the `[height, width, 3]` pixels of an encoded image.

        Args:
            data: The encoded image.
            within_s: Seconds after which the process is killed.

        Raises:
            DecoderError: the process can't be started, or exits for a reason other than the image.
            UnreadableImageError: the image can't be decoded, or takes too much time or memory.
        """
        process = self._start()
        timer = threading.Timer(within_s, process.kill)
        timer.start()
        try:
            kind, reply = _exchange(process, data)
        except (OSError, EOFError) as error:
            process.kill()
            raise self._fault(process.wait(), within_s) from error
        finally:
            timer.cancel()
        if kind == _LARGE:
            # The process may be about to exit, and its pipe may still hold the rest of the image.
            self.close()
        if kind != _PIXELS:
            raise UnreadableImageError(reply.decode())
        return np.frombuffer(reply, np.uint8).reshape(self._shape)

    def close(self) -> None:
        """Kill the process and close its pipes."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    # Closing flushes unwritten data, which nobody reads.
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        program = _python()
        environment = {
            # Triton's stub finds packages only by its interpreter's path.
            "PYTHONPATH": os.pathsep.join((str(_FOLDER), *filter(None, sys.path))),
            "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
            # OpenBLAS threads are not needed and would use up the address space.
            "OPENBLAS_NUM_THREADS": "1",
        }
        try:
            self._process = subprocess.Popen(
                [program, "-B", "-s", "-m", "images.decoder", self._arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=environment, cwd="/", umask=0o077, bufsize=0,
            )  # fmt: skip
        except OSError as error:
            raise DecoderError(f"{program} can't be started to decode large images: {error.strerror}") from error
        return self._process

    def _fault(self, code: int, within_s: float) -> Exception:
        """Return the error for a process that exited while decoding an image."""
        if code == -signal.SIGPROF:
            return UnreadableImageError(f"image takes more than {self._cpu_s:g} s to decode")
        if code == -signal.SIGKILL:
            return UnreadableImageError(f"image takes more than {within_s:.0f} s to decode on this busy machine")
        if code < 0:
            return UnreadableImageError(f"image crashed its decoder (signal {-code})")
        return DecoderError(f"the process that decodes large images exited (exit code {code})")


def _python() -> str:
    """Return a Python interpreter; in an embedded one `sys.executable` may be another program or empty."""
    if Path(sys.executable or "").name.startswith("python"):
        return sys.executable
    found = shutil.which("python3")
    if found is None:
        raise DecoderError("python3 is not on PATH; it is needed to decode large images")
    return found


def _exchange(process: subprocess.Popen[bytes], data: bytes) -> tuple[int, bytes]:
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise OSError("no pipes")
    # The process may refuse a large image before it has read all of it.
    with contextlib.suppress(BrokenPipeError):
        _write(stdin, _HEAD.pack(0, len(data)), data)
    return _read(stdout)


def _write(pipe: IO[bytes], *parts: bytes) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(pipe.fileno(), rest) :]


def _read(pipe: IO[bytes]) -> tuple[int, bytes]:
    kind, size = _HEAD.unpack(_read_exactly(pipe, _HEAD.size))
    return kind, _read_exactly(pipe, size)


def _read_exactly(pipe: IO[bytes], size: int) -> bytes:
    whole = bytearray(size)
    rest = memoryview(whole)
    while rest:
        if not (count := os.readv(pipe.fileno(), [rest])):
            raise EOFError
        rest = rest[count:]
    return bytes(whole)


def main() -> None:
    """Decode images from standard input until it ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    options = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (options["memory_bytes"], options["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            _, data = _read(sys.stdin.buffer)
        except EOFError:
            return
        except MemoryError:
            # The rest of this image in the pipe can't be told from the next one.
            _reply(_LARGE, _TOO_LARGE.encode())
            return
        # The signal's default action kills the process even inside a decoder.
        signal.setitimer(signal.ITIMER_PROF, options["cpu_s"])
        kind, reply = _decode(data, options["rule"], window_from_json(options["window"]), options["reduce_to"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        _reply(kind, reply)


def _decode(
    data: bytes, rule: dict[str, Any], window: WindowRule | None, reduce_to: tuple[int, int] | None
) -> tuple[int, bytes]:
    try:
        image = open_image(data, window=window, reduce_to=reduce_to)
        return _PIXELS, pixels_from_image(image, **rule).tobytes()
    except UnreadableImageError as error:
        return _REFUSED, str(error).encode()
    except MemoryError:
        return _LARGE, _TOO_LARGE.encode()


def _reply(kind: int, reply: bytes) -> None:
    _write(sys.stdout.buffer, _HEAD.pack(kind, len(reply)), reply)


if __name__ == "__main__":
    main()
