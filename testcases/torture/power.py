"""Power cuts: every state that a disk may be in while a run saves, rotates and keeps its best, and what is found there.

Run: ``python -m testcases.torture --only power``. disk.py is the model of the disk, recorder.py feeds it with the
operations of real saves, left_behind.py judges each state, and protocols.py has the errors that must be found.
"""

from __future__ import annotations

import itertools
import logging
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from testcases.torture.disk import Disk, Tree
from testcases.torture.left_behind import RUN, Moment, Save, judge
from testcases.torture.matrix import Budget, Row
from testcases.torture.protocols import PLANTED, manager_class
from testcases.torture.recorder import recorded, write_tree
from training.checkpoint import CheckpointManager, find_checkpoints
from training.resume import find_start, set_aside

BAR = 2000
FAILING = 300  # states of a history with failing fsyncs, at random; of all others every state is judged
PLANTED_LIMIT = 60  # choices of one moment: a planted error leaves far more states than a right protocol
SAVES = tuple(Save(step, step + 0.5, 4.0 - step) for step in (1, 2, 3))  # each the best
AGAIN = tuple(replace(save, step=1) for save in SAVES)  # each over the one before


@dataclass(frozen=True)
class History:
    """Saves of one run, one after the other.

    failing: the numbers of the fsyncs that fail. before: what was there, with its saves.
    """

    name: str
    saves: tuple[Save, ...]
    keep_last: int = 1
    asynchronous: bool = False
    failing: tuple[int, ...] = ()
    before: Moment = field(default_factory=lambda: Moment({}, (), frozenset()))


def histories(sample: bool) -> Iterator[History]:
    """Rotation and best in each combination, one name again and again, and every fsync failing once or twice."""
    metrics = {"each the best": (3.0, 2.0, 1.0), "first the best": (1.0, 2.0, 3.0), "no metric": (None,) * 3}
    for keep_last, (name, values) in itertools.product((1, 2), metrics.items()):
        saves = tuple(replace(save, metric=metric) for save, metric in zip(SAVES, values, strict=True))
        yield History(f"keep {keep_last}, {name}", saves, keep_last)
        if not sample:
            yield History(f"keep {keep_last}, {name}, asynchronous", saves, keep_last, asynchronous=True)
    yield History("one name three times", AGAIN)
    for number in range(2, 14, 5) if sample else range(14):
        yield History(f"fsync {number} fails", SAVES, failing=(number,))
    if not sample:
        for number in range(2, 14, 2):
            yield History(f"fsync {number} fails, one name", AGAIN, failing=(number,))
        for failing in ((3, 4), (4, 8), (9, 13)):
            yield History(f"fsyncs {failing} fail", SAVES, failing=failing)


def moments(
    history: History, folder: Path, disk: Disk, manager: type[CheckpointManager] = CheckpointManager
) -> list[Moment]:
    """Save, and return every state that a power cut may leave in between, each once for each promise."""
    write_tree(history.before.tree, folder)
    found: dict[tuple, Moment] = {}
    saves, acknowledged = history.before.saves, history.before.acknowledged

    def collect() -> None:
        for tree in disk.states():
            found.setdefault((tuple(tree.items()), saves, acknowledged), Moment(tree, saves, acknowledged))

    try:
        with recorded(folder, disk, collect, set(history.failing)):
            saver = manager(folder / RUN, history.keep_last, history.asynchronous)
            for save in history.saves:
                saves = (*saves, save)
                saver.save(save.state(), 1, save.step, save.metric)
                if saver.wait() == []:  # that is the promise
                    acknowledged |= {len(saves) - 1}
                    collect()
    finally:
        shutil.rmtree(folder)
    return list(found.values())


