"""The fault matrix: one row for each class of faults. Run: python -m testcases.torture [--only WORD] [--sample]

Each module in MODULES has a function ``rows(budget)`` that yields a Row for each of its classes. Each runs in a
process of its own: what it trains or breaks is gone with it, and no process is forked that has run a backward pass.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import re
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

MODULES = (
    *(
        "seen",
        "kills",
        "errnos",
        "full_disk",
        "planted",
        "power",
        "damage",
        "selection",
        "stops",
        "nonfinite",
    ),
    "bad_inputs",
)
SHOWN = 10  # failures of a row
PLANTED = re.compile(r"planted .*found (\d+) / (\d+)")


@dataclass(frozen=True)
class Row:
    """One class of faults: what was tried and what became of it."""

    name: str  # "kill or torn write: single file"
    count: int  # trials made
    bar: int  # trials that a whole run has at least (0: no bar on the count)
    failures: list[str]  # one sentence each: lost, silently wrong, litter, hang …; empty is what we want
    seconds: float
    peers: dict[str, str] = field(default_factory=dict)  # "torch.save" → "7 of 8 lost"
    note: str = ""  # e.g. "planted protocol errors found 9 / 9", or why it was skipped
    skipped: bool = False  # note says why


@dataclass(frozen=True)
class Budget:
    """How much is tried, from which seed, and where files may be written."""

    sample: bool  # True: the part that `make test` runs
    seed: int
    folder: Path


def matrix(sample: bool, seed: int, only: str, folder: Path | None) -> int:
    """Run the modules whose name holds `only`, and print the matrix. Returns 1 if anything is wrong."""
    names = [name for name in MODULES if only in name]
    if not names:
        print(f"no module has {only!r} in its name: there are {', '.join(MODULES)}", file=sys.stderr)
        return 2
    print(f"seed {seed}{', a sample' if sample else ''}", flush=True)
    began, found = time.monotonic(), []
    _import_once(names)
    with tempfile.TemporaryDirectory(prefix="torture-", dir=folder or _quick_folder()) as scratch:
        for name in names:
            place = Path(scratch, name)
            place.mkdir()
            for row in _isolated(name, Budget(sample, seed, place)):
                found.append(row)
                print(_line(row, sample), flush=True)
    _print_peers(found)
    return _verdict(found, sample, time.monotonic() - began)


def _import_once(names: list[str]) -> None:
    """What the children need. No backward pass here: autograd's threads do not survive a fork."""
    import torch

    from course import lazy_dynamo

    lazy_dynamo.install()
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)], lr=0.0)
    for name in names:
        importlib.import_module(f"testcases.torture.{name}")


def _quick_folder() -> str | None:
    """Files in memory, where there is such a folder: a kill leaves there what it leaves on any disk."""
    memory = "/dev/shm"
    return memory if os.path.isdir(memory) and os.access(memory, os.W_OK) else None


# ---- one module


def _isolated(name: str, budget: Budget) -> Iterator[Row]:
    """The rows of a module, from a child process; a row that says so where it broke off."""
    if not hasattr(os, "fork"):
        yield Row(name, 0, 0, [], 0.0, note="needs os.fork", skipped=True)
        return
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            logging.disable()
            with open(writing, "wb") as file:
                for row in importlib.import_module(f"testcases.torture.{name}").rows(budget):
                    pickle.dump(row, file)
                    file.flush()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as file:
        yield from _unpickled(file)
    _, status = os.waitpid(child, 0)
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        yield Row(name, 0, 0, [f"the module itself ended with {code}"], 0.0)


def _unpickled(file: BinaryIO) -> Iterator[Row]:
    while True:
        try:
            yield pickle.load(file)
        except EOFError:
            return


# ---- what is printed


def _line(row: Row, sample: bool) -> str:
    bar = "" if sample or not row.bar else f"≥ {row.bar}"
    result = (
        "skipped" if row.skipped else "good" if not problems(row, sample) else f"{len(row.failures)} WRONG"
    )
    line = f"{row.name:<48} {row.count:>7} {bar:>9}  {result:<10} {row.seconds:>6.1f} s"
    lines = [line, *([f"    {row.note}"] if row.note else [])]
    for sentence in problems(row, sample)[:SHOWN]:
        lines.append(textwrap.fill(sentence, 110, initial_indent="    ✗ ", subsequent_indent="      "))
    return "\n".join(lines)


def problems(row: Row, sample: bool) -> list[str]:
    """The failures of a row, and a count that is below its bar."""
    few = not sample and not row.skipped and row.count < row.bar
    return [*row.failures, *([f"{row.count} trials, and the bar is {row.bar}"] if few else [])]


def _print_peers(found: Iterable[Row]) -> None:
    compared = [row for row in found if row.peers]
    names = list(dict.fromkeys(name for row in compared for name in row.peers))
    if not names:
        return
    widths = [max(22, len(name)) for name in names]
    print(
        f"\n{'the same, done to':<48} {'training/':>16}",
        *(f"{n:>{w}}" for n, w in zip(names, widths, strict=True)),
    )
    for row in compared:
        ours = f"{len(row.failures)} of {row.count}"
        cells = [f"{row.peers.get(n, '–'):>{w}}" for n, w in zip(names, widths, strict=True)]
        print(f"{row.name:<48} {ours:>16}", *cells)


def _verdict(found: list[Row], sample: bool, seconds: float) -> int:
    failures = [sentence for row in found for sentence in row.failures]
    lost, wrong = (
        sum(f"{word}:" in each or each.startswith(word) for each in failures) for word in ("lost", "wrong")
    )
    planted = [match for row in found if (match := PLANTED.search(row.note))]
    hits, errors = (sum(int(match[group]) for match in planted) for group in (1, 2))
    bad = [row for row in found if problems(row, sample)]
    skipped = sum(row.skipped for row in found)
    words = [f"{lost} lost, {wrong} silently wrong"]
    words += [f"{len(failures) - lost - wrong} other failures"] if len(failures) > lost + wrong else []
    words += [f"{skipped} classes skipped"] if skipped else []
    print(f"\n{', '.join(words)}; planted protocol errors found {hits} / {errors}")
    trials = sum(row.count for row in found)
    print(f"{trials} trials in {len(found)} classes, {seconds:.0f} s")
    return 1 if bad or hits < errors else 0
