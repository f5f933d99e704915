"""A disk that is really full: tmpfs with so many pages, or so many inodes, left, for every number that matters.

A child process makes a mount namespace of its own and mounts there, so nothing of it is seen outside, and nothing
stays. Where that is not permitted the rows are skipped: errnos.py has ENOSPC injected.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from testcases.torture.cases import LARGE, NAME, NEW, NEXT, OLDER, SMALL
from testcases.torture.matrix import Budget, Row
from testcases.torture.rotation import KEEP
from testcases.torture.savers import OURS, PEERS, Saver, lessons
from testcases.torture.trained import Trained, train
from testcases.training.checkpoint_faults import litter, make_state, value_of
from training.checkpoint import CheckpointManager

NEW_NAMESPACE, NEW_USER, RECURSIVE, PRIVATE = 0x00020000, 0x10000000, 0x4000, 1 << 18
PAGE = 4096
OPTIONS = "size=16m,nr_inodes=64,mode=700"
FILL_AT, FREE_AT = 3, 9  # updates of the training

Result = tuple[int, list[str]]  # trials, failures


def rows(budget: Budget) -> Iterator[Row]:
    point = budget.folder / "disk"
    point.mkdir(exist_ok=True)
    names = ("full disk: one file", "full disk: saving on and on", "full disk: a training goes on")
    try:
        on_disk(point, int)
    except OSError as error:
        note = f"{error}; ENOSPC is injected in its place"
        yield from (Row(name, 0, 0, [], 0.0, note=note, skipped=True) for name in names)
        return
    mine = [OURS] if budget.sample else [OURS, *lessons()]
    began = time.monotonic()
    count, failures = on_disk(point, partial(_one_file, point, mine, budget))
    peers = {}
    for peer in () if budget.sample else PEERS:
        tried, lost = on_disk(point, partial(_one_file, point, [peer], budget))
        peers[peer.name] = f"{len([each for each in lost if 'lost' in each])} of {tried} lost"
    yield Row(names[0], count, 250, failures, time.monotonic() - began, peers)
    began = time.monotonic()
    count, failures = on_disk(point, partial(_on_and_on, point, 20 if budget.sample else 120))
    yield Row(names[1], count, 100, failures, time.monotonic() - began)
    began = time.monotonic()
    count, failures = _trainings(budget, point)
    yield Row(names[2], count, 12, failures, time.monotonic() - began)


# ---- the disk


def on_disk(point: Path, work: Callable[[], Any]) -> Any:
    """What the work returns, done in a child process that has a small tmpfs at this mount point.

    Raises:
        OSError: nothing can be mounted here; in words.
        RuntimeError: the work raised something.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(f"needs Linux, this is {sys.platform}")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        result: Any = RuntimeError("the child died")
        try:
            logging.disable(logging.NOTSET)  # trained.py listens
            logging.getLogger().addHandler(logging.NullHandler())
            _mount(point)
            result = work()
        except BaseException as error:
            kind = OSError if isinstance(error, _NoMount) else RuntimeError
            result = kind(f"{type(error).__name__}: {error}" if kind is RuntimeError else str(error))
        finally:
            with open(writing, "wb") as file:
                pickle.dump(result, file)
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    result = pickle.loads(answer)
    if isinstance(result, Exception):
        raise result
    return result


class _NoMount(OSError):
    pass


