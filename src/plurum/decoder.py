"""A process that decodes images and can be ended alone: its time and memory are limited by the kernel.

libjpeg, zlib and libtiff can't be interrupted inside a process. What an image costs is bounded by its structure before
it is decoded (`plurum.images`); this bounds what no structure tells, such as a fault of a decoder.

    python decoder.py RULE

Export copies it beside the preprocess model that runs inside Triton. NumPy and Pillow only.
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
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING or __package__:
    from plurum.image_structure.image_limits import UnreadableImageError
    from plurum.images import open_image, pixels_from_image
else:
    from image_limits import UnreadableImageError
    from images import open_image, pixels_from_image

__all__ = ["CPU_S", "MEMORY_BYTES", "WALL_S", "Decoder", "DecoderError", "main"]

# Of one image. The slowest of 64 megapixels that encoders write takes 4.3 s of a core of 2.5 GHz and 0.9 GiB.
CPU_S, WALL_S, MEMORY_BYTES = 10.0, 30.0, 3 << 29
# Whoever asks for small images comes first.
_NICENESS = 5
_SET_DEATH_SIGNAL = 1
_HEAD = struct.Struct("<BQ")
_PIXELS, _REFUSED, _LARGE = 0, 1, 2
_TOO_LARGE = f"image takes more than {MEMORY_BYTES >> 20:,} MiB of memory to decode"


class DecoderError(RuntimeError):
    """The process can't be started, or ends without the fault of an image."""


class Decoder:
    """Decodes one image after the other in a process that is started when it is first needed, and anew when it ended.

    The process ends with the thread that first called `pixels`.

    Args:
        rule: Height, width, colour and resize rule, as `pixels_from_image` takes them.
        cpu_s: Computing time of one image at most.
        memory_bytes: Of the process, addresses that it may use.
    """

    def __init__(self, rule: dict[str, Any], cpu_s: float = CPU_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._arguments = json.dumps({"rule": rule, "cpu_s": cpu_s, "memory_bytes": memory_bytes})
        self._cpu_s = cpu_s
        self._shape = (int(rule["height"]), int(rule["width"]), 3)
        self._process: subprocess.Popen[bytes] | None = None

    def pixels(self, data: bytes, within_s: float = WALL_S) -> npt.NDArray[np.uint8]:
        """Return the `[height, width, 3]` pixels of an encoded image.

        Args:
            data: The image.
            within_s: After how long the process is ended.

        Raises:
            DecoderError: the process can't be started, or ends without the image's fault.
            UnreadableImageError: the image is none that is read, or takes too much time or memory.
        """
        process = self._started()
        late = threading.Timer(within_s, process.kill)
        late.start()
        try:
            kind, answer = _exchange(process, data)
        except (OSError, EOFError) as error:
            process.kill()
            raise self._fault(process.wait(), within_s) from error
        finally:
            late.cancel()
        if kind == _LARGE:
            # It may be about to end, and what is left of the image in its pipe is of no use.
            self.close()
        if kind != _PIXELS:
            raise UnreadableImageError(answer.decode())
        return np.frombuffer(answer, np.uint8).reshape(self._shape)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    # What was not written any more is of no use.
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        program = _python()
        environment = {
            # Inside Triton's stub the packages are found by what its interpreter was told.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
            # Threads of a library for matrices, each with addresses of its own, are of no use here.
            "OPENBLAS_NUM_THREADS": "1",
        }
        try:
            self._process = subprocess.Popen(
                [program, "-B", "-s", str(Path(__file__).resolve()), self._arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=environment, cwd="/", umask=0o077, bufsize=0,
            )  # fmt: skip
        except OSError as error:
            raise DecoderError(f"{program} can't be started to decode large images: {error.strerror}") from error
        return self._process

    def _fault(self, code: int, within_s: float) -> Exception:
        """Return why the process ended while it had an image."""
        if code == -signal.SIGPROF:
            return UnreadableImageError(f"image takes more than {self._cpu_s:g} s to decode")
        if code == -signal.SIGKILL:
            return UnreadableImageError(f"image takes more than {within_s:.0f} s to decode on this busy machine")
        if code < 0:
            return UnreadableImageError(f"image broke its decoder (signal {-code})")
        return DecoderError(f"the process that decodes large images ended (exit code {code})")


def _python() -> str:
    """Return an interpreter like this one; in an embedded one `sys.executable` may be another program, or none."""
    if Path(sys.executable or "").name.startswith("python"):
        return sys.executable
    found = shutil.which("python3")
    if found is None:
        raise DecoderError("there is no python3 on PATH, which decodes large images")
    return found


def _exchange(process: subprocess.Popen[bytes], data: bytes) -> tuple[int, bytes]:
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise OSError("no pipes")
    # It may answer, that this is too large, before it has read all.
    with contextlib.suppress(BrokenPipeError):
        _write(stdin, _HEAD.pack(0, len(data)), data)
    return _read(stdout)


def _write(pipe: IO[bytes], *parts: bytes) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(pipe.fileno(), rest) :]


def _read(pipe: IO[bytes]) -> tuple[int, bytes]:
    kind, size = _HEAD.unpack(_exactly(pipe, _HEAD.size))
    return kind, _exactly(pipe, size)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    whole = bytearray(size)
    rest = memoryview(whole)
    while rest:
        if not (count := os.readv(pipe.fileno(), [rest])):
            raise EOFError
        rest = rest[count:]
    return bytes(whole)


def main() -> None:
    """Decode what comes in until nothing comes any more."""
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
            # What is left of it in the pipe can't be told from the next.
            _answer(_LARGE, _TOO_LARGE.encode())
            return
        # The signal's default action ends the process, whatever a decoder is at.
        signal.setitimer(signal.ITIMER_PROF, options["cpu_s"])
        kind, answer = _decoded(data, options["rule"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(kind, answer)


def _decoded(data: bytes, rule: dict[str, Any]) -> tuple[int, bytes]:
    try:
        return _PIXELS, pixels_from_image(open_image(data), **rule).tobytes()
    except UnreadableImageError as error:
        return _REFUSED, str(error).encode()
    except MemoryError:
        return _LARGE, _TOO_LARGE.encode()


def _answer(kind: int, answer: bytes) -> None:
    _write(sys.stdout.buffer, _HEAD.pack(kind, len(answer)), answer)


if __name__ == "__main__":
    main()
