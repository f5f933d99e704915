"""Inputs that nobody should be able to use: each is refused with one sentence, quickly, and touches nothing.

Run: python -m testcases.torture bad_inputs [--sample] [--seed N] [--only WORD]     prints the table

A trial is a forked child in which `training.__main__.main(argv)` runs as from a shell; a few run in a fresh
interpreter. Looked at are the exit status, what was printed, the processor time, the peak of the resident memory
over its start, and every file around: good ones must be as they were, and none may be new (code that ran inside
a checkpoint makes one).
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from testcases.torture import bad_checkpoints, bad_configs, bad_states
from testcases.torture.bad_files import TEXT, Case, Place
from testcases.torture.bad_trial import ALLOWANCE, LONGEST, MEBIBYTE, SECONDS, Outcome, attempt, forked
from testcases.torture.matrix import Budget, Row
from testcases.training.work import TINY
from training.config import parse

SAMPLE = 30  # trials of `make test`
BARS = {
    "configuration": 25,
    "data": 10,
    "output folder": 5,
    "checkpoint file": 40,
    "checkpoint state": 25,
    "checkpoint tools": 10,
}


def cases() -> list[Case]:
    return [*bad_configs.cases(), *bad_checkpoints.cases(), *bad_states.cases()]


# ---- all trials


def prepare(folder: Path) -> Place:
    """A text, and a good run of two updates, made in a child: the parent must never run a backward pass."""
    torch.set_num_threads(1)
    importlib.import_module("training.pretrain")  # here, once for all children
    parse("pretrain", TINY)
    torch.optim.AdamW([torch.zeros(1)])  # its slow imports; no backward pass
    place = Place(folder / "input", folder / "run", folder, folder / "text.txt")
    place.text.write_text(TEXT, encoding="utf-8")
    place.folder.mkdir()
    flags = ["--output_dir", str(place.run), "--data", str(place.text), "--max_steps=2", "--max_grad_norm=1"]
    made = forked(["pretrain", *TINY, *flags], place, 2**30)
    if made.status != 0:
        raise RuntimeError(f"the good run failed: {made.err}")
    return place


def trials(chosen: list[Case], place: Place) -> Iterator[tuple[Case, Outcome, list[str]]]:
    whole = place.scratch / "run-as-it-was"
    shutil.copytree(place.run, whole)
    for case in chosen:
        outcome, problems = attempt(case, place)
        if any(problem.startswith(("code", "touched")) for problem in problems):
            shutil.rmtree(place.run)
            shutil.copytree(whole, place.run)
        yield case, outcome, problems


def sampled(chosen: list[Case], seed: int) -> list[Case]:
    quick = [case for case in chosen if not case.slow and not case.fresh]
    return random.Random(seed).sample(quick, SAMPLE)


def reason_to_skip() -> str | None:
    if not hasattr(os, "fork"):
        return "needs os.fork"
    return None if os.path.exists("/proc/self/clear_refs") else "measures memory with /proc, as Linux has it"


def rows(budget: Budget) -> Iterator[Row]:
    """A row for each kind of input."""
    if reason := reason_to_skip():
        yield Row("bad inputs", 0, 0, [], 0.0, note=reason, skipped=True)
        return
    with tempfile.TemporaryDirectory(dir=budget.folder, prefix="bad-inputs-") as folder:
        place = prepare(Path(folder))
        every = cases()
        chosen = sampled(every, budget.seed) if budget.sample else every
        for kind, bar in BARS.items():
            began, failures, count = time.monotonic(), [], 0
            for case, _, problems in trials([case for case in chosen if case.kind == kind], place):
                count += 1
                failures += [f"{case.name}: {problem}" for problem in problems]
            peers = {} if budget.sample or kind != "checkpoint file" else {"torch.load": peer(place)}
            seconds = time.monotonic() - began
            shutil.rmtree(place.scratch / "run-as-it-was", ignore_errors=True)
            yield Row(f"bad inputs: {kind}", count, bar, failures, seconds, peers)


def plain_load(argv: list[str]) -> int:
    torch.load(argv[0], weights_only=True)
    return 0


def peer(place: Place) -> str:
    """What torch.load(weights_only=True) alone does with the hostile files, under the same limits."""
    loaded = slow = 0
    hostile = [case for case in bad_checkpoints.hostile_cases() if not case.slow]
    for case in hostile:
        shutil.rmtree(place.folder)
        place.folder.mkdir()
        path = case.make(place)[-1]
        size = os.path.getsize(path)
        outcome = forked([path], place, size, plain_load)
        loaded += outcome.status == 0
        slow += outcome.seconds > SECONDS or outcome.peak > 2 * size + ALLOWANCE or outcome.status < 0
    return f"{loaded} of {len(hostile)} loaded, {slow} over the limits"


# ---- the table


def print_table(place: Place, chosen: list[Case]) -> int:
    width = shutil.get_terminal_size((150, 24)).columns
    right = max(40, width - 45 - 26)
    print(f"{'input':<43}  {'sentence':<{right}}  exit  seconds  peak MiB")
    bad = 0
    for case, outcome, problems in trials(chosen, place):
        bad += bool(problems)
        shown = (
            outcome.sentence.strip().rpartition("\n")[2] if "Traceback" in outcome.err else outcome.sentence
        )
        shown = shown.replace(str(place.folder), ".").replace(str(place.scratch), "..")
        left = textwrap.wrap(f"{case.kind.split()[-1]}: {case.name}", 43)
        lines = textwrap.wrap(shown[:LONGEST], right) or ["(nothing)"]
        time_and_space = (
            ("", "") if case.fresh else (f"{outcome.seconds:.2f}", f"{outcome.peak / MEBIBYTE:.0f}")
        )
        for number in range(max(len(left), len(lines))):
            first, second = (column[number] if number < len(column) else "" for column in (left, lines))
            end = (
                f"{outcome.status:>4}  {time_and_space[0]:>7}  {time_and_space[1]:>8}" if number == 0 else ""
            )
            print(f"{first:<43}  {second:<{right}}  {end}".rstrip())
        for problem in problems:
            print(f"    WRONG: {problem}")
    print(f"{len(chosen)} inputs, {bad} of them not refused as they should be")
    return 1 if bad else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m testcases.torture bad_inputs", description=__doc__)
    parser.add_argument("--sample", action="store_true", help="the part that make test runs")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", metavar="WORD", help="inputs whose kind or name has this word")
    args = parser.parse_args(argv)
    if reason := reason_to_skip():
        print(f"skipped: {reason}")
        return 0
    every = [case for case in cases() if args.only in f"{case.kind}: {case.name}"]
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as folder:
        place = prepare(Path(folder))
        return print_table(place, sampled(every, args.seed) if args.sample else every)


if __name__ == "__main__":
    sys.exit(main())
