"""Every operation of a save on files below one folder: seen, killed at, torn, shortened, or made to fail.

    traced = run(work, folder, Fault(at=7, kill=True))    # traced.operations, traced.said, traced.status

The work is done in a forked child under ptrace, so Python's own calls and those of C++ are operations alike. The
parent must never have run a backward pass: autograd's threads do not survive a fork.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from testcases.torture.ptrace import Stop, Tracer, stop_for_tracer
from testcases.torture.system_calls import LOOKING, WRITES, Process, name_of

LIMIT = 30  # seconds for one child; who needs longer hangs
WRITE = 1  # the system call

LOOK_AWAY, LOOK_AGAIN = "(", ")"  # what is said around operations that do not count

Say = Callable[[str], None]
Work = Callable[[Say], object]


@dataclass(frozen=True)
class Operation:
    """One system call on files below the folder, such as write x.pt.saving (2653 bytes)."""

    name: str
    path: str  # below the folder; "." is the folder itself; of a rename "old → new"
    size: int = 0  # bytes of a write

    @property
    def changes(self) -> bool:
        """Whether it changes or syncs anything, or only looks."""
        return self.name not in LOOKING

    def __str__(self) -> str:
        return f"{self.name} {self.path}" + (f" ({self.size} bytes)" if self.name in WRITES else "")


@dataclass(frozen=True)
class Fault:
    """What happens at one operation.

    at: its number, from 0. kill: the process is gone before it, or, with a size, right behind what is left of it.
    error: an errno; the operation does not take place and fails. A close takes place, and fails nevertheless.
    size: a write does no more than so many bytes: then the kill; without a kill it returns short.
    lasting: later operations of these names fail with the error, too; with a size, only those.
    """

    at: int
    kill: bool = False
    error: int = 0
    size: int | None = None
    lasting: frozenset[str] = frozenset()

    def __str__(self) -> str:
        words = [] if self.size is None else [f"cut to {self.size} bytes"]
        if self.kill:
            words.append("killed before it" if self.size is None else "killed")
        if self.error:
            words.append(errno.errorcode[self.error] + (" from then on" if self.lasting else ""))
        return ", ".join(words)


@dataclass
class Traced:
    """What a child did: its operations, its words, its exit status (negative for a signal)."""

    operations: list[Operation] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    status: int = 0


def run(work: Work, folder: Path, fault: Fault | None = None) -> Traced:
    """Do the work in a child process, with a fault or undisturbed.

    Args:
        work: gets `say`, which passes a line to the parent that outlives a kill. An exception of it is said
            as "raised TypeName errno: message". Between say(LOOK_AWAY) and say(LOOK_AGAIN) nothing counts.
        folder: the operations on files below it, and on itself, count.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        be_child(work, writing, stop_for_tracer)
    watch = _Watch(os.path.realpath(folder), child, writing, fault)
    os.close(writing)
    tracer = Tracer(child)
    try:
        for stop in tracer.stops():
            watch.handle(stop)
        with open(reading, closefd=False) as said:
            lines = said.read().splitlines()
    finally:
        os.close(reading)
        watch.process.close()
        if tracer.status is None:  # something went wrong on this side
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert tracer.status is not None
    return Traced(watch.operations, lines, tracer.status)


def be_child(work: Work, writing: int, ready: Callable[[], object]) -> NoReturn:
    """In a forked child: wait until whoever watches is ready, do the work, end."""
    status = 70
    try:
        signal.alarm(LIMIT)
        warnings.simplefilter("ignore")
        logging.disable()  # the parent reads what is returned; a log would fill the screen
        say: Say = lambda text: os.write(writing, (text.replace("\n", " ") + "\n").encode()) and None  # noqa: E731
        ready()
        try:
            work(say)
        except Exception as error:
            say(f"raised {type(error).__name__} {getattr(error, 'errno', None)}: {error}")
        status = 0
    finally:
        os._exit(status)


class _Watch:
    """Looks at each stop, keeps the list, and brings the fault about."""

    def __init__(self, folder: str, child: int, words: int, fault: Fault | None) -> None:
        self.folder, self.child, self.words, self.fault = folder, child, words, fault
        self.looks_away = False
        self.operations: list[Operation] = []
        self.process = Process(child)
        self._at_exit: dict[int, Callable[[Stop], object]] = {}  # by thread

    def handle(self, stop: Stop) -> None:
        if not stop.entering:
            action = self._at_exit.pop(stop.thread, None)
            if action is not None:
                action(stop)
            return
        if stop.number == WRITE and stop.arguments[0] == self.words:
            self._listen(self.process.text(stop.arguments[1]).partition("\n")[0])
        operation = None if self.looks_away else self._operation(stop)
        if operation is None:
            return
        self.operations.append(operation)
        if self.fault is not None:
            self._inject(stop, operation, self.fault, len(self.operations) - 1)

    def _listen(self, text: str) -> None:
        if text in (LOOK_AWAY, LOOK_AGAIN):
            self.looks_away = text == LOOK_AWAY

    def _inject(self, stop: Stop, operation: Operation, fault: Fault, number: int) -> None:
        if number == fault.at:
            if fault.size is not None:
                stop.set("third argument", fault.size)
            elif fault.error:
                self._fail(stop, operation, fault.error)
            if fault.kill:
                if fault.size is not None:
                    self._at_exit[stop.thread] = lambda _: os.kill(self.child, signal.SIGKILL)
                else:
                    os.kill(self.child, signal.SIGKILL)
        elif number > fault.at and operation.name in fault.lasting:
            self._fail(stop, operation, fault.error)

    def _fail(self, stop: Stop, operation: Operation, error: int) -> None:
        if operation.name != "close":  # no system keeps a file open because its close failed
            stop.set("number", -1)
        self._at_exit[stop.thread] = lambda at_exit: at_exit.set("result", -error)

    def _operation(self, stop: Stop) -> Operation | None:
        known = name_of(stop.number, stop.arguments)
        if known is None:
            return None
        name, shape = known
        paths = [self._below(path) for path in self.process.paths(shape, stop.arguments)]
        if not any(paths):
            return None
        text = " → ".join(path or "elsewhere" for path in paths)
        return Operation(name, text, stop.arguments[2] if name in WRITES else 0)

    def _below(self, path: str) -> str | None:
        if path == self.folder:
            return "."
        return path.removeprefix(self.folder + "/") if path.startswith(self.folder + "/") else None
