"""Run one lesson's tests on some implementation, in a process forked after torch was imported.

A cold pytest run takes three seconds, nearly all of it imports. The gates need hundreds of runs: this module
imports everything once and forks a child for each, so that a run costs what its tests cost, and a crash, an
endless loop or a leak in the code under test stays in the child. Where there is no fork (Windows), a fresh
process does it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from course.outcomes import TestOutcome
from course.registry import ROOT, Lesson

TRIAL_LIMIT = 300.0  # seconds until a whole run is given up; each test has its own limit


@dataclass(frozen=True)
class Trial:
    """What to run: the lesson's tests on the code in `impl`."""

    key: str
    lesson: Lesson
    impl: Path
    seed: int | None = None


@dataclass
class TrialResult:
    """The outcomes, and what was printed when there are none."""

    trial: Trial
    outcomes: list[TestOutcome] = field(default_factory=list)
    output: str = ""
    seconds: float = 0.0

    def failed_functions(self, *kinds: str) -> set[str]:
        """Names of the test functions with at least one case of the given outcomes."""
        return {o.function for o in self.outcomes if o.outcome in kinds}


def run_trials(trials: list[Trial], jobs: int | None = None) -> Iterator[TrialResult]:
    """Run all trials, `jobs` at a time (default: one for each core); yields them as they finish."""
    jobs = max(
        1, jobs or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    start = _fork if hasattr(os, "fork") else _spawn
    if start is _fork:
        _preload()
    waiting, running = list(reversed(trials)), []
    with tempfile.TemporaryDirectory(prefix="course-trials-") as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_Running(waiting.pop(), start, Path(scratch)))
                finished = [one for one in running if one.poll()]
                for one in finished:
                    running.remove(one)
                    yield one.result()
                if not finished:
                    time.sleep(0.01)
        finally:
            for one in running:
                one.kill()


class _Running:
    """One child at work."""

    def __init__(self, trial: Trial, start: Callable[[list[str], Path], Any], scratch: Path) -> None:
        self.trial = trial
        self.folder = Path(tempfile.mkdtemp(dir=scratch))
        self.report, self.log = self.folder / "report.json", self.folder / "log.txt"
        self.began = time.monotonic()
        self.child = start(_arguments(trial, self.report, self.folder), self.log)

    def poll(self) -> bool:
        if time.monotonic() - self.began > TRIAL_LIMIT:
            self.kill()
            return True
        return self.child.poll() is not None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.child.kill()
        self.child.wait()

    def result(self) -> TrialResult:
        result = TrialResult(self.trial, seconds=time.monotonic() - self.began)
        result.output = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        if self.report.exists():
            rows = json.loads(self.report.read_text(encoding="utf-8"))["tests"]
            result.outcomes = [TestOutcome(**row) for row in rows]
        return result


def _arguments(trial: Trial, report: Path, folder: Path) -> list[str]:
    seed = [] if trial.seed is None else ["--course-seed", str(trial.seed)]
    return [
        str(trial.lesson.testcases),
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(ROOT),
        "--impl",
        str(trial.impl),
        "--device",
        "cpu",
        "--lang",
        "en",
        "--report",
        str(report),
        "--basetemp",
        str(folder / "tmp"),
        *seed,
    ]


def _preload() -> None:
    """Import what every child needs. No backward pass here: autograd's threads do not survive a fork."""
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import torch

    import course.expect
    import course.pytest_plugin  # noqa: F401
    from course import lazy_dynamo

    torch.set_num_threads(1)
    lazy_dynamo.install()
    # The first optimizer sets up a good deal, once; better here than in each child.
    torch.optim.SGD([torch.zeros(1)], lr=0.0)


class _Forked:
    """The part of subprocess.Popen's interface that is used here, over a forked child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status

    def kill(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.status is None:
            self.status = os.waitpid(self.pid, 0)[1]
        return self.status


def _fork(arguments: list[str], log: Path) -> _Forked:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return _Forked(pid)
    status = 70  # only an error of this file leaves it so
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(ROOT)
        import pytest

        status = int(pytest.main(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _spawn(arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with open(log, "wb") as file:
        command = [sys.executable, "-m", "pytest", *arguments]
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
