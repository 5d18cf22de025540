"""Become Triton, as a process that ends with its parent and whose files and shared memory are closed to other users.

    python launcher.py PARENT_PID PROGRAM ARGUMENT...

A program of its own rather than code between fork and exec, which is not safe where there are threads. It imports
nothing of Plurum.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys

__all__ = ["MACHINES", "main"]

_SET_DEATH_SIGNAL, _SET_NO_NEW_PRIVILEGES = 1, 38
# linux/seccomp.h. Without ALLOW_SPECULATION older kernels slow down whatever runs under a filter.
_SET_MODE_FILTER, _ALLOW_SPECULATION = 1, 1 << 2
_RETURN_ERROR_0, _RETURN_ALLOW = 0x0005_0000, 0x7FFF_0000
# linux/bpf_common.h: load a word of the call's description, compare it, return.
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4
# By machine: linux/audit.h's number, and the numbers of seccomp(2) and fchmod(2).
MACHINES = {"x86_64": (0xC000_003E, 317, 91), "aarch64": (0xC000_00B7, 277, 52)}


def main() -> None:
    """Replace this process with the program once the parent has written a byte to standard input.

    The parent does so when it has recorded this process. If it exits or is interrupted before, there is nothing to end.
    """
    parent, program = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_SET_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0))
    if os.getppid() != parent or not os.read(0, 1):
        return
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.umask(0o077)
    _keep_modes(libc)
    os.execv(program[0], program)  # noqa: S606 (no shell is wanted)


def _keep_modes(libc: ctypes.CDLL) -> None:
    """Make fchmod(2) do nothing, here and in all child processes.

    Triton opens its shared memory, where images and predictions lie, to every user (mode 0644) by that call, whatever
    the umask is.
    """
    architecture, seccomp, fchmod = MACHINES[platform.machine()]
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_JUMP_IF_EQUAL, 0, 3, architecture),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_JUMP_IF_EQUAL, 0, 1, fchmod),
        (_RETURN, 0, 0, _RETURN_ERROR_0),
        (_RETURN, 0, 0, _RETURN_ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(code)))
    _check(libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _check(libc.syscall(seccomp, _SET_MODE_FILTER, _ALLOW_SPECULATION, program))


def _check(returned: int) -> None:
    if returned != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"this kernel can't close shared memory to other users: {os.strerror(number)}")


if __name__ == "__main__":
    main()
