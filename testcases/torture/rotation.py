"""The files of a run, disturbed while it saves: the last two and the best are kept, beside the training or in it.

See cases.py for what a case is and the sentences of what is wrong.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from testcases.torture.cases import could_clean_up, fsync_problem
from testcases.torture.injector import LOOK_AGAIN, LOOK_AWAY, Fault, Say, Traced
from testcases.torture.savers import lesson
from testcases.training.checkpoint_faults import litter, make_state, value_of
from training.checkpoint import CheckpointManager, digest_path, load_checkpoint, verify_checkpoint

METRICS = {1: 3.0, 2: 1.0, 3: 2.0, 4: 0.5, 5: 0.8, 6: None}  # 1, 2 and 4 are the best of their time
KEEP = 2


class Keeper(Protocol):
    """The files of a run: ours or lesson 08's."""

    def save(self, step: int) -> list[str]:
        """Returns what went wrong so far, as sentences."""
        ...

    def wait(self) -> list[str]: ...

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest good file, and what was passed over."""
        ...


class OurKeeper:
    """CheckpointManager of training/, or one with a planted mistake."""

    def __init__(
        self, folder: Path, asynchronous: bool, manager: type[CheckpointManager] = CheckpointManager
    ) -> None:
        self.manager = manager(folder, KEEP, asynchronous)

    def save(self, step: int) -> list[str]:
        self.manager.save(make_state(step), 1, step, METRICS[step])
        return self.manager.poll()

    def wait(self) -> list[str]:
        return self.manager.wait()

    def newest(self) -> tuple[Path | None, list[str]]:
        found = self.manager.latest_valid()
        return found.path, found.passed_over


class Lesson08Keeper:
    """CheckpointManager of lesson 08, which raises where ours warns: that ends the run, and another goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manager = self._start()

    def _start(self) -> Any:
        return lesson("08", "manager").CheckpointManager(self.folder, KEEP)

    def save(self, step: int) -> list[str]:
        try:
            self.manager.save({**make_state(step), "step": step}, METRICS[step])
        except OSError as error:
            self.manager = self._start()
            return [f"epoch_1_step_{step}.pt was not saved: {error}"]
        return []

    def wait(self) -> list[str]:
        return []

    def newest(self) -> tuple[Path | None, list[str]]:
        return self.manager.latest_valid(), self.manager.passed_over


