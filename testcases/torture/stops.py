"""SIGTERM and SIGINT at any moment: before the first step, in a step, an evaluation, a save; twice, and too late.

Run: ``python -m testcases.torture --only stops``.

The training is that of killed_run.py: fp16 with overflows, dropout, noise in the data, windows, evaluations. One
process meets the signals, another one goes on from what lies there. It must end as the run that nobody disturbed, bit
for bit; and where there was one signal, no micro-step may have been done twice.

The parent only forks and compares: a process that has run a backward pass must not be forked.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from testcases.torture.matrix import Budget, Row
from testcases.training import killed_run
from testcases.training.checkpoint_faults import fault_at
from training.checkpoint import CheckpointManager

KIND = "fp16"
BAR = 200
SAMPLE = 8
BEFORE = -1
LIMIT = 300.0  # seconds for one process, on a machine that does much else
EVALUATION = 3  # batches of one evaluation, which a stop inside it begins again


@dataclass(frozen=True)
class Stop:
    """When which signals come.

    event: the number of the training's event at which the first comes, or BEFORE. operation: the number of the write,
    fsync or rename at which it comes; with an event, at which the second one comes, counted from the first.
    seconds: when it comes, by the clock. second: the second signal; without an operation it comes at once.
    """

    name: str
    signum: int = signal.SIGTERM
    event: int | None = None
    operation: int | None = None
    seconds: float | None = None
    second: int | None = None


def stops(rng: random.Random, events: int, operations: int, seconds: float) -> Iterator[Stop]:
    """Endlessly, each kind in turn, SIGTERM and SIGINT alternating."""
    for turn in range(1_000_000):
        signum = (signal.SIGTERM, signal.SIGINT)[turn % 2]
        event, operation = rng.randrange(events), rng.randrange(operations)
        yield Stop("in a step or an evaluation", signum, event=event)
        yield Stop("inside a save", signum, operation=operation)
        yield Stop("inside the last saves", signum, operation=operations - 1 - rng.randrange(20))
        yield Stop("at any time by the clock", signum, seconds=rng.uniform(0, 1.2 * seconds))
        yield Stop("twice, the second in the save", signum, event, rng.randrange(16), second=signum)
        yield Stop("past the deadline: SIGKILL", signum, event, rng.randrange(16), second=signal.SIGKILL)
        if turn % 4 < 2:
            yield Stop("before the first step", signum, event=BEFORE)
            yield Stop("twice at once", signum, event, second=signal.SIGINT)


def rows(budget: Budget) -> Iterator[Row]:
    if not hasattr(os, "fork"):
        yield Row("SIGTERM and SIGINT", 0, BAR, [], 0.0, note="needs os.fork", skipped=True)
        return
    began, failures, rng = time.perf_counter(), list[str](), random.Random(budget.seed)
    torch.set_num_threads(1)
    torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())  # its slow imports, once for all children
    whole = budget.folder / "undisturbed"
    whole.mkdir()
    if _forked(lambda: _count(whole), whole) != 0:
        raise RuntimeError((whole / "log.txt").read_text())
    want, seconds = killed_run.outcome(whole), time.perf_counter() - began
    events, operations = (int(n) for n in (whole / "counts").read_text().split())
    endless = stops(rng, events, operations, seconds)
    kinds, ends = Counter[str](), Counter[str]()
    for number in range(SAMPLE if budget.sample else BAR):
        stop, folder = next(endless), budget.folder / f"stop-{number}"
        folder.mkdir()
        problem, ended = _trial(stop, folder, want, events)
        kinds[stop.name] += 1
        ends[ended] += 1
        if problem:
            failures.append(f"{stop}: {problem}")
        shutil.rmtree(folder)
    note = ", ".join(f"{count} {ended}" for ended, count in sorted(ends.items()))
    seconds = time.perf_counter() - began
    yield Row("SIGTERM, SIGINT, then resumed", kinds.total(), BAR, failures, seconds, note=note)


def _count(folder: Path) -> None:
    with fault_at(None) as operations:
        events = killed_run.run(KIND, folder)
    (folder / "counts").write_text(f"{events.count} {len(operations)}")


# ---- one trial


def _trial(stop: Stop, folder: Path, want: dict, events: int) -> tuple[str | None, str]:
    """What is wrong, or None; and how the first process ended."""
    status = _forked(lambda: _stopped(stop, folder), folder, stop)
    if status not in (0, -stop.signum, -(stop.second or stop.signum)):
        return f"the first process ended with {status}: {_last_line(folder)}", "wrongly"
    done = int((folder / "count").read_text()) if status == 0 else None
    finished = (folder / "final.pt").exists()
    orderly = status == 0 and not finished
    if orderly and CheckpointManager(folder).latest_valid().path is None:
        return "it left in order, and there is no checkpoint", "wrongly"
    if (again := _forked(lambda: _resumed(folder), folder)) != 0:
        return f"the resumed process ended with {again}: {_last_line(folder)}", "wrongly"
    if problem := killed_run.difference(killed_run.outcome(folder), want):
        return problem, "wrongly"
    if orderly and done is not None:
        total = done + int((folder / "count").read_text())
        if not events <= total <= events + EVALUATION:
            return f"{total} events instead of {events}: it did not go on where it was left", "wrongly"
    return None, "left in order" if orderly else "had finished" if finished else "died at once"


def _stopped(stop: Stop, folder: Path) -> None:
    """The first process."""
    stack = contextlib.ExitStack()

    def strike(signum: int) -> None:
        os.kill(os.getpid(), signum)

    def after_the_first() -> None:
        second = stop.second
        if second is not None and stop.operation is not None:
            stack.enter_context(fault_at(stop.operation, lambda: strike(second)))
        elif second is not None:
            strike(second)

    if stop.event == BEFORE:
        strike(stop.signum)
    if stop.event is None and stop.operation is not None:
        stack.enter_context(fault_at(stop.operation, lambda: strike(stop.signum)))
    at = -1 if stop.event is None else stop.event
    events = killed_run.run(KIND, folder, at, stop.signum, after_the_first)
    (folder / "count").write_text(str(events.count))


def _resumed(folder: Path) -> None:
    (folder / "count").write_text(str(killed_run.run(KIND, folder).count))


def _forked(work: Callable[[], object], folder: Path, stop: Stop | None = None) -> int:
    """Do the work in a child, with its output in log.txt; returns its exit status, negative for a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 3
        try:
            log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(log, 1), os.dup2(log, 2)
            # as in a process of its own: pytest's handlers and python's KeyboardInterrupt are not the training's
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            work()
            status = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    began, sent = time.monotonic(), stop is None or stop.seconds is None
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        waited = time.monotonic() - began
        if not sent and stop is not None and stop.seconds is not None and waited >= stop.seconds:
            os.kill(child, stop.signum)
            sent = True
        if waited > LIMIT:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1])


def _last_line(folder: Path) -> str:
    lines = (folder / "log.txt").read_text(errors="replace").splitlines()
    return lines[-1] if lines else "no output"