def _mount(point: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()

    def call(function: Any, *arguments: Any) -> None:
        if function(*arguments) != 0:
            raise _NoMount(f"nothing can be mounted here ({os.strerror(ctypes.get_errno())})")

    call(libc.unshare, NEW_NAMESPACE | (0 if user == 0 else NEW_USER))
    if user != 0:  # become root of a user namespace: only there may one mount
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    call(libc.mount, b"none", b"/", None, RECURSIVE | PRIVATE, None)
    call(libc.mount, b"tmpfs", os.fsencode(point), b"tmpfs", 0, OPTIONS.encode())


class Ballast:
    """What fills the disk."""

    def __init__(self, point: Path) -> None:
        self.folder = point / "ballast"
        self.folder.mkdir()

    def leave(self, pages: int | None = None, inodes: int | None = None) -> None:
        """Fill the disk until only so much is left."""
        free = os.statvfs(self.folder)
        if pages is not None:
            with open(self.folder / "pages", "ab", buffering=0) as file:
                for _ in range(free.f_bavail - pages):
                    with suppress(OSError):  # a save beside it takes pages, too
                        file.write(bytes(PAGE))
        if inodes is not None:
            for number in range(max(0, free.f_favail - inodes)):
                (self.folder / str(number)).touch()

    def free(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()


# ---- trials


def _one_file(point: Path, savers: list[Saver], budget: Budget) -> Result:
    """A save over an older file, with 0, 1, 2 … pages or inodes left."""
    ballast, count, failures = Ballast(point), 0, []
    for saver in savers:
        rooms: list[tuple[int, dict[str, int]]] = [(SMALL, {"inodes": left}) for left in range(6)]
        rooms += [(size, {"pages": left}) for size, most in ((SMALL, 8), (64, 24)) for left in range(most)]
        rooms += [(LARGE, {"pages": left}) for left in range(0, 330, 6)]  # a file of 314 pages
        for size, room in random.Random(budget.seed).sample(rooms, 12) if budget.sample else rooms:
            count += 1
            problem = _full(point / f"{count}", saver, size, ballast, room)
            if problem is not None:
                failures.append(f"{saver.name}, {size}×{size}, {room} left: {problem}")
    return count, failures


def _full(folder: Path, saver: Saver, size: int, ballast: Ballast, room: dict[str, int]) -> str | None:
    folder.mkdir()
    path = folder / NAME
    saver.save(make_state(OLDER, size), path)
    before = litter(folder)
    ballast.leave(**room)
    saved = True
    try:
        saver.save(make_state(NEW, size), path)
    except (OSError, RuntimeError) as error:  # torch.save and DCP raise RuntimeError
        saved = False
        if saver not in PEERS and not isinstance(error, OSError):
            return f"raises {type(error).__name__}: {error}"
    try:
        value: float | str = value_of(saver.load(path))
    except Exception as error:
        value = type(error).__name__
    left = litter(folder)
    ballast.free()
    saver.save(make_state(NEXT, size), path)
    after = value_of(saver.load(path)), litter(folder)
    shutil.rmtree(folder)
    if value not in ((NEW,) if saved else (OLDER, NEW)):
        return f"lost: {value}"
    if left != before:
        return f"litter: {', '.join(left)}"
    return None if after == (NEXT, before) else f"next save: {after}"


def _on_and_on(point: Path, saves: int) -> Result:
    """The disk fills by a page with every save of a run, and again; every 40th time it is emptied."""
    ballast, failures = Ballast(point), []
    folder = point / "run"
    manager = CheckpointManager(folder, KEEP)
    saved, free = 0, 40
    for step in range(1, saves + 1):
        free = 40 if step % 40 == 0 else free - 1
        ballast.free()
        ballast.leave(pages=max(0, free))
        manager.save(make_state(step, 64), 1, step, metric=1 / step)
        warned = any(f"step_{step}.pt was not saved" in sentence for sentence in manager.wait())
        saved = saved if warned else step
        found = CheckpointManager(folder, KEEP).latest_valid()
        value = None if found.path is None else value_of(OURS.load(found.path))
        if found.passed_over or (value or 0) < saved or litter(folder):
            failures.append(
                f"save {step}, {free} pages left: {value} is the newest of {saved}; {litter(folder)}"
            )
        if free >= 39 and warned:
            failures.append(f"save {step}: it fails, though {free} pages are free")
    return saves, failures


def _trainings(budget: Budget, point: Path) -> Result:
    """The disk is full from one update on, until a later one or until the end."""
    good: Trained = on_disk(point, partial(train, point / "run"))
    rooms = [(pages, free_at) for pages in (0, 1, 2, 5, 9, 17) for free_at in (FREE_AT, None)]
    rooms = rooms[2:3] if budget.sample else rooms
    failures = [] if good.problem is None else [f"on a good disk: {good.problem}"]
    for pages, free_at in rooms:
        trained: Trained = on_disk(point, partial(_train_full, point, pages, free_at))
        where = f"{pages} pages left, freed {'at the end' if free_at is None else f'at update {free_at}'}"
        if trained.problem is not None:
            failures.append(f"{where}: {trained.problem}")
        if trained.outcome != good.outcome:
            failures.append(f"{where}: wrong: other weights than on a good disk")
        if not any("was not saved" in sentence for sentence in trained.warnings):
            failures.append(f"{where}: nobody was warned")
    return len(rooms), failures


def _train_full(point: Path, pages: int, free_at: int | None) -> Trained:
    ballast = Ballast(point)

    def on_update(number: int) -> None:
        if number == FILL_AT:
            ballast.leave(pages=pages)
        if number == free_at:
            ballast.free()

    return train(point / "run", on_update, ballast.free)
