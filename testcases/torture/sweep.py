"""Trials: a case is prepared, disturbed by one fault in a child process, and looked at."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from testcases.torture.cases import Case
from testcases.torture.injector import Fault, Operation, run
from testcases.torture.matrix import Budget, Row
from testcases.torture.ptrace import unavailable
from training.checkpoint import CheckpointError

Faults = Callable[[list[Operation]], list[Fault]]


def swept(
    name: str,
    cases: Iterable[Case],
    faults: Faults,
    budget: Budget,
    bar: int,
    sampled: int,
    peers: Mapping[str, Iterable[Case]] | None = None,
    peers_faults: Faults | None = None,
) -> Row:
    """The row of a sweep, skipped where no process can be traced. peers: cases of other savers, by their name;
    peers_faults: what is done to those, None: the same."""
    if reason := unavailable():
        return Row(name, 0, bar, [], 0.0, note=reason, skipped=True)
    began = time.monotonic()
    count, failures = sweep(cases, faults, budget, sampled)
    columns = {}
    for peer, theirs in (peers or {}).items():
        tried, lost = sweep(theirs, peers_faults or faults, budget, sampled)
        columns[peer] = f"{len(lost)} of {tried} lost"
    return Row(name, count, bar, failures, time.monotonic() - began, columns)


def sweep(cases: Iterable[Case], faults: Faults, budget: Budget, sampled: int) -> tuple[int, list[str]]:
    """Every fault of every case; in the sampled part `sampled` of each. Returns the trials and what was wrong."""
    rng = random.Random(budget.seed)
    count, failures = 0, []
    for case in cases:
        base = budget.folder / "sweep"
        try:
            for tried in trials(case, faults, base, lambda found: _some(found, budget, sampled, rng)):
                count += 1
                failures += [] if tried is None else [tried]
        finally:
            shutil.rmtree(base)
    return count, failures


def _some(found: list[Fault], budget: Budget, sampled: int, rng: random.Random) -> list[Fault]:
    return rng.sample(found, min(sampled, len(found))) if budget.sample else found


def trials(
    case: Case, faults: Faults, base: Path, choose: Callable[[list[Fault]], list[Fault]] = lambda found: found
) -> Iterator[str | None]:
    """For each fault what was wrong, or None. `base` is made."""
    prepared, folder = base / "prepared", base / "trial"
    prepared.mkdir(parents=True)
    case.prepare(prepared)
    shutil.copytree(prepared, folder)
    undisturbed = run(lambda say: case.work(folder, say), folder)
    operations = undisturbed.operations
    problem = case.after_kill(folder, undisturbed)
    if undisturbed.status != 0 or problem is not None:
        raise ValueError(f"{case.name}, undisturbed: {undisturbed.said[-1:]}, {problem}")
    shutil.rmtree(folder)
    for fault in choose(faults(operations)):
        shutil.copytree(prepared, folder)
        problem = _trial(case, folder, fault, operations[fault.at])
        shutil.rmtree(folder)
        yield None if problem is None else f"{case.name}: {operations[fault.at]}, {fault}: {problem}"


def _trial(case: Case, folder: Path, fault: Fault, expected: Operation) -> str | None:
    traced = run(lambda say: case.work(folder, say), folder, fault)
    if len(traced.operations) <= fault.at or traced.operations[fault.at].name != expected.name:
        return "the injector: this operation did not come"
    if fault.kill and traced.status != -signal.SIGKILL:
        return f"the injector: it was not killed, its status is {traced.status}"
    try:
        return case.after_kill(folder, traced) if fault.kill else case.after_error(folder, traced, fault)
    except (AssertionError, CheckpointError) as error:
        return f"wrong: {error}"
