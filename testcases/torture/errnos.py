"""Errors of the system and short writes, at every operation of a save, once or from then on.

After each: the save has raised what the system said, or has completed; the older or the newer one loads; no temporary
file is left; a file whose fsync failed was given up; the next save works. With the manager of a run: the training
goes on with a warning, and later saves succeed.
"""

from __future__ import annotations

import errno
import random
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from testcases.torture.cases import LARGE, SMALL, OneFile
from testcases.torture.injector import LOOK_AGAIN, LOOK_AWAY, Fault, Operation, Say, run
from testcases.torture.matrix import Budget, Row
from testcases.torture.ptrace import unavailable
from testcases.torture.rotation import runs
from testcases.torture.savers import OURS, PEERS, lessons
from testcases.torture.sweep import swept
from testcases.torture.system_calls import WRITES
from testcases.torture.trained import train

SAMPLED = 3  # faults of each case in the sampled part
ONCE = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EINTR)
READING = {"open", "openat", "read", "getdents64", "stat", "newfstatat", "fstat"}  # fails on a bad disk only
TAKES_SPACE = frozenset({"creat", "write", "pwrite64", "mkdir"})
CHANGES = TAKES_SPACE | {"rename", "unlink"}
# a disk stays full, becomes read-only, or is broken for good
LASTING = {
    errno.ENOSPC: TAKES_SPACE,
    errno.EROFS: CHANGES,
    errno.EIO: CHANGES | {"fsync", "fdatasync"},
}


def rows(budget: Budget) -> Iterator[Row]:
    peers = {peer.name: [OneFile(peer, peer, size, tidy=False) for size in (SMALL, LARGE)] for peer in PEERS}
    files = [OneFile(OURS, None), OneFile(OURS, OURS), OneFile(OURS, PEERS[0]), OneFile(OURS, OURS, LARGE)]
    ours = [case for case in runs() if case.first > 1]
    taught = [OneFile(saver, older) for saver in lessons() for older in (None, saver)]
    yield swept("error or short write: one file", files, faults, budget, 600, SAMPLED, peers, errors)
    yield swept("error or short write: rotation and best", ours[:1], faults, budget, 700, SAMPLED)
    yield swept("error or short write: asynchronous save", ours[1:2], faults, budget, 700, SAMPLED)
    yield swept(
        "error or short write: lessons 08 and 09", [*taught, *ours[2:]], faults, budget, 1000, SAMPLED
    )
    yield _training(budget)


def faults(operations: list[Operation]) -> list[Fault]:
    """All errors, and writes that do 1 byte, half, all but one."""
    found = errors(operations)
    for at, operation in enumerate(operations):
        if operation.name in WRITES:
            found += [Fault(at, size=size) for size in (1, operation.size // 2, operation.size - 1)]
    return found


def errors(operations: list[Operation]) -> list[Fault]:
    """Each errno once at every operation; those that stay from every operation on that they concern."""
    found = []
    for at, operation in enumerate(operations):
        if operation.changes:
            found += [Fault(at, error=number) for number in ONCE]
        elif operation.name in READING:
            found.append(Fault(at, error=errno.EIO))
        for number, names in LASTING.items():
            if operation.name in names:
                found.append(Fault(at, error=number, lasting=names))
        if operation.name in WRITES:  # the last bytes that fit, and then the error
            found.append(Fault(at, error=errno.ENOSPC, size=operation.size // 2, lasting=TAKES_SPACE))
    return found


def _training(budget: Budget) -> Row:
    """One operation fails under a whole training, its log and its checkpoints: it ends as if none had."""
    name, bar = "error: a training goes on", 60
    if reason := unavailable():
        return Row(name, 0, bar, [], 0.0, note=reason, skipped=True)
    began = time.monotonic()
    folder = budget.folder / "training"
    good = run(partial(_train, folder), folder)
    shutil.rmtree(folder)
    found = [fault for fault in errors(good.operations) if not fault.lasting]
    failures = [] if good.said[-1].endswith(" None") else [f"on a good disk: {good.said}"]
    chosen = random.Random(budget.seed).sample(found, 1 if budget.sample else bar)
    for fault in chosen:
        traced = run(partial(_train, folder), folder, fault)
        shutil.rmtree(folder)
        if traced.status != 0 or traced.said != good.said:
            failures.append(
                f"{good.operations[fault.at]}, {fault}: status {traced.status}, {traced.said[-1]}"
            )
    return Row(name, len(chosen), bar, failures, time.monotonic() - began)


def _train(folder: Path, say: Say) -> None:
    """Operations count from the first update to the end of the training."""
    say(LOOK_AWAY)
    trained = train(folder, lambda number: say(LOOK_AGAIN) if number == 1 else None, lambda: say(LOOK_AWAY))
    say(f"{trained.outcome} {trained.problem}")
