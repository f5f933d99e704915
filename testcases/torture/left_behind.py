"""What a power cut may have left, and whether that is what was promised.

Used by power.py: ``judge(moment, keep_last, folder)`` puts the state of a disk into a folder. There the newest good
checkpoint must be the last one that was acknowledged, or one of those begun since; it is whole; the best is the
best; retention has not taken what it should keep; nothing under the name of a checkpoint is damaged; and the next
save works, and removes whatever litter there is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testcases.torture.disk import Tree
from testcases.torture.recorder import write_tree
from testcases.training.checkpoint_faults import make_state, value_of
from training.checkpoint import (
    BEST,
    CheckpointManager,
    digest_path,
    examine,
    find_checkpoints,
    load_checkpoint,
)

SIDE = 32  # of the square tensors: files of three pages
RUN = "runs/demo"


@dataclass(frozen=True)
class Save:
    """One save: its step, and the metric if it was evaluated. All of its tensors hold `value`."""

    step: int
    value: float
    metric: float | None = None

    def state(self) -> dict:
        state = make_state(self.value, SIDE)
        del state["val_loss"]
        return state


@dataclass(frozen=True)
class Moment:
    """What may be on the disk at one moment; the saves begun by then, in order; which of them were acknowledged."""

    tree: Tree
    saves: tuple[Save, ...]
    acknowledged: frozenset[int]

    def promised(self) -> list[Save]:
        return [self.saves[number] for number in sorted(self.acknowledged)]


def judge(moment: Moment, keep_last: int, folder: Path) -> list[str]:
    """What is wrong with the folder that a power cut has left: nothing, or a sentence for each violation."""
    write_tree(moment.tree, folder)
    run = folder / RUN
    try:
        problems = [*_newest(moment, run), *_best(moment, run), *_kept(moment, keep_last, run)]
        return problems or list(_goes_on(moment, keep_last, run))
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a cut before the first save may leave nothing at all


def _newest(moment: Moment, run: Path) -> Iterator[str]:
    found = CheckpointManager(run).latest_valid().path
    promised = max(((moment.saves[i].step, i) for i in moment.acknowledged), default=None)
    if found is None or found.name == BEST:
        if promised is not None:
            yield f"lost: step {promised[0]} was acknowledged, and {found and found.name} is all that loads"
        return
    number, problem = _whose(found, moment)
    if problem:
        yield problem
    elif promised is not None and (moment.saves[number].step, number) < promised:
        yield f"lost: {moment.saves[promised[1]]} was acknowledged, and what loads is {moment.saves[number]}"


def _whose(path: Path, moment: Moment) -> tuple[int, str]:
    """The number of the save that a file holds, whole and under its own name; else what is wrong."""
    state = load_checkpoint(path)
    try:
        value = value_of(state)
    except AssertionError as error:
        return -1, f"wrong: {path.name} holds {error}"
    for number, save in enumerate(moment.saves):
        if (save.value, save.step) == (value, state["global_step"]) and path.name in (BEST, name_of(save)):
            return number, ""
    return -1, f"wrong: {path.name} holds {value} of step {state['global_step']}"


def _best(moment: Moment, run: Path) -> Iterator[str]:
    metrics = [moment.saves[i].metric for i in moment.acknowledged]
    promised = min((metric for metric in metrics if metric is not None), default=None)
    path = run / BEST
    if not path.exists():
        if promised is not None:
            yield f"lost: a best with {promised} was acknowledged, and there is no {BEST}"
        return
    if problem := examine(path).problem:
        yield f"damaged under its own name: {problem.replace(str(run), '')}"
        return
    number, problem = _whose(path, moment)
    metric = moment.saves[number].metric
    if problem or metric is None:
        yield problem or f"wrong: {BEST} holds {moment.saves[number]}, which was not evaluated"
    elif promised is not None and metric > promised:
        yield f"lost: a best with {promised} was acknowledged, and {BEST} has {metric}"


def _kept(moment: Moment, keep_last: int, run: Path) -> Iterator[str]:
    good = 0
    for path in find_checkpoints(run):
        problem = examine(path).problem
        good += problem is None
        if problem is not None and digest_path(path).exists():
            yield f"damaged under its own name: {problem.replace(str(run), '')}"
    want = min(keep_last, len({moment.saves[i].step for i in moment.acknowledged}))
    if good < want:
        yield f"retention: {good} good ones are left, and {want} were to be kept"


def _goes_on(moment: Moment, keep_last: int, run: Path) -> Iterator[str]:
    """Save once more: afterwards what is to be kept is there, and nothing else."""
    following = Save(1 + max(save.step for save in moment.saves), 0.5)
    manager = CheckpointManager(run, keep_last, asynchronous=False)
    manager.save(following.state(), 1, following.step)
    yield from (f"the next save: {sentence}" for sentence in manager.poll())
    names = {path.name for path in run.iterdir()}
    kept = {path.name for path in find_checkpoints(run)}
    pairs = kept | ({BEST} & names)
    if names != pairs | {f"{name}.sha256" for name in pairs}:
        yield f"litter after the next save: {sorted(names)}"
    if name_of(following) not in kept or len(kept) > keep_last:
        yield f"retention after the next save: {sorted(kept)}"


def name_of(save: Save) -> str:
    return f"epoch_1_step_{save.step}.pt"