@dataclass(frozen=True)
class Run:
    """Saves 1 to 5 of a run, or 3 to 5 after 1 and 2: rotation and the best in every one of them."""

    name: str
    keeper: Callable[[Path], Keeper]
    first: int
    beside: bool = False  # saves are asynchronous

    def prepare(self, folder: Path) -> None:
        if self.first > 1:
            keeper = self.keeper(folder / "run")
            for step in range(1, self.first):
                keeper.save(step)
            keeper.wait()

    def work(self, folder: Path, say: Say) -> None:
        keeper = self.keeper(folder / "run")
        for step in range(self.first, 6):
            say(f"began {step}")
            for sentence in keeper.save(step):  # of an asynchronous one: the warnings of the save before
                say(f"warned {sentence}")
            say(f"returned {step - self.beside}")
            if not self.beside:
                say(LOOK_AWAY)
                say(f"best {_best(folder / 'run')}")
                say(LOOK_AGAIN)
        for sentence in keeper.wait():
            say(f"warned {sentence}")
        say("returned 5")

    # ---- what must hold

    def after_kill(self, folder: Path, traced: Traced) -> str | None:
        began, returned = _last("began", traced, self.first - 1), _last("returned", traced, self.first - 1)
        allowed = range(returned, began + 1)
        problem = self._problem(folder, allowed, returned) or self._best_problem(folder, allowed)
        return problem or self._next(folder)

    def after_error(self, folder: Path, traced: Traced, fault: Fault) -> str | None:
        if len(traced.said) == 1 and f" {fault.error}: " in traced.said[0]:  # it could not even start
            return self._problem(folder, range(self.first - 1, 6), self.first - 1) or self._next(folder)
        if traced.status != 0 or _last("returned", traced, 0) != 5:
            return f"training: it ends ({' '.join(traced.said[-1:])}, status {traced.status})"
        warned = " ".join(text for text in traced.said if text.startswith("warned"))
        saved = [
            step for step in range(1, 6) if step < self.first or f"step_{step}.pt was not saved" not in warned
        ]
        bests = [float(text.split()[1]) for text in traced.said if text.startswith("best")]
        if bests != sorted(bests, reverse=True):
            return f"lost: the best went from {' to '.join(map(str, bests))}"
        problem = fsync_problem(traced, fault)
        problem = problem or self._problem(folder, range(max(saved, default=0), 6), len(saved))
        if problem is None and not warned and _best(folder / "run") != METRICS[4]:
            problem = f"lost: the best is {_best(folder / 'run')}, and nobody was warned"
        if problem is None and could_clean_up(fault, traced) and (folder / "run").is_dir():
            names = litter(folder / "run")
            problem = f"litter: {', '.join(names)}" if names else None
        return problem or self._next(folder)

    def _problem(self, folder: Path, allowed: range, saved: int) -> str | None:
        """The newest good one is of an allowed step; every file is what its name says; as many as were saved."""
        path, passed_over = self.keeper(folder / "run").newest()
        if passed_over:
            return f"lost: {passed_over[0]}"
        if path is None:
            return "lost: nothing is there" if min(allowed) > 0 else None
        # one without a digest is being deleted; if the next save leaves it, that is litter
        files = [file for file in (folder / "run").glob("*.pt") if digest_path(file).exists()]
        held = {file: value_of(load_checkpoint(file)) for file in files}
        for file, value in held.items():
            if file.stem.startswith("epoch") and value != _step(file):
                return f"wrong: {file.name} holds {value}"
        if held[path] not in allowed:
            return f"lost: {path.name} is the newest, it should be of {list(allowed)}"
        numbered = len(held) - (folder / "run" / "best_model.pt" in held)
        if numbered < min(KEEP, saved):
            return f"lost: {numbered} checkpoints are left of {KEEP} to keep"
        return None

    def _best_problem(self, folder: Path, allowed: range) -> str | None:
        best = _best(folder / "run")
        least = min((METRICS[step] for step in range(1, min(allowed) + 1)), default=math.inf)
        possible = [least, *(METRICS[step] for step in allowed if step and METRICS[step] < least)]
        return None if best in possible else f"lost: best_metric is {best}, it should be of {possible}"

    def _next(self, folder: Path) -> str | None:
        """A run that goes on saves step 6, and cleans up."""
        before = _best(folder / "run")
        keeper = self.keeper(folder / "run")
        if sentences := keeper.save(6) + keeper.wait():
            return f"next save: {sentences[0]}"
        path, passed_over = keeper.newest()
        if path is None or passed_over or value_of(load_checkpoint(path)) != 6:
            return f"next save: {path} is the newest, passed over are {passed_over}"
        names = set(os.listdir(folder / "run"))
        numbered = sorted(
            (name for name in names if name.startswith("epoch") and name.endswith(".pt")), key=_step
        )
        kept = [*numbered[-KEEP:], *(["best_model.pt"] if before < math.inf else [])]
        expected = {*kept, *(digest_path(name).name for name in kept)}
        if names != expected:
            return f"litter: after the next save there is {', '.join(sorted(names ^ expected))}"
        return None if _best(folder / "run") == before else "lost: the next save changed the best"


def runs() -> list[Run]:
    """Ours, with a save beside the training and without, and lesson 08's."""
    ours, beside = lambda folder: OurKeeper(folder, False), lambda folder: OurKeeper(folder, True)
    return [
        *(Run("rotation and best" + more, ours, first) for more, first in ((", new folder", 1), ("", 3))),
        *(Run("asynchronous" + more, beside, first, True) for more, first in ((", new folder", 1), ("", 3))),
        *(
            Run("lesson 08, rotation" + more, Lesson08Keeper, first)
            for more, first in ((", new folder", 1), ("", 3))
        ),
    ]


def _best(folder: Path) -> float:
    """The best_metric on the disk; inf where there is none. Raises where the file does not load."""
    path = folder / "best_model.pt"
    if not path.exists():
        return math.inf
    verify_checkpoint(path)
    state = load_checkpoint(path)
    assert METRICS[int(value_of(state))] == state["best_metric"], state["best_metric"]
    return state["best_metric"]


def _step(path: Path | str) -> int:
    return int(Path(path).stem.split("_")[3])


def _last(word: str, traced: Traced, default: int) -> int:
    """The number of the last "began 4" or "returned 3"."""
    return max((int(text.split()[1]) for text in traced.said if text.startswith(word)), default=default)
