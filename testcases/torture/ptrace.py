"""System calls of a child process, seen and changed one by one: ptrace(2) of Linux, by way of ctypes.

    for stop in Tracer(pid).stops():  # the child has called stop_for_tracer()
        if stop.entering: …

Whatever a program does to files passes here, be it written in Python or in C++. Register offsets are those of
x86-64; `unavailable()` says whether this machine will do.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

TRACEME, POKEUSER, SYSCALL, SETOPTIONS, GETEVENTMSG, GET_SYSCALL_INFO = 0, 6, 24, 0x4200, 0x4201, 0x420E
SYSGOOD, TRACE_CLONE, EXIT_KILL = 1, 1 << 3, 1 << 20
EVENT_CLONE = 3
WALL = 0x40000000  # wait for threads, too
ENTRY, EXIT = 1, 2
SYSCALL_STOP = signal.SIGTRAP | 0x80
REGISTERS = {"number": 15 * 8, "result": 10 * 8, "third argument": 12 * 8}  # orig_rax, rax, rdx


class _Info(ctypes.Structure):
    """struct ptrace_syscall_info: at an entry, `values` are the number and six arguments; at an exit, the result."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("values", ctypes.c_uint64 * 7),
    )


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return libc


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    result = _libc().ptrace(request, pid, address, data)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")
    return result


@functools.cache
def unavailable() -> str | None:
    """Why system calls cannot be seen here, in a few words; None where they can."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return f"needs Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            stop_for_tracer()
            os._exit(0)
        os._exit(1)
    try:
        seen = any(stop.entering for stop in Tracer(child).stops())
    except OSError as error:
        return f"ptrace is not permitted here ({error.strerror})"
    return None if seen else "ptrace is not permitted here"


def stop_for_tracer() -> None:
    """Called by the child: wait here for a Tracer in the parent."""
    os.setpgid(0, 0)
    _ptrace(TRACEME, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


@dataclass(frozen=True)
class Stop:
    """A thread that stands at the door of the kernel, on its way in or out.

    thread: its number. entering: on the way in. number, arguments: of the system call, known at the entry only.
    """

    thread: int
    entering: bool
    number: int = -1
    arguments: tuple[int, ...] = ()

    def set(self, register: str, value: int) -> None:
        """Change a register of the thread; "number" = −1 at the entry: the system call does not take place."""
        _ptrace(POKEUSER, self.thread, REGISTERS[register], value & (1 << 64) - 1)


class Tracer:
    """Follows a child and its threads. Use it from the thread that forked.

    Attributes:
        status: the exit status of the child, negative for a signal; None as long as it lives.
    """

    def __init__(self, child: int) -> None:
        self.child = child
        self.status: int | None = None

    def stops(self) -> Iterator[Stop]:
        """Each system call twice, until the child has ended; the thread goes on with the next iteration."""
        _, status = os.waitpid(self.child, 0)
        if not os.WIFSTOPPED(status):
            self.status = os.waitstatus_to_exitcode(status)
            return
        _ptrace(SETOPTIONS, self.child, 0, SYSGOOD | TRACE_CLONE | EXIT_KILL)
        threads = {self.child}
        self._resume(self.child)
        while self.status is None:
            thread, status = os.waitpid(-self.child, WALL)  # the process group of stop_for_tracer
            if not os.WIFSTOPPED(status):
                if thread == self.child:
                    self.status = os.waitstatus_to_exitcode(status)
                continue
            number = os.WSTOPSIG(status)
            if number == SYSCALL_STOP:
                stop = self._look(thread)
                if stop is not None:
                    yield stop
                number = 0
            elif status >> 16 == EVENT_CLONE or (number == signal.SIGSTOP and thread not in threads):
                number = 0  # a thread is born, and its parent told: neither is a signal
            threads.add(thread)
            self._resume(thread, number)

    def _resume(self, thread: int, number: int = 0) -> None:
        with contextlib.suppress(ProcessLookupError):  # killed meanwhile
            _ptrace(SYSCALL, thread, 0, number)

    def _look(self, thread: int) -> Stop | None:
        info = _Info()
        try:
            _ptrace(GET_SYSCALL_INFO, thread, ctypes.sizeof(info), ctypes.addressof(info))
        except ProcessLookupError:
            return None
        if info.op == ENTRY:
            number, *arguments = info.values
            return Stop(thread, True, number, tuple(arguments))
        return Stop(thread, False)