def rows(budget: Budget) -> Iterator[Row]:
    torch.set_num_threads(1)
    rng = random.Random(budget.seed)
    scratch = budget.folder / "power"
    scratch.mkdir()
    began, count, sampled, failures = time.perf_counter(), 0, 0, list[str]()
    with quiet():
        for history in histories(budget.sample):
            disk = Disk(rng)
            found = moments(history, scratch / "saving", disk)
            sampled += disk.sampled
            trials = [(history, moment) for moment in found]
            if not history.failing and not history.asynchronous:
                late = rng.choice([moment for moment in found if len(moment.saves) == 2])
                again = second_run(history, late)
                trials += [(again, moment) for moment in moments(again, scratch / "saving", Disk(rng))]
            most = 25 if budget.sample else FAILING if history.failing else len(trials)
            for history_of, moment in rng.sample(trials, min(len(trials), most)):
                count += 1
                place = f"{history_of.name}, {len(moment.acknowledged)} acknowledged"
                failures += [f"{place}: {p}" for p in judge(moment, history.keep_last, scratch / "cut")]
        count += set_aside_states(scratch, rng, failures)
        planted = find_planted(scratch, rng)
    missed = [name for name, violation in planted.items() if not violation]
    failures += [f"the planted error {name!r} was not found" for name in missed]
    note = f"planted protocol errors found {len(planted) - len(missed)} / {len(planted)}"
    if sampled:
        note += f"; {sampled} moments had too many states for all of them"
    yield Row("power loss: states of the disk", count, BAR, failures, time.perf_counter() - began, note=note)


def second_run(history: History, left: Moment) -> History:
    """A run that goes on from what a power cut has left, and meets another one."""
    saves = (Save(7, 7.5, 0.5), Save(8, 8.5))
    return History(f"{history.name}, cut twice", saves, history.keep_last, before=left)


def set_aside_states(scratch: Path, rng: random.Random, failures: list[str]) -> int:
    """--resume PATH of an older checkpoint: the later ones move into another folder, and none of them is lost."""
    folder = scratch / "aside"
    manager = CheckpointManager(folder / RUN, keep_last=3, asynchronous=False)
    for save in SAVES:
        manager.save(save.state(), 1, save.step)
    disk, found = Disk(rng), dict[tuple, tuple[Tree, bool]]()
    saved = False

    def collect() -> None:
        for tree in disk.states():
            found.setdefault((*tree.items(), saved), (tree, saved))

    with recorded(folder, disk, collect):
        run = folder / RUN
        start = find_start(str(run / "epoch_1_step_1.pt"), False, run)
        set_aside(start.superseded, run)
        later = CheckpointManager(run, keep_last=3, asynchronous=False)
        later.save(Save(2, 9.5).state(), 2, 2)
        saved = True
        collect()
    for number, (tree, acknowledged) in enumerate(found.values()):
        run = scratch / f"aside-{number}" / RUN
        write_tree(tree, run.parents[1])
        newest = CheckpointManager(run).latest_valid().path
        if acknowledged and (newest is None or newest.name != "epoch_2_step_2.pt"):
            failures.append(f"set aside, then saved: {newest} is the newest")
        places = [path for each in (run, run / "superseded-1") for path in find_checkpoints(each)]
        for step in (2, 3):
            if not any(path.name == f"epoch_1_step_{step}.pt" for path in places):
                failures.append(f"set aside: step {step} is in neither folder")
        shutil.rmtree(run.parents[1])
    shutil.rmtree(folder)
    return len(found)


def find_planted(scratch: Path, rng: random.Random) -> dict[str, str]:
    """For each planted error the first violation, or an empty string."""
    tried = [
        History("fsync 8 fails", SAVES, failing=(8,)),
        History("keep 1", SAVES),
        History("one name", AGAIN),
        History("keep 2", SAVES, 2),
    ]
    found = {}
    for name, patches in PLANTED.items():
        manager, found[name] = manager_class(patches), ""
        for history in tried:
            states = moments(history, scratch / "planted", Disk(rng, PLANTED_LIMIT), manager)
            rng.shuffle(states)
            judged = (judge(moment, history.keep_last, scratch / "cut") for moment in states[:500])
            found[name] = next((problems[0] for problems in judged if problems), "")
            if found[name]:
                break
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of training/ inside: here they are what is expected."""
    log = logging.getLogger("training")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
