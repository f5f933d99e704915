"""What is disturbed, and what must hold afterwards: one file, or a run that keeps the last two and the best.

A case prepares a folder, works there (in a child that is killed, or whose operations fail), and then says in a
sentence what is wrong: "lost: …" where nothing loads or an acknowledged save is gone, "wrong: …" where something
else loads than was saved, "litter: …", "next save: …"; None where nothing is.
"""

from __future__ import annotations

import errno
import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from testcases.torture.injector import Fault, Say, Traced
from testcases.torture.savers import Saver
from testcases.training.checkpoint_faults import litter, make_state, value_of
from training.checkpoint import digest_path

NAME = "epoch_1_step_1.pt"
OLDER, NEW, NEXT = 1.0, 2.0, 3.0
SMALL, LARGE = 4, 400  # of a side of the tensors; a large state is more than one buffer, and several writes


class Case(Protocol):
    """See the module."""

    name: str

    def prepare(self, folder: Path) -> None: ...

    def work(self, folder: Path, say: Say) -> None: ...

    def after_kill(self, folder: Path, traced: Traced) -> str | None: ...

    def after_error(self, folder: Path, traced: Traced, fault: Fault) -> str | None: ...


@dataclass(frozen=True)
class OneFile:
    """A state saved under a name that is free, or over an older file.

    older: who saved the older file; None: there is none. size: of a side of the tensors.
    """

    saver: Saver
    older: Saver | None
    size: int = SMALL
    tidy: bool = True  # a peer is only asked what loads

    @property
    def name(self) -> str:
        older = "nothing" if self.older is None else "its own"
        if self.older is not None and self.older is not self.saver:
            older = self.older.name
        return f"{self.saver.name} over {older}" + (", large" if self.size > SMALL else "")

    def prepare(self, folder: Path) -> None:
        if self.older is not None:
            self.older.save(make_state(OLDER, self.size), folder / NAME)

    def work(self, folder: Path, say: Say) -> None:
        self.saver.save(make_state(NEW, self.size), folder / NAME)
        say("saved")

    def after_kill(self, folder: Path, traced: Traced) -> str | None:
        return self._problem(folder, traced) or self._next(folder)

    def after_error(self, folder: Path, traced: Traced, fault: Fault) -> str | None:
        problem = self._problem(folder, traced)
        if not self.tidy:
            return problem
        problem = problem or ending(traced, fault)
        if problem is None and could_clean_up(fault, traced):
            names = litter(folder)
            if self.saver.tidies and os.listdir(folder) == [digest_path(NAME).name]:
                names.append("a digest of nothing")
            problem = f"litter: {', '.join(names)}" if names else None
        return problem or self._next(folder)

    def _problem(self, folder: Path, traced: Traced) -> str | None:
        """Which of the two loads, and whether it may be that one."""
        value, reason = self._loaded(folder)
        saved = "saved" in traced.said
        if value is None:
            there = os.path.lexists(folder / NAME)
            return f"lost: {reason}" if there or saved or self.older is not None else None
        if value not in (OLDER, NEW):  # nor NaN
            return f"wrong: {value} loads, which is a mixture or was never saved"
        if saved and value == OLDER:
            return "lost: it was acknowledged, and the older one is there"
        return None

    def _loaded(self, folder: Path) -> tuple[float | None, str]:
        try:
            return value_of(self.saver.load(folder / NAME)), ""
        except AssertionError:
            return math.nan, ""
        except Exception as error:  # a damaged file makes torch raise anything
            return None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"

    def _next(self, folder: Path) -> str | None:
        """The next save works, and leaves what a save leaves that nobody disturbed."""
        if not self.tidy:
            return None
        try:
            self.saver.save(make_state(NEXT, self.size), folder / NAME)
        except OSError as error:
            return f"next save: raises {error}"
        value, reason = self._loaded(folder)
        if value != NEXT:
            return f"next save: {value} loads {reason}"
        names = sorted(os.listdir(folder))
        if names != [NAME, digest_path(NAME).name]:
            return f"litter: after the next save there is {', '.join(names)}"
        if len(digest_path(folder / NAME).read_text().splitlines()) != 1:
            return "litter: after the next save the digest of an older file is still there"
        return None


# ---- errors


def ending(traced: Traced, fault: Fault) -> str | None:
    """A save whose operation failed ends with "saved", or with the OSError that the system gave."""
    last = traced.said[-1] if traced.said else ""
    if traced.status == -signal.SIGALRM:
        return "hangs"
    if traced.status != 0 or not (last == "saved" or last.startswith("raised")):
        return f"ends with status {traced.status}, {last!r}"
    if last != "saved" and (not fault.error or f" {fault.error}: " not in last):
        return f"ends with {last!r}"
    return fsync_problem(traced, fault)


def fsync_problem(traced: Traced, fault: Fault) -> str | None:
    """After a failed fsync the file is given up: a second fsync would succeed, and mean nothing."""
    failed = traced.operations[fault.at]
    if failed.name not in ("fsync", "fdatasync") or fault.error == errno.EINTR:
        return None
    later = traced.operations[fault.at + 1 :]
    if "saving" in failed.path or "tmp" in failed.path:  # a temporary file
        for each in later:
            if each.path == failed.path and each.name in (
                "unlink",
                "creat",
            ):  # given up; the name may come again
                return None
            if each.path.startswith(failed.path) and each.name != "close":
                return f"lost after a power cut: after the failed fsync comes {each}"
    elif traced.said[-1] == "saved" and not any(each.name == "creat" for each in later):
        return "lost after a power cut: a failed fsync of the folder is taken for a save"
    return None


def could_clean_up(fault: Fault, traced: Traced) -> bool:
    """Whether temporary files could be removed: their removal was not what failed."""
    return traced.operations[fault.at].name != "unlink" and "unlink" not in fault.lasting
