"""Which checkpoint a resume takes among everything that may lie in a folder: the newest that is good, always.

Run: ``python -m testcases.torture --only selection``.

Each case puts something into a folder that holds good checkpoints of the steps 99 and 100, and says which step must be
taken (selection_cases.py). An alarm ends a case that hangs, as opening a FIFO for reading does.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from testcases.torture.matrix import Budget, Row
from testcases.torture.power import quiet
from testcases.torture.selection_cases import CASES, MEANWHILE, Case, at
from testcases.training.checkpoint_faults import litter, make_state, value_of
from training.checkpoint import NAME, CheckpointManager, delete_checkpoint
from training.resume import find_start

BAR = 24
HANG = 5  # seconds; a case takes some milliseconds


class Hung(BaseException):
    """Not an OSError, which the code under test would catch."""


def rows(budget: Budget) -> Iterator[Row]:
    if not hasattr(os, "fork"):
        yield Row("selection among checkpoints", 0, BAR, [], 0.0, note="needs os.fork", skipped=True)
        return
    torch.set_num_threads(1)
    began, failures = time.perf_counter(), list[str]()
    with quiet():
        for case in CASES:
            folder = budget.folder / f"selection-{case.__name__}"
            for step in (99, 100):
                at(folder, step)
            name = case.__name__.replace("_", " ")
            try:
                with _alarm(HANG):
                    failures += [f"{name}: {problem}" for problem in _trial(case, folder)]
            except Hung:
                failures.append(f"{name}: it hung for {HANG} s")
            shutil.rmtree(folder)
    note = "root reads everything: no permission was denied" if os.geteuid() == 0 else ""
    seconds = time.perf_counter() - began
    yield Row("selection among checkpoints", len(CASES), BAR, failures, seconds, note=note)


def _trial(case: Case, folder: Path) -> Iterator[str]:
    want = case(folder)
    with _going(folder, *MEANWHILE[case]) if case in MEANWHILE else nullcontext():
        start = find_start("auto", False, folder)
    found = (start.global_step, value_of(start.state))
    if found != (want, want):
        yield f"step {found[0]} was taken, with {found[1]}, and not {want}"
    for path in folder.glob("epoch_*.pt"):
        match = NAME.fullmatch(path.name)
        if match and int(match[2]) > want and not any(path.name in note for note in start.notes):
            yield f"{path.name} was passed over without a word"
    yield from _goes_on(folder)


def _goes_on(folder: Path) -> Iterator[str]:
    """A run in this folder saves, whatever lies there, and the next resume finds it."""
    manager = CheckpointManager(folder, keep_last=2)
    for step in (20_000, 20_001):
        manager.save(make_state(step), 1, step)
        yield from (f"the run that goes on: {sentence}" for sentence in manager.wait())
    found = find_start("auto", False, folder)
    if found.global_step != 20_001:
        yield f"the run that goes on saved step 20001, and step {found.global_step} was taken"
    if litter(folder):
        yield f"litter: {litter(folder)}"


@contextmanager
def _going(folder: Path, owner: Any, name: str) -> Iterator[None]:
    """Inside, the newest checkpoint is removed once this function has been called, as another process might do."""
    real = getattr(owner, name)

    def call(*args: object, **options: object) -> object:
        result = real(*args, **options)
        delete_checkpoint(folder / "epoch_1_step_101.pt")
        return result

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, real)


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Hung after so many seconds, also out of a system call that waits."""

    def ring(signum: int, frame: FrameType | None) -> NoReturn:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
